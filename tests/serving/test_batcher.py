"""The batcher: drawn orders of items, and what must hold for whatever is asked."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_runtime.serving.batcher import Batcher
from hybrid_runtime.serving.requests import NOT_FINITE, Item, Request
from tests.serving.traffic import LIMITS, Pipe, asked, said, text, token_of


def batcher(microbatches: int, size: int, chunk: int | None = None, in_flight: int | None = None) -> Batcher:
    return Batcher(microbatches, size, LIMITS, chunk, in_flight)


def pipe(batcher: Batcher, *requests: Request) -> Pipe:
    for request in requests:
        assert batcher.submit(request, 0) is None
    return Pipe(batcher)


def test_whole_prompts_then_tokens() -> None:
    answered = pipe(batcher(1, 2), asked(0, 4, 3), asked(1, 2, 2))
    assert answered.drain() == ["P0 0:0+4? 1:0+2?", "D0 0:4+1? 1:2+1?", "D0 0:5+1?"]
    assert [(answer.request.id, answer.tokens) for answer in answered.answers] == [(1, (7, 10)), (0, (0, 3, 6))]


def test_chunks_are_shared_by_prompts_and_alternate_with_decodes() -> None:
    answered = pipe(batcher(1, 3, chunk=4), asked(0, 3, 4), asked(1, 6, 1), asked(2, 2, 1))
    assert answered.drain() == [
        "P0 0:0+3? 1:0+1",
        "D0 0:3+1?",
        "P0 1:1+4",
        "D0 0:4+1?",
        "P0 1:5+1? 2:0+2?",
        "D0 0:5+1?",
    ]


def test_requests_go_where_the_fewest_sequences_are_then_the_fewest_tokens() -> None:
    answered = pipe(batcher(2, 2), asked(0, 9, 1), asked(1, 3, 1), asked(2, 1, 1), asked(3, 2, 1), asked(4, 1, 1))
    assert [text(answered.send()) for _ in range(2)] == ["P0 0:0+9? 1:0+2?", "P1 2:0+3? 3:0+1?"]
    assert answered.batcher.num_waiting == 1
    answered.back()
    assert text(answered.send()) == "P0 0:0+1?"  # the lowest slot that has become free


def test_chunks_of_one_prompt_fill_the_pipeline() -> None:
    answered = pipe(batcher(3, 1, chunk=2), asked(0, 8, 1))
    assert [text(answered.send()) for _ in range(4)] == ["P0 0:0+2", "P0 0:2+2", "P0 0:4+2", "-"]
    assert answered.back().tokens == ()
    assert text(answered.send()) == "P0 0:6+2?"


def test_a_decode_waits_for_the_one_before() -> None:
    answered = pipe(batcher(2, 1), asked(0, 2, 3))
    assert [text(answered.send()) for _ in range(2)] == ["P0 0:0+2?", "-"]
    answered.back()
    assert [text(answered.send()) for _ in range(2)] == ["D0 0:2+1?", "-"]


def test_one_in_flight() -> None:
    answered = pipe(batcher(2, 1, in_flight=1), asked(0, 2, 2), asked(1, 2, 2))
    assert [text(answered.send()) for _ in range(2)] == ["P0 0:0+2?", "-"]
    assert answered.drain() == ["P1 1:0+2?", "D0 0:2+1?", "D1 1:2+1?"]


def test_a_stop_token_ends_an_answer_and_is_part_of_it() -> None:
    answered = pipe(batcher(1, 1), asked(1, 2, 50, stop_tokens=frozenset({token_of(1, 2)})))
    answered.drain()
    [answer] = answered.answers
    assert (answer.end, answer.tokens) == ("stop", (7, 10, 13))
    assert (answer.admitted_ns, answer.first_token_ns, answer.ended_ns) == (0, 1, 3)


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (Request(3, (), 1), "request 3 has an empty prompt; send at least one token"),
        (
            Request(3, (1,), 0),
            "request 3 asks for 0 new tokens, and an answer has at least one; set max_new_tokens to 1 or more",
        ),
        (
            asked(3, 60, 5),
            "request 3 needs 65 tokens of cache (60 of its prompt and 5 new ones), and a sequence has 64; lower "
            "max_new_tokens to 4, or raise batch.sequence_length to 65",
        ),
        (
            asked(3, 64, 5),
            "request 3 needs 69 tokens of cache (64 of its prompt and 5 new ones), and a sequence has 64; shorten the "
            "prompt to 63 or fewer, or raise batch.sequence_length to 69",
        ),
        (
            Request(3, (1, 100), 1),
            "request 3 has the token 100 at place 1 of its prompt, and the model knows 0 to 99; use the model's own "
            "tokenizer",
        ),
        (
            Request(3, (-1,), 1),
            "request 3 has the token -1 at place 0 of its prompt, and the model knows 0 to 99; use the model's own "
            "tokenizer",
        ),
        (asked(0), "request 0 has the id of another request; give every request an id of its own"),
    ],
)
def test_refused_by_one_sentence_and_the_others_unharmed(request_: Request, why: str) -> None:
    answered = pipe(batcher(1, 2), asked(0))
    refused = answered.batcher.submit(request_, 5)
    assert refused is not None
    assert (refused.end, refused.why, refused.ended_ns) == ("refused", why, 5)
    answered.drain()
    assert [answer.request.id for answer in answered.answers] == [0]


def test_a_cancelled_request_frees_its_slot_and_what_is_under_way_of_it_is_ignored() -> None:
    answered = pipe(batcher(1, 1), asked(0, 2, 5), asked(1, 2, 1))
    answered.send()
    cancelled = answered.batcher.cancel(0, "request 0: its client does not read any more", 7)
    assert cancelled is not None
    assert (cancelled.end, cancelled.tokens) == ("cancelled", ())
    assert answered.batcher.cancel(0, "twice", 7) is None
    assert answered.back() == ((), ())
    assert answered.drain() == ["P0 0:0+2?"]


def test_logits_that_are_not_finite_end_their_own_request() -> None:
    answered = pipe(batcher(1, 2), asked(0, 2, 2), asked(1, 2, 2))
    item = answered.send()
    assert item is not None
    progress = answered.batcher.sampled(item, [NOT_FINITE, 5], 3)
    assert [request.id for request, _ in progress.tokens] == [1]
    [answer] = progress.ended
    assert (answer.end, answer.tokens, answer.first_token_ns) == ("cancelled", (), None)
    assert (
        answer.why
        == "request 0: the logits of token 0 of its answer are not finite; check the weights and their data type"
    )
    assert text(answered.batcher.next_item()) == "D0 1:2+1?"


def test_a_waiting_request_is_cancelled() -> None:
    answered = pipe(batcher(1, 1), asked(0, 2, 1), asked(1, 2, 1))
    cancelled = answered.batcher.cancel(1, "gone", 7)
    assert cancelled is not None
    assert (cancelled.end, cancelled.admitted_ns) == ("cancelled", None)
    assert answered.drain() == ["P0 0:0+2?"]


def test_what_comes_back_is_what_was_sent() -> None:
    answered = pipe(batcher(2, 1), asked(0), asked(1))
    first, second = answered.send(), answered.send()
    assert first is not None
    assert second is not None
    with pytest.raises(ValueError, match="a prefill of microbatch 1 came back out of order"):
        answered.batcher.sampled(second, said(second), 0)
    with pytest.raises(ValueError, match="0 tokens came back for 1 rows"):
        answered.batcher.sampled(first, [], 0)


requests = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 8)), min_size=1, max_size=20)


@settings(max_examples=150, deadline=None)
@given(
    sizes=requests,
    microbatches=st.integers(1, 4),
    size=st.integers(1, 4),
    chunk=st.none() | st.integers(1, 10),
    random=st.randoms(use_true_random=False),
)
def test_every_request_ends_once_and_no_slot_is_shared(
    sizes: list[tuple[int, int]], microbatches: int, size: int, chunk: int | None, random: object
) -> None:
    """Whatever is asked, in whatever order items come back, go out, and clients leave."""
    coin = random.random  # type: ignore[attr-defined]
    answered = Pipe(batcher(microbatches, size, chunk))
    coming = [asked(number, *lengths) for number, lengths in enumerate(sizes)][::-1]
    checked = _Checked(size, chunk, dict(enumerate(sizes)))
    while coming or not answered.batcher.is_idle:
        if coming and coin() < 0.3:
            assert answered.batcher.submit(coming.pop(), answered.now_ns) is None
        if coin() < 0.05:
            gone = answered.batcher.cancel(int(coin() * len(sizes)), "gone", answered.now_ns)
            if gone is not None:
                answered.answers.append(gone)
        if coin() < 0.7:
            item = answered.send()
            if item is not None:
                checked.sent(item)
        elif answered.items:
            answered.back()
        assert len(answered.items) <= microbatches
    ends = sorted(answer.request.id for answer in answered.answers)
    assert ends == list(range(len(sizes)))
    for answer in answered.answers:
        told = tuple(token_of(answer.request.id, place) for place in range(len(answer.tokens)))
        assert answer.tokens == told
        assert answer.end == "cancelled" or len(told) == sizes[answer.request.id][1]


class _Checked:
    """What the stages' caches hold, and that every row goes on where the one before it of its slot ended."""

    def __init__(self, size: int, chunk: int | None, sizes: dict[int, tuple[int, int]]) -> None:
        self.size, self.chunk, self.sizes = size, chunk, sizes
        self.held: dict[int, tuple[int, int]] = {}  # by slot: request, tokens

    def sent(self, item: Item) -> None:
        assert item.rows
        assert len(item.rows) == len(item.sampling) <= self.size
        assert len({row.slot for row in item.rows}) == len(item.rows)
        assert sum(row.length for row in item.rows) == len(item.tokens)
        assert self.chunk is None or item.kind == "decode" or len(item.tokens) <= self.chunk
        first = 0
        for row in item.rows:
            self._row(item, row.slot, row.request, row.start, row.length, row.answer_index)
            prompt = self.sizes[row.request][0]
            tokens = item.tokens[first : first + row.length]
            expected = (
                tuple(range(row.start, row.start + row.length))
                if item.kind == "prefill"
                else (token_of(row.request, row.start - prompt),)
            )
            assert tokens == expected
            first += row.length

    def _row(self, item: Item, slot: int, request: int, start: int, length: int, answer_index: int) -> None:
        assert slot // self.size == item.microbatch
        if start == 0:
            assert all(holder != request for holder, _ in self.held.values())
        else:
            assert self.held[slot] == (request, start)
        self.held[slot] = (request, start + length)
        prompt = self.sizes[request][0]
        end = start + length
        assert answer_index == (end - prompt if end >= prompt else -1)


@settings(max_examples=60, deadline=None)
@given(sizes=requests, microbatches=st.integers(1, 3), size=st.integers(1, 3), chunk=st.integers(1, 6))
def test_nobody_starves(sizes: list[tuple[int, int]], microbatches: int, size: int, chunk: int) -> None:
    """First come, first admitted; with one item under way, a microbatch sends at most one chunk between two tokens."""
    answered = pipe(
        batcher(microbatches, size, chunk, in_flight=1), *(asked(number, *one) for number, one in enumerate(sizes))
    )
    answered.drain()
    admitted = {answer.request.id: answer.admitted_ns or 0 for answer in answered.answers}
    assert [admitted[number] for number in range(len(sizes))] == sorted(admitted.values())
    for microbatch in range(microbatches):
        kinds = [item for item in answered.sent if item.microbatch == microbatch]
        for before, item, after in zip(kinds, kinds[1:], kinds[2:], strict=False):
            if before.kind == "decode" and item.kind == after.kind == "prefill":
                going_on = [row for row in before.rows if row.answer_index + 1 < sizes[row.request][1]]
                assert not going_on
