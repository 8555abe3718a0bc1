"""One rank's engine: passes items through the rank's stage, and on rank 0 keeps the pipeline full.

    rank 0      serve    request -> item -> announce | own stage | carry on   ... until no more may be under way,
                         then the oldest item's tokens come back -> next items
    all others  follow   announced -> announce on | carry in | own stage | carry on, or sample and answer

Items pass every stage in one order. Only rank 0 decides; the others know no requests. No rank waits for what it sends.
A round may follow another, on the same caches: a slot's former sequence leaves nothing behind.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from hybrid_runtime.comm.axis import Axis
from hybrid_runtime.comm.groups import Groups
from hybrid_runtime.deployment import Deployment
from hybrid_runtime.errors import HybridRuntimeError, PlanError, RunError
from hybrid_runtime.inference.kv_cache import Slots, make_caches
from hybrid_runtime.inference.round import Round
from hybrid_runtime.inference.sampling import sample
from hybrid_runtime.inference.wire import Wire
from hybrid_runtime.models.unit import Microbatch
from hybrid_runtime.pipeline.executor import SpanRecorder
from hybrid_runtime.pipeline.stage import Stage
from hybrid_runtime.plan import Plan
from hybrid_runtime.records import IDLE
from hybrid_runtime.schedule.actions import Action, Kind
from hybrid_runtime.serving.batcher import Batcher
from hybrid_runtime.serving.requests import Answer, Item, Listener, Row, Sampling, Source
from hybrid_runtime.telemetry.ledger import ByteLedger

Sampler = Callable[[Tensor, Sequence[Row], Sequence[Sampling], int, Axis], list[int]]

_KINDS: Final = {"prefill": Kind.P, "decode": Kind.D}
_LOOK_S: Final = 0.0002  # between two looks for an answer, while a request may come first
_UNKNOWN_S: Final = 0.001  # between two looks for a request whose time nobody knows


class Engine:
    """One rank's engine.

    Args:
        stage: the rank's only one.
        slots: of its caches, which the stage's units have made.
        wire: to the other ranks.
        vocab_size: V without padding.
        recorder: measures every item.
        sampler: makes tokens of logits, on all tensor ranks of the last stage.
    """

    def __init__(
        self,
        stage: Stage,
        slots: Slots,
        wire: Wire,
        groups: Groups,
        *,
        vocab_size: int,
        recorder: SpanRecorder,
        sampler: Sampler = sample,
    ) -> None:
        self._stage = stage
        self._slots = slots
        self.wire = wire
        self._groups = groups
        self._vocab_size = vocab_size
        self._recorder = recorder
        self.sampler = sampler
        self._no_tokens = torch.empty(1, 0, dtype=torch.int64, device=groups.device)
        self._names: dict[tuple[str, int], tuple[str, str]] = {}

    @torch.inference_mode()
    def serve(self, source: Source, batcher: Batcher, listener: Listener | None = None) -> list[Answer]:
        """On rank 0: answers all requests of a source, while the other ranks follow.

        Returns:
            The answers, in the order in which they ended.

        Raises:
            RunError: an item failed; the message names rank, stage, item and unit.
        """
        assert self._groups.place.rank == 0, "only rank 0 serves"
        now = Round(source, batcher, listener)
        under_way: deque[Item] = deque()
        while not now.is_over:
            item = now.next_item()
            if item is not None:
                self._send_off(item, now, under_way)
            elif under_way:
                self._take_back(now, under_way)
            elif not now.is_over:  # the last ones may have been refused
                self._idle(now)
        self.wire.announce(None)
        self.wire.finish()
        return now.answers

    @torch.inference_mode()
    def follow(self) -> None:
        """On all other ranks: does what rank 0 announces, until it says that nothing follows.

        Raises:
            RunError: an item failed; the message names rank, stage, item and unit.
        """
        while (item := self.wire.next_item()) is not None:
            self.wire.announce(item)
            tokens = self._pass(item)
            if tokens is not None:
                self.wire.answer(tokens)
        self.wire.announce(None)
        self.wire.finish()

    def _send_off(self, item: Item, now: Round, under_way: deque[Item]) -> None:
        self.wire.announce(item)
        if not self.wire.is_last:
            self.wire.expect_answer()
        tokens = self._pass(item)
        if tokens is None:
            under_way.append(item)
        else:
            now.back(item, tokens)

    def _take_back(self, now: Round, under_way: deque[Item]) -> None:
        """The oldest item's tokens; or what can be sent before they are there, of a request that comes first."""
        sooner = self._sooner(now) if now.until_next_s is not None else None
        if sooner is not None:
            self._send_off(sooner, now, under_way)
        else:
            item = under_way.popleft()
            now.back(item, self.wire.take_answer(item.num_wanted))

    def _sooner(self, now: Round) -> Item | None:
        """What can be sent before the oldest answer is there; None if it is there, or no request is expected any more.

        All of it is one wait: requests that come, of which nothing can be sent, are no progress of a stuck pipeline.
        """
        with self.wire.waiting_for_answer():
            while not self.wire.is_answer_there and (left_s := now.until_next_s) is not None:
                time.sleep(min(left_s, _LOOK_S))
                if left_s == 0 and (item := now.next_item()) is not None:
                    return item
        return None

    def _idle(self, now: Round) -> None:
        """Nobody has asked for anything."""
        clock = self._groups.clocks.current
        self._recorder.note(IDLE)
        mark = clock.begin_wait()
        left_s = now.until_next_s
        time.sleep(_UNKNOWN_S if left_s is None else min(left_s, self.wire.longest_silence_s))
        clock.end_wait(IDLE, mark)
        self.wire.give_sign()

    def _pass(self, item: Item) -> list[int] | None:
        """The item through the own stage, and on to the next; tokens from the last stage."""
        name, receive = self._names_of(item)
        self._recorder.note(name)
        try:
            return self._run(item, name, receive)
        except HybridRuntimeError as problem:
            raise RunError(str(problem), self._where(name)) from problem
        except Exception as problem:
            raise RunError(f"{type(problem).__name__}: {problem}", self._where(name)) from problem

    def _run(self, item: Item, name: str, receive: str) -> list[int] | None:
        wire, tokens = self.wire, sum(row.length for row in item.rows)
        carry = wire.take_carry(tokens, receive)
        with self._recorder.span(name):
            ids = torch.tensor([item.tokens], device=self._groups.device) if wire.is_first else self._no_tokens
            microbatch = Microbatch(ids, cached=self._slots.enter(item))
            carry = self._stage.forward(item.microbatch, carry, microbatch)
            if wire.is_last:
                return self._sample(item, carry[0][0])
        wire.send_carry(carry)
        return None

    def _sample(self, item: Item, logits_Rv: Tensor) -> list[int]:
        if not item.num_wanted:
            return []
        wanted = [index for index, row in enumerate(item.rows) if row.answer_index >= 0]
        rows, samplings = [item.rows[index] for index in wanted], [item.sampling[index] for index in wanted]
        return self.sampler(logits_Rv, rows, samplings, self._vocab_size, self._groups.tp)

    def _names_of(self, item: Item) -> tuple[str, str]:
        """Of the item on this stage, and of its carry's arrival."""
        key = (item.kind, item.microbatch)
        if key not in self._names:
            stage = self._stage.index
            action, receive = (Action(stage, kind, item.microbatch) for kind in (_KINDS[item.kind], Kind.RECV_F))
            self._names[key] = str(action), str(receive)
        return self._names[key]

    def _where(self, name: str) -> str:
        unit = self._stage.current_unit
        return f"{self._groups.place}, stage {self._stage.index}, {name}" + (f", unit {unit}" if unit else "")


