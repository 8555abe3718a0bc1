"""Pieces of an answer's text: no character is parted, and together they are what all tokens decode to."""

from __future__ import annotations

import random

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers

from hybrid_runtime.serving.text_stream import TextStream
from hybrid_runtime.serving.tokenizer import Tokenizer
from hybrid_runtime.tokenizer_file import BYTES

TEXT = "naïve café, 5 € – 日本語 👩‍👩‍👧 🇩🇪🇫🇷 e\u0301 end\n"


def of_bytes() -> Tokenizer:
    return Tokenizer(BYTES, frozenset())


def byte_level() -> Tokenizer:
    """As GPT-2, Llama 3 and Qwen have: every byte is a token here."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Library(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    return Tokenizer("byte level", frozenset(), library)


def words() -> Tokenizer:
    """As Llama 2 and Mistral have: blanks belong to the words behind them, and the text's first one is dropped."""
    vocab = {word: index for index, word in enumerate(["<unk>", "▁the", "▁cat", "s", "▁sat", "▁"])}
    library = Library(models.WordLevel(vocab, unk_token="<unk>"))
    library.decoder = decoders.Metaspace()
    return Tokenizer("words", frozenset(), library)


def pieces(tokenizer: Tokenizer, tokens: list[int], prompt: list[int] | None = None) -> list[str]:
    stream = TextStream(tokenizer, prompt or [])
    return [*map(stream.push, tokens), stream.end()]


@pytest.mark.parametrize("tokenizer", [of_bytes(), byte_level()], ids=lambda one: one.name)
def test_no_character_is_parted(tokenizer: Tokenizer) -> None:
    found = pieces(tokenizer, list(tokenizer.encode(TEXT)))
    assert "".join(found) == TEXT
    assert not any("\ufffd" in piece for piece in found)
    assert found[-1] == ""
    assert "🇩🇪" in found
    assert "🇫🇷" in found
    assert not any(piece.endswith("\u200d") for piece in found)
    assert found[:2] == ["n", "a"]  # and nothing waits without need


@pytest.mark.parametrize("tokenizer", [of_bytes(), byte_level()], ids=lambda one: one.name)
def test_together_they_are_what_all_tokens_decode_to(tokenizer: Tokenizer) -> None:
    """Random bytes, most of them no UTF-8: what a model with random weights says."""
    drawn = random.Random(1)
    for length in range(1, 40):
        tokens = drawn.choices(range(256), k=length)
        assert "".join(pieces(tokenizer, tokens)) == tokenizer.decode(tokens)


def test_what_never_becomes_a_character_is_shown_in_the_end() -> None:
    found = pieces(of_bytes(), [0xE2] * 60)
    assert "".join(found) == "\ufffd" * 60
    assert sum(map(bool, found)) >= 3


def test_the_blank_of_the_first_token_stays() -> None:
    assert pieces(words(), [2, 3, 4], prompt=[1]) == [" cat", "s", " sat", ""]
    assert pieces(words(), [2, 3, 4]) == ["cat", "s", " sat", ""]


def test_a_character_that_the_prompt_began() -> None:
    euro = list("€".encode())
    assert "".join(pieces(of_bytes(), euro[1:], prompt=euro[:1])) == "€"


def test_ids_that_are_no_bytes_are_silent() -> None:
    assert "".join(pieces(of_bytes(), [104, 999, 105])) == "hi"
