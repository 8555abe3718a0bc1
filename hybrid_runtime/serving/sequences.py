"""Sequences in cache slots: what each has cached, and the rows it can send next.

A microbatch's slots, four of them, with three sequences; the lowest free slot is taken first, so that used slots stay
close to the front:

    slot 0  prompt prompt prompt answer answer     generates: its newest token is known
    slot 1  prompt prompt                          its next chunk of the prompt follows
    slot 2  (free)
    slot 3  prompt answer                          its newest token is under way: it waits
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hybrid_runtime.serving.requests import Answer, End, ItemKind, Request, Row


@dataclass(slots=True, eq=False)
class Sequence:
    """A request in its slot.

    Attributes:
        cached: tokens that the cache holds when all items under way have passed.
        answer: sampled tokens.
        is_waited_for: its next token is under way.
    """

    request: Request
    slot: int
    admitted_ns: int
    cached: int = 0
    answer: list[int] = field(default_factory=list)
    first_token_ns: int | None = None
    is_waited_for: bool = False
    has_left: bool = False

    @property
    def prompt_left(self) -> int:
        """Tokens of the prompt that were not sent yet."""
        return max(0, len(self.request.prompt) - self.cached)

    @property
    def can_decode(self) -> bool:
        """Its newest token is known and was not sent yet."""
        return bool(self.answer) and not self.is_waited_for

    @property
    def context(self) -> int:
        """Tokens so far, prompt and answer."""
        return len(self.request.prompt) + len(self.answer)

    def prefill(self, most: int) -> tuple[Row, tuple[int, ...]]:
        """The next chunk of the prompt, of at most so many tokens, and its tokens."""
        start, length = self.cached, min(most, self.prompt_left)
        self.cached += length
        self.is_waited_for = not self.prompt_left
        row = Row(self.slot, start, length, self.request.id, 0 if self.is_waited_for else -1)
        return row, self.request.prompt[start : start + length]

    def decode(self) -> tuple[Row, int]:
        """The row of the newest token, and the token."""
        row = Row(self.slot, self.cached, 1, self.request.id, len(self.answer))
        self.cached += 1
        self.is_waited_for = True
        return row, self.answer[-1]

    def take(self, token: int, now_ns: int) -> End | None:
        """Notes a sampled token; why the answer ends with it, or None if it does not."""
        self.is_waited_for = False
        self.answer.append(token)
        if self.first_token_ns is None:
            self.first_token_ns = now_ns
        if token in self.request.stop_tokens:
            return "stop"
        return "length" if len(self.answer) >= self.request.max_new_tokens else None

    def ended(self, end: End, now_ns: int, why: str = "") -> Answer:
        """The answer, as it is now."""
        return Answer(
            self.request,
            self.request.arrival_ns,
            self.admitted_ns,
            self.first_token_ns,
            now_ns,
            tuple(self.answer),
            end,
            why,
        )


class Microbatch:
    """Slots first_slot to first_slot + size - 1, and whose turn it is: a chunk of prompts, or a decode."""

    def __init__(self, index: int, size: int) -> None:
        self.index = index
        self.size = size
        self._free = list(range((index + 1) * size - 1, index * size - 1, -1))  # its last is the lowest
        self.sequences: list[Sequence] = []  # in order of admission
        self.is_decoding = False  # a decode is under way
        self.had_prefill = False  # the item before was one

    @property
    def is_full(self) -> bool:
        return not self._free

    @property
    def load(self) -> tuple[int, int]:
        """Sequences, and tokens that they hold: what microbatches are kept equal in."""
        return len(self.sequences), sum(sequence.context for sequence in self.sequences)

    def admit(self, request: Request, now_ns: int) -> Sequence:
        """The request in the lowest free slot."""
        sequence = Sequence(request, self._free.pop(), now_ns)
        self.sequences.append(sequence)
        return sequence

    def leave(self, sequence: Sequence) -> None:
        """Frees the slot; items under way of it pass before whatever the slot is used for next."""
        sequence.has_left = True
        self.sequences.remove(sequence)
        self._free.append(sequence.slot)
        self._free.sort(reverse=True)

    def next_sequences(self) -> tuple[ItemKind, list[Sequence]] | None:
        """Those that can be sent now, of the kind whose turn it is ("prefill" or "decode"); None if there are none."""
        prompts = [sequence for sequence in self.sequences if sequence.prompt_left]
        decodes = [] if self.is_decoding else [sequence for sequence in self.sequences if sequence.can_decode]
        if decodes and (self.had_prefill or not prompts):
            return "decode", sorted(decodes, key=lambda sequence: sequence.slot)
        return ("prefill", prompts) if prompts else None
