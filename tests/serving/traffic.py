"""Requests and an imaginary pipeline, for tests of who is answered when."""

from __future__ import annotations

from collections import deque

from hybrid_runtime.serving.batcher import Batcher, Progress
from hybrid_runtime.serving.refusals import Limits
from hybrid_runtime.serving.requests import Answer, Item, Request

LIMITS = Limits(capacity=64, vocab_size=100)


def asked(number: int, prompt_tokens: int = 4, new_tokens: int = 3, **more: object) -> Request:
    """A request whose prompt tells its tokens apart: its places."""
    return Request(number, tuple(range(prompt_tokens)), new_tokens, **more)  # type: ignore[arg-type]


def text(item: Item | None) -> str:
    """`P0 0:0+4 1:0+2?`: kind and microbatch, then slot:start+length of every row, ? where a token is wanted."""
    if item is None:
        return "-"
    rows = (f"{row.slot}:{row.start}+{row.length}" + "?" * (row.answer_index >= 0) for row in item.rows)
    return " ".join([f"{item.kind[0].upper()}{item.microbatch}", *rows])


def token_of(request: int, answer_index: int) -> int:
    """What the imaginary model says: known from the request and the place alone, as with any correct batching."""
    return (7 * request + 3 * answer_index) % LIMITS.vocab_size


def said(item: Item) -> list[int]:
    """The imaginary model's tokens for an item."""
    return [token_of(row.request, row.answer_index) for row in item.rows if row.answer_index >= 0]


class Pipe:
    """Items under way, in order; `back` brings the oldest."""

    def __init__(self, batcher: Batcher) -> None:
        self.batcher = batcher
        self.items: deque[Item] = deque()
        self.sent: list[Item] = []
        self.answers: list[Answer] = []
        self.now_ns = 0

    def send(self) -> Item | None:
        item = self.batcher.next_item()
        if item is not None:
            self.items.append(item)
            self.sent.append(item)
        return item

    def back(self) -> Progress:
        self.now_ns += 1
        item = self.items.popleft()
        progress = self.batcher.sampled(item, said(item), self.now_ns)
        self.answers += progress.ended
        return progress

    def drain(self) -> list[str]:
        """Sends as much as may be under way, brings one back, and so on until all is answered; what was sent."""
        before = len(self.sent)
        while not self.batcher.is_idle:
            while self.send() is not None:
                pass
            self.back()
        return [text(item) for item in self.sent[before:]]
