"""One round of requests on pipeline rank 0: who asked, what is sent next, who gets which token.

It knows nothing of ranks and devices: the engine asks it for items and brings back what was sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic_ns

from hybrid_runtime.serving.batcher import Batcher
from hybrid_runtime.serving.requests import Answer, Item, Listener, Request, Source

STOPPED_READING = "the client stopped reading"


class Silent:
    """A listener that reads everything and does nothing with it."""

    def token(self, request: Request, token: int) -> bool:
        return True

    def ended(self, answer: Answer) -> None:
        return None


class Round:
    """From the first request of a source to the end of its last answer.

    Args:
        batcher: without requests.
        clock: nanoseconds; the round begins now.

    Attributes:
        answers: in the order in which they ended.
    """

    def __init__(
        self,
        source: Source,
        batcher: Batcher,
        listener: Listener | None = None,
        clock: Callable[[], int] = monotonic_ns,
    ) -> None:
        self._source = source
        self._batcher = batcher
        self._listener = listener or Silent()
        self._clock = clock
        self._begin_ns = clock()
        self.answers: list[Answer] = []

    @property
    def is_over(self) -> bool:
        """Nobody asks and nobody waits."""
        return self._source.is_exhausted and self._batcher.is_idle

    @property
    def until_next_s(self) -> float | None:
        """How long until a request comes whose time is known; 0 if it is due, None if no time is known."""
        next_ns = self._source.next_ns
        return None if next_ns is None else max(0, next_ns - self._now_ns()) / 1e9

    def next_item(self) -> Item | None:
        """Takes in who has come, and says what passes the pipeline next; None if nothing can."""
        now_ns = self._now_ns()
        while asked := self._source.due(now_ns):  # who is refused may ask again at once
            for request in asked:
                refused = self._batcher.submit(request, now_ns)
                if refused is not None:
                    self._end(refused, now_ns)
        return self._batcher.next_item()

    def back(self, item: Item, tokens: Sequence[int]) -> None:
        """An item has passed the pipeline, the first of those that are under way."""
        now_ns = self._now_ns()
        progress = self._batcher.sampled(item, tokens, now_ns)
        for request, token in progress.tokens:
            if not self._listener.token(request, token):
                cancelled = self._batcher.cancel(request.id, STOPPED_READING, now_ns)
                if cancelled is not None:
                    self._end(cancelled, now_ns)
        for answer in progress.ended:
            self._end(answer, now_ns)

    def _end(self, answer: Answer, now_ns: int) -> None:
        self.answers.append(answer)
        self._listener.ended(answer)
        self._source.ended(answer, now_ns)

    def _now_ns(self) -> int:
        return self._clock() - self._begin_ns
