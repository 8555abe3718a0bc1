"""Requests, and the items of work that they become.

    Request   a prompt and how it is to be continued                     made by a `Source`
    Item      what passes the pipeline together: rows of one microbatch  made by the `Batcher`, on pipeline rank 0

    prefill   rows of several tokens of prompts; a chunk of each, or all of them
    decode    rows of one token, the newest of each sequence

A microbatch is a fixed set of cache slots, `Batch.microbatch_size` of them, in `Deployment.num_microbatches`
microbatches: microbatch i has slots i*B to (i+1)*B - 1. A sequence keeps its slot from its prefill until it has ended.
Items pass every stage in the order in which they were sent, and come back in it. At most one decode of a microbatch is
under way, since its next tokens depend on it; its chunks of prompts do not. Together they fill the pipeline.

Times are nanoseconds after the begin of the round, by the clock of rank 0's host (CLOCK_MONOTONIC).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Protocol

ItemKind = Literal["prefill", "decode"]
End = Literal["stop", "length", "cancelled", "refused"]

NOT_FINITE: Final = -1  # instead of a sampled token: the largest logit is nan or infinite; the request is cancelled


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a next token is drawn.

    Attributes:
        temperature: 0 takes the most likely one (the lowest id of equals); above 0 logits are divided by it.
        top_k: only so many most likely ones; None for all.
        top_p: only the most likely ones that together have this probability (Holtzman et al. 2020); None for all.
        seed: token j of request r is drawn from (seed, r, j): the same on every mesh, in whatever batch it lies.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0


GREEDY = Sampling()


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and how it is to be continued.

    Attributes:
        id: unique among the requests of a source.
        prompt: token ids.
        max_new_tokens: the answer's most tokens.
        stop_tokens: the answer ends after one of these.
        arrival_ns: when the client sent it, after the begin of the round.
    """

    id: int
    prompt: tuple[int, ...]
    max_new_tokens: int
    stop_tokens: frozenset[int] = frozenset()
    sampling: Sampling = GREEDY
    arrival_ns: int = 0


class Row(NamedTuple):
    """A part of one sequence in an item.

    Attributes:
        slot: of the cache, over all microbatches.
        start: tokens of the sequence that the cache holds already; the positions of the row's are start, start + 1, ...
        length: tokens of this row.
        request: id of its request; with `answer_index` it says what a sampled token is drawn from.
        answer_index: place in the answer of the token that is sampled after the row's last one; -1 where none is
            wanted (more of the prompt follows).
    """

    slot: int
    start: int
    length: int
    request: int
    answer_index: int


@dataclass(frozen=True, slots=True)
class Item:
    """What passes the pipeline together.

    Attributes:
        tokens: of all rows, one after another.
        sampling: of each row.
    """

    kind: ItemKind
    microbatch: int
    rows: tuple[Row, ...]
    tokens: tuple[int, ...]
    sampling: tuple[Sampling, ...]

    @property
    def num_wanted(self) -> int:
        """Tokens that will be sampled."""
        return sum(row.answer_index >= 0 for row in self.rows)


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request.

    Attributes:
        admitted_ns: when it got its slot; None if it never did.
        first_token_ns: when its first token was known to pipeline rank 0; None if there was none.
        ended_ns: when its last token was, or when it was refused or cancelled.
        tokens: the answer, a stop token included.
        end: why it ended.
        why: one sentence for a refused or cancelled one, else "".
    """

    request: Request
    arrival_ns: int
    admitted_ns: int | None
    first_token_ns: int | None
    ended_ns: int
    tokens: tuple[int, ...]
    end: End
    why: str = ""


class Source(Protocol):
    """Who sends requests. All calls are made on rank 0 only; times are nanoseconds after the begin of the round."""

    def due(self, now_ns: int) -> Sequence[Request]:
        """Requests that have arrived by now and were not given out before, in order of arrival."""

    @property
    def next_ns(self) -> int | None:
        """When the next one arrives, where that is known; None where it waits for an answer, or there is none."""

    @property
    def is_exhausted(self) -> bool:
        """No request will come any more."""

    def ended(self, answer: Answer, now_ns: int) -> None:
        """A client has its answer; in a closed loop it sends its next request."""


class Listener(Protocol):
    """Who reads answers while they are made, on rank 0."""

    def token(self, request: Request, token: int) -> bool:
        """The answer's next token; False if the client does not read any more: the request is then cancelled."""

    def ended(self, answer: Answer) -> None:
        """The answer is whole, refused or cancelled."""