def build_engine(
    deployment: Deployment,
    plan: Plan,
    units: Mapping[str, nn.Module],
    groups: Groups,
    recorder: SpanRecorder,
    ledger: ByteLedger,
) -> Engine:
    """The engine of this rank, with its caches; every rank calls it.

    Args:
        units: those that this rank has built, by name.

    Raises:
        PlanError: the plan has several stages on a rank, or the embedding's rows are spread.
        EnvironmentProblem: the caches do not fit into memory.
    """
    assert deployment.batch is not None
    assert deployment.shape is not None, "own units are refused with [load]"
    stages = plan.stages_of(groups.place.pp)
    if len(stages) != 1 or plan.embedding_pieces:
        raise PlanError(
            "a serving plan has one stage on each rank and the whole embedding on the first; plan without "
            "virtual_stages and embedding_rows"
        )
    batch = deployment.batch
    ledger.hold_caches(make_caches(units, batch.global_batch_size, batch.sequence_length))
    most_in_flight = batch.items_in_flight or deployment.num_microbatches
    stage = Stage(stages[0].index, [(name, units[name]) for name in stages[0].units], training=False)
    return Engine(
        stage,
        Slots(batch.global_batch_size, groups.device),
        Wire(groups, batch.microbatch_size, most_in_flight, deployment.measurement.timeout_s / 4, ledger),
        groups,
        vocab_size=deployment.shape.vocab_size,
        recorder=recorder,
    )
