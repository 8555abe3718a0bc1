"""Items as numbers and back."""

from __future__ import annotations

from hybrid_runtime.inference.descriptor import SIGN_OF_LIFE, decode, descriptor_length, encode, num_tokens
from hybrid_runtime.serving.requests import Item, Row, Sampling

ROWS = (Row(3, 0, 4, 12, -1), Row(5, 7, 1, 2**40, 6))
SAMPLINGS = (Sampling(), Sampling(0.7, 40, 0.95, 2**63 - 1))


def test_numbers_say_all_of_an_item() -> None:
    item = Item("prefill", 1, ROWS, (4, 5, 6, 7, 9), SAMPLINGS)
    numbers = encode(item)
    assert len(numbers) == descriptor_length(2)
    assert num_tokens(numbers) == 5
    assert decode([*numbers, 0, 0, 0], item.tokens) == item


def test_a_decode_and_the_end() -> None:
    item = Item("decode", 0, ROWS[1:], (9,), SAMPLINGS[1:])
    assert decode(encode(item), (9,)) == item
    assert decode(encode(None)) is None
    assert len({numbers[0] for numbers in (encode(item), encode(None), SIGN_OF_LIFE)}) == 3
    assert num_tokens(encode(None)) == 0
