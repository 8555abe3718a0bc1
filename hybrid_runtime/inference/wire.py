"""Who tells whom of an item: its descriptor, what stages pass on, and what was sampled.

    rank 0 --descriptor, tokens--> the other tensor ranks of its stage
    each rank --descriptor--> its tensor peer of the next stage --descriptor--> ...       sent on before it computes
    each rank --carry--> its tensor peer of the next stage                                after it has computed
    last stage's first tensor rank --sampled ids--> rank 0                                straight

Rank 0 may have nothing to do for longer than a message is waited for; it then sends signs of life in its stead.

Nothing that is sent is waited for as long as no more items are under way than there may be: what is older than that has
been received, or its answer would not be back.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager

from hybrid_runtime.comm.groups import Groups
from hybrid_runtime.comm.under_way import Ledger
from hybrid_runtime.inference.descriptor import SIGN_OF_LIFE, decode, descriptor_length, encode, num_tokens
from hybrid_runtime.inference.links import UNSENT, CarryIn, CarryOut, Numbers, Receiving
from hybrid_runtime.models.unit import Carry
from hybrid_runtime.serving.requests import Item

_DESCRIPTOR, _TOKENS, _ANSWER = 1, 2, 3  # tags


class Wire:
    """All messages of one rank.

    Args:
        microbatch_size: most rows of an item.
        most_in_flight: items that may be under way.
        longest_silence_s: after which rank 0 gives a sign of life; less than a message is waited for.
        ledger: counts carries.

    Attributes:
        is_first, is_last: the rank's stage.
    """

    def __init__(
        self,
        groups: Groups,
        microbatch_size: int,
        most_in_flight: int,
        longest_silence_s: float,
        ledger: Ledger | None = None,
    ) -> None:
        me, last = groups.place, groups.mesh.pp_degree - 1
        self._most, self._rows = most_in_flight, microbatch_size
        self._length = descriptor_length(microbatch_size)
        self.longest_silence_s, self._said_s = longest_silence_s, time.monotonic()
        self.is_first, self.is_last = me.pp == 0, me.pp == last

        def link(pp: int, tp: int, tag: int) -> Numbers:
            return Numbers(groups, groups.mesh.rank(dp=0, pp=pp, tp=tp), tag)

        peers = range(1, groups.mesh.tp_degree) if me.rank == 0 else ()
        self._onward = [link(0, tp, _DESCRIPTOR) for tp in peers]
        self._onward += [] if self.is_last else [link(me.pp + 1, me.tp, _DESCRIPTOR)]
        self._tokens_out = [link(0, tp, _TOKENS) for tp in peers]
        source = (0, 0) if self.is_first else (me.pp - 1, me.tp)
        self._descriptors = None if me.rank == 0 else link(*source, _DESCRIPTOR)
        self._tokens_in = link(0, 0, _TOKENS) if self.is_first and me.rank > 0 else None
        answers = last > 0 and me.tp == 0
        self._answers_in = link(last, 0, _ANSWER) if answers and self.is_first else None
        self._answers_out = link(0, 0, _ANSWER) if answers and self.is_last else None
        self._announced: Receiving | None = None
        self._expected: deque[Receiving] = deque()
        edge_in, edge_out = groups.edges.get((me.pp - 1, me.pp)), groups.edges.get((me.pp, me.pp + 1))
        self._carry_in = None if edge_in is None else CarryIn(edge_in, groups, ledger)
        self._carry_out = None if edge_out is None else CarryOut(edge_out, groups, ledger)

    def announce(self, item: Item | None) -> None:
        """Tells the ranks behind this one what comes, and those of its stage the tokens; None: nothing more."""
        if not self._onward:
            return
        self._tell(encode(item))
        if item is not None:
            for link in self._tokens_out:
                link.send(item.tokens, self._most)

    def give_sign(self) -> None:
        """Rank 0 has nothing to announce; if it has not had for long, the others hear that they are to wait."""
        if self._onward and time.monotonic() - self._said_s >= self.longest_silence_s:
            self._tell(SIGN_OF_LIFE)

    def _tell(self, numbers: Sequence[int]) -> None:
        self._said_s = time.monotonic()
        padded = [*numbers, *[0] * (self._length - len(numbers))]
        for link in self._onward:
            link.send(padded, self._most)

    def next_item(self) -> Item | None:
        """Waits for what is announced to this rank; with tokens on the first stage. None: nothing any more."""
        numbers = self._next_numbers()
        while numbers[0] == SIGN_OF_LIFE[0]:
            self._tell(numbers)
            numbers = self._next_numbers()
        if not num_tokens(numbers) or self._tokens_in is None:
            return decode(numbers)
        return decode(numbers, self._tokens_in.take(self._tokens_in.receive(num_tokens(numbers)), "tokens"))

    def _next_numbers(self) -> list[int]:
        assert self._descriptors is not None, "rank 0 is told nothing"
        receiving = self._announced or self._descriptors.receive(self._length)
        numbers = self._descriptors.take(receiving, "descriptor")
        # Received early, the next one comes at once; after the last one of a round, nothing may be under way.
        self._announced = self._descriptors.receive(self._length) if numbers[0] else None
        return numbers

    def take_carry(self, tokens: int, name: str) -> Carry:
        """Waits for the carry of an item of so many tokens; nothing on the first stage."""
        return () if self._carry_in is None else self._carry_in.take(tokens, name)

    def send_carry(self, carry: Carry) -> None:
        """Hands it on to the next stage."""
        assert self._carry_out is not None, "the last stage hands nothing on"
        self._carry_out.send(carry, self._most)

    def answer(self, tokens: Sequence[int]) -> None:
        """From the last stage to rank 0; nothing from its other tensor ranks."""
        if self._answers_out is not None:
            self._answers_out.send([*tokens, *[0] * (self._rows - len(tokens))], self._most)

    def expect_answer(self) -> None:
        """Rank 0 has announced an item, and another rank will answer."""
        assert self._answers_in is not None, "only rank 0 is answered"
        self._expected.append(self._answers_in.receive(self._rows))

    def waiting_for_answer(self) -> AbstractContextManager[None]:
        """Encloses looking for the oldest answer, by `is_answer_there`, as a wait for the rank that sends it."""
        assert self._answers_in is not None, "only rank 0 is answered"
        return self._answers_in.waiting("answer")

    @property
    def is_answer_there(self) -> bool:
        """Whether the oldest answer seems to have arrived: a hint, for gloo says so to those only who wait."""
        return bool(self._expected[0].numbers[0] != UNSENT)

    def take_answer(self, wanted: int) -> list[int]:
        """Waits for the oldest answer, of so many tokens."""
        assert self._answers_in is not None, "only rank 0 is answered"
        return self._answers_in.take(self._expected.popleft(), "answer")[:wanted]

    def finish(self) -> None:
        """Waits until everything has been sent."""
        for out in (*self._onward, *self._tokens_out, self._carry_out, self._answers_out):
            if out is not None:
                out.finish()
