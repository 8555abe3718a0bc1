"""Which requests are answered together, and what passes the pipeline next: the one policy of engine and simulation.

    submit -> waiting, first come first served -> a slot of the microbatch with the fewest sequences
           -> chunks of the prompt (prefill) -> one token after another (decode) -> ended, the slot is free at once

Microbatches take turns. In its turn a microbatch sends a chunk of its prompts or its next tokens, alternately where it
can do both, so that generating sequences never stand behind more than one chunk of their own microbatch (chunked
prefill, Agrawal et al. 2023):

    microbatch 0   D P D P D D D        P a chunk of prompts: at most `chunk_tokens` tokens, of one prompt or several
    microbatch 1   P P P D D D          D the newest token of every sequence that has one

A decode needs the tokens of the decode before it. A chunk of a prompt needs nothing that is still under way but the
chunks before it, which every stage has met already: items pass the pipeline in the order they were sent. So the n
chunks of one long prompt fill a pipeline of p stages, and its first token comes after (n + p - 1)/n of one stage's
time for all of it instead of p. At most `most_in_flight` items are under way.

Equal numbers of sequences and tokens in every microbatch are what keeps a pipeline's decode balanced over time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.serving import sequences
from hybrid_runtime.serving.refusals import Limits, limits_of, not_finite, used_twice
from hybrid_runtime.serving.requests import NOT_FINITE, Answer, End, Item, ItemKind, Request, Row


class Progress(NamedTuple):
    """What an item brought.

    Attributes:
        tokens: (request, its next token), of requests that still want one.
        ended: answers that are whole.
    """

    tokens: tuple[tuple[Request, int], ...]
    ended: tuple[Answer, ...]


class _UnderWay(NamedTuple):
    item: Item
    members: tuple[sequences.Sequence, ...]  # of each row


class Batcher:
    """Admits requests, makes items of them and notes what was sampled; lives for one round, on pipeline rank 0.

    Time is whatever the caller passes: a clock's nanoseconds after the begin of the round, or a simulated one's.
    """

    def __init__(
        self,
        num_microbatches: int,
        microbatch_size: int,
        limits: Limits,
        chunk_tokens: int | None = None,
        most_in_flight: int | None = None,
    ) -> None:
        """A batcher without requests.

        Args:
            microbatch_size: slots of each microbatch.
            chunk_tokens: most tokens of a prefill; None for whole prompts.
            most_in_flight: items that may be under way; default: one for each microbatch.
        """
        self._microbatches = [sequences.Microbatch(index, microbatch_size) for index in range(num_microbatches)]
        self._limits = limits
        self._chunk_tokens = chunk_tokens
        self._most_in_flight = most_in_flight or num_microbatches
        self._waiting: deque[Request] = deque()
        self._active: dict[int, tuple[sequences.Microbatch, sequences.Sequence]] = {}
        self._under_way: deque[_UnderWay] = deque()
        self._known: set[int] = set()
        self._turn = 0

    @property
    def is_idle(self) -> bool:
        """Nobody waits, no sequence has a slot, and no item is under way."""
        return not (self._waiting or self._active or self._under_way)

    @property
    def num_under_way(self) -> int:
        """Items that were sent and have not come back."""
        return len(self._under_way)

    @property
    def num_waiting(self) -> int:
        """Requests without a slot."""
        return len(self._waiting)

    def submit(self, request: Request, now_ns: int) -> Answer | None:
        """Takes a request in; the answer at once if it is refused, with the reason."""
        why = used_twice(request) if request.id in self._known else self._limits.refusal(request)
        if why is not None:
            return _unserved(request, now_ns, "refused", why)
        self._known.add(request.id)
        self._waiting.append(request)
        self._admit(now_ns)
        return None

    def next_item(self) -> Item | None:
        """What passes the pipeline next, from now on under way; None if nothing can be sent before an item is back or a
        request comes.

        Items come back to `sampled` in the order in which they were sent.
        """
        if len(self._under_way) >= self._most_in_flight:
            return None
        for step in range(len(self._microbatches)):
            microbatch = self._microbatches[(self._turn + step) % len(self._microbatches)]
            found = microbatch.next_sequences()
            if found is not None:
                self._turn = microbatch.index + 1
                return self._send(microbatch, *found)
        return None

    def sampled(self, item: Item, tokens: Sequence[int], now_ns: int) -> Progress:
        """An item is back: the ids of its `num_wanted` rows, in their order.

        Raises:
            ValueError: an item came back before one that was sent earlier, or with too many or too few tokens.
        """
        if not self._under_way or self._under_way[0].item is not item:
            raise ValueError(f"a {item.kind} of microbatch {item.microbatch} came back out of order")
        if len(tokens) != item.num_wanted:
            raise ValueError(f"{len(tokens)} tokens came back for {item.num_wanted} rows")
        members = self._under_way.popleft().members
        microbatch = self._microbatches[item.microbatch]
        if item.kind == "decode":
            microbatch.is_decoding = False
        wanted = (member for row, member in zip(item.rows, members, strict=True) if row.answer_index >= 0)
        progress = self._note(microbatch, zip(wanted, tokens, strict=True), now_ns)
        self._admit(now_ns)
        return progress

    def cancel(self, request_id: int, why: str, now_ns: int) -> Answer | None:
        """Ends a request that nobody reads any more, what it has of its answer with it; None if it has ended already.

        What is under way of it passes and is ignored.
        """
        if request_id in self._active:
            microbatch, sequence = self._active.pop(request_id)
            microbatch.leave(sequence)
            self._admit(now_ns)
            return sequence.ended("cancelled", now_ns, why)
        waiting = next((request for request in self._waiting if request.id == request_id), None)
        if waiting is None:
            return None
        self._waiting.remove(waiting)
        return _unserved(waiting, now_ns, "cancelled", why)

    def _admit(self, now_ns: int) -> None:
        """Gives slots to those who wait: each in the microbatch with the fewest sequences, then the fewest tokens."""
        while self._waiting:
            free = [microbatch for microbatch in self._microbatches if not microbatch.is_full]
            if not free:
                return
            microbatch = min(free, key=lambda one: one.load)
            request = self._waiting.popleft()
            self._active[request.id] = (microbatch, microbatch.admit(request, now_ns))

    def _send(self, microbatch: sequences.Microbatch, kind: ItemKind, members: list[sequences.Sequence]) -> Item:
        sent = _prefill(members, self._chunk_tokens) if kind == "prefill" else _decode(members)
        members = members[: len(sent)]
        item = Item(
            kind,
            microbatch.index,
            tuple(row for row, _ in sent),
            tuple(chain.from_iterable(tokens for _, tokens in sent)),
            tuple(member.request.sampling for member in members),
        )
        microbatch.had_prefill = kind == "prefill"
        microbatch.is_decoding = microbatch.is_decoding or kind == "decode"
        self._under_way.append(_UnderWay(item, tuple(members)))
        return item

    def _note(
        self, microbatch: sequences.Microbatch, sampled: Iterable[tuple[sequences.Sequence, int]], now_ns: int
    ) -> Progress:
        tokens: list[tuple[Request, int]] = []
        ended: list[Answer] = []
        for sequence, token in sampled:
            if sequence.has_left:  # cancelled on the way
                continue
            if token == NOT_FINITE:
                end: End | None = "cancelled"
                why = not_finite(sequence.request, len(sequence.answer))
            else:
                tokens.append((sequence.request, token))
                end, why = sequence.take(token, now_ns), ""
            if end is not None:
                microbatch.leave(sequence)
                del self._active[sequence.request.id]
                ended.append(sequence.ended(end, now_ns, why))
        return Progress(tuple(tokens), tuple(ended))


def batcher_of(deployment: Deployment) -> Batcher:
    """A batcher for a round of a deployment, whose [batch] is known.

    Raises:
        UsageError: as `limits_of`.
    """
    limits, batch = limits_of(deployment), deployment.batch
    assert batch is not None
    return Batcher(
        deployment.num_microbatches, batch.microbatch_size, limits, batch.prefill_chunk_tokens, batch.items_in_flight
    )


def _prefill(members: list[sequences.Sequence], chunk_tokens: int | None) -> list[tuple[Row, tuple[int, ...]]]:
    """Chunks of the first prompts, together at most `chunk_tokens` tokens."""
    left = sum(member.prompt_left for member in members) if chunk_tokens is None else chunk_tokens
    sent = []
    for member in members:
        if left == 0:
            break
        row, tokens = member.prefill(left)
        sent.append((row, tokens))
        left -= row.length
    return sent


def _decode(members: list[sequences.Sequence]) -> list[tuple[Row, tuple[int, ...]]]:
    sent = [member.decode() for member in members]
    return [(row, (token,)) for row, token in sent]


def _unserved(request: Request, now_ns: int, end: End, why: str) -> Answer:
    """The answer of a request that never had a slot."""
    return Answer(request, request.arrival_ns, None, None, now_ns, (), end, why)
