"""How answers are shown, what is said of those that nobody read, and how the command ends."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hybrid_runtime.errors import ExitCode
from hybrid_runtime.serving.clients import Client
from hybrid_runtime.serving.line import Ended, Token
from hybrid_runtime.serving.requests import Request
from hybrid_runtime.serving.shown import JsonLines, Labelled, Plain, Reading, Shown
from hybrid_runtime.serving.tokenizer import Tokenizer

BYTES = Tokenizer("bytes", frozenset({0}))


class Kept(Client):
    """A reader that reads `most` pieces, all of them at once."""

    def __init__(self, most: int = 10**6) -> None:
        super().__init__("the reader", lambda: -1)
        self.most = most
        self.text = ""
        self.has_ended = False

    def give(self, text: str) -> bool:
        self.most -= bool(text)
        if self.most < 0:
            self.problem = "the reader is not read by anybody"
        else:
            self.text += text
        return self.problem is None

    def end(self) -> None:
        self.has_ended = True


class Case:
    """Requests 1, 2, ... and what is said and cancelled while they are read."""

    def __init__(self, *shown: Shown) -> None:
        self.said: list[str] = []
        self.cancelled: list[int] = []
        requests = [Request(number, (65,), 9) for number in range(1, len(shown) + 1)]
        by_id = dict(enumerate(shown, start=1))
        self.reading = Reading(requests, by_id, BYTES, self.said.append, self.cancelled.append)

    def answer(self, number: int, text: str, **more: Any) -> None:
        for token in text.encode():
            self.reading.take(Token(number, token))
        self.end(number, text, **more)

    def end(self, number: int, text: str = "", end: Any = "length", why: str = "", first_ms: int = 100) -> None:
        tokens = tuple(text.encode())
        whole_ns = (first_ms + 10 * (len(tokens) - 1)) * 10**6
        self.reading.take(Ended(number, end, why, tokens, first_ms * 10**6 if tokens else None, whole_ns))


def test_one_prompt_is_plain_text_that_ends_its_line() -> None:
    for text, shown in (("Grüße", "Grüße\n"), ("a line\n", "a line\n")):
        client = Kept()
        case = Case(Plain(client))
        case.answer(1, text)
        assert client.text == shown
        assert client.has_ended
        assert case.reading.is_whole


def test_several_are_whole_lines_behind_their_number() -> None:
    client = Kept()
    case = Case(Labelled(client, 1), Labelled(client, 2))
    for first, second in zip(b"ab\ncd", b"x\ny\n\xe2"):
        case.reading.take(Token(1, first))
        case.reading.take(Token(2, second))
    assert client.text == "[2] x\n[1] ab\n[2] y\n"
    case.end(1, "ab\ncd")
    assert not client.has_ended
    case.end(2, "x\ny\n")
    assert client.text == "[2] x\n[1] ab\n[2] y\n[1] cd\n[2] \ufffd\n"
    assert client.has_ended


def test_json_lines() -> None:
    client = Kept()
    case = Case(JsonLines(client, 1))
    case.answer(1, "aé")
    lines = [json.loads(line) for line in client.text.splitlines()]
    assert lines[:3] == [
        {"prompt": 1, "token": 97, "text": "a"},
        {"prompt": 1, "token": 0xC3, "text": ""},
        {"prompt": 1, "token": 0xA9, "text": "é"},
    ]
    assert lines[3] == {
        "prompt": 1,
        "end": "length",
        "why": "",
        "text": "aé",
        "tokens": [97, 0xC3, 0xA9],
        "first_token_s": 0.1,
        "output_token_s": 0.01,
        "whole_s": 0.12,
    }


def test_a_reader_that_stops_cancels_its_request_alone() -> None:
    gone, there = Kept(most=2), Kept()
    case = Case(Plain(gone), Plain(there))
    for token in b"abcd":
        case.reading.take(Token(1, token))
    assert case.cancelled == [1]  # once
    case.end(1, "abc", end="cancelled", why="request 1: its client does not read any more")
    case.answer(2, "whole")
    assert there.text == "whole\n"
    case.reading.finish()
    assert case.said == ["request 1 is cancelled: the reader is not read by anybody"]
    assert case.reading.exit_code is ExitCode.ERROR


def test_a_reader_that_leaves_after_the_last_token() -> None:
    case = Case(Plain(Kept(most=2)))
    case.answer(1, "ab")  # the end of the line is not read
    case.reading.finish()
    assert case.said == ["request 1 is not read to its end: the reader is not read by anybody"]
    assert case.reading.exit_code is ExitCode.ERROR


@pytest.mark.parametrize(("ends", "code"), [("ll", 0), ("lr", 2), ("rc", 4), ("cl", 4), ("ss", 0)])
def test_exit_codes(ends: str, code: int) -> None:
    words = {"l": "length", "r": "refused", "c": "cancelled", "s": "stop"}
    case = Case(*(Plain(Kept()) for _ in ends))
    for number, end in enumerate(ends, start=1):
        case.end(number, end=words[end], why=f"why {number}" if end in "rc" else "")
    assert case.reading.exit_code == code
    assert case.said == [f"why {number}" for number, end in enumerate(ends, start=1) if end in "rc"]


def test_the_closing_line() -> None:
    one = Case(Plain(Kept()))
    one.answer(1, "abc")
    assert one.reading.summary == (
        "1 answer, 3 tokens in 0.12 s: time to first token 100 ms, per output token 10.0 ms; 25.0 tokens/s"
    )
    two = Case(Plain(Kept()), Plain(Kept()), Plain(Kept()))
    two.answer(1, "a", first_ms=50)
    two.answer(2, "ab", first_ms=70)
    two.end(3, end="refused", why="why")
    assert two.reading.summary == (
        "2 answers, 3 tokens in 0.08 s: median time to first token 60 ms, per output token 10.0 ms; 37.5 tokens/s"
    )
    none = Case(Plain(Kept()))
    none.end(1, end="refused", why="why")
    assert none.reading.summary == "no answer"
