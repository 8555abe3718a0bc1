"""Stages of a serving layout: what an item takes each of them, and the bytes that each holds."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

from hybrid_runtime.mesh import Mesh
from hybrid_runtime.pieces import read_piece, unit_of
from hybrid_runtime.planner.analytic import kind_of
from hybrid_runtime.planner.costs import unit_costs
from hybrid_runtime.planner.cuts import Stages
from hybrid_runtime.planner.serving_costs import ServingCosts, UnitTime, norm_weights, rank_weights, unit_flops
from hybrid_runtime.planner.serving_items import ItemSize, size_of
from hybrid_runtime.planner.state_bytes import ELEMENT_BYTES
from hybrid_runtime.planner.tp_calls import CallTime
from hybrid_runtime.serving.kv_bytes import kv_cache_bytes
from hybrid_runtime.serving.requests import Item
from hybrid_runtime.serving.simulate import ItemTimes, StageTime
from hybrid_runtime.shapes import LlamaShape

_LOGIT_BYTES = 8  # of a logit that is drawn from: float64
_BEST_BYTES = 16  # of a rank's most likely token and its logit
_NO_CALL = CallTime(0, 0)


class Share(NamedTuple):
    """What a stage has of a kind of unit.

    Attributes:
        units: pieces, a whole unit being one.
        part: of whole units, all its pieces together.
        firsts: pieces that begin their unit, which hold its norm.
        lasts: pieces that end their unit, after which tensor-parallel ranks sum.
    """

    units: int
    part: Fraction
    firsts: int
    lasts: int


class _Edge(NamedTuple):
    """Between a stage and the next one.

    Attributes:
        tensors: of a carry that pass it: behind a cut inside a unit the sum so far and the normed input.
    """

    tensors: int
    same_host: bool


@dataclass(frozen=True)
class ServedStages:
    """`PipelineCosts` of a cut model (serving/simulate.py).

    Attributes:
        stages: names of units and pieces.
        crosses: for every stage but the last, whether its messages leave a node.
        greedy: the most likely tokens are taken; else tensor-parallel ranks gather logits to draw from.
        seen: sizes of the items that were asked for.
    """

    shape: LlamaShape
    dtype: str
    mesh: Mesh
    stages: Stages
    crosses: Sequence[bool]
    costs: ServingCosts
    greedy: bool
    _known: dict[ItemSize, ItemTimes] = field(default_factory=dict, compare=False, repr=False)
    _usual: dict[tuple[object, ...], ItemTimes] = field(default_factory=dict, compare=False, repr=False)
    seen: Counter[ItemSize] = field(default_factory=Counter, compare=False, repr=False)

    @property
    def num_stages(self) -> int:
        return len(self.stages)

    @cached_property
    def shares(self) -> tuple[Mapping[str, Share], ...]:
        """Per stage and kind of unit."""
        parts = _parts_of(self.shape)
        return tuple(_shares(names, parts) for names in self.stages)

    @cached_property
    def _edges(self) -> tuple[_Edge, ...]:
        parts = _parts_of(self.shape)
        return tuple(
            _Edge(2 if _is_cut_inside(names[-1], parts) else 1, not crosses)
            for names, crosses in zip(self.stages, self.crosses)
        )

    def times_of(self, item: Item) -> ItemTimes:
        size = size_of(item)
        self.seen[size] += 1
        times = self._known.get(size)
        if times is None:
            times = self._known[size] = self._times(size)
        if not self.costs.paces:
            return times
        stages = (took.paced(next(pace)) for took, pace in zip(times.stages, self._paces, strict=True))
        return times._replace(stages=tuple(stages))

    @cached_property
    def _paces(self) -> tuple[Iterator[int], ...]:
        """Of every stage, in turn: cores are fast and slow by themselves, so one stage waits for the other."""
        return tuple(_paces(self.costs.paces, stage) for stage in range(self.num_stages))

    def _times(self, size: ItemSize) -> ItemTimes:
        """Attention alone grows with what an item looks back at; all else is the same for items of as many tokens."""
        tp, costs = self.mesh.tp_degree, self.costs
        key = (size.kind, size.rows, size.tokens, size.wanted)
        usual = self._usual.get(key)
        if usual is None:
            usual = self._usual[key] = self._without_attention(size)
        fixed_ns, divisible_ns = costs.unit("attn", tp, size)
        stages = []
        for took, shares in zip(usual.stages, self.shares, strict=True):
            share = shares.get("attn")
            if share is not None:
                here_ns = share.units * fixed_ns + divisible_ns * share.part.numerator // share.part.denominator
                took = took._replace(compute_ns=took.compute_ns + here_ns)
            waits_ns = costs.waits_ns(tp, size, took.compute_ns) if tp > 1 else None
            if waits_ns is not None:
                # waits are measured greedy: logits that ranks gather to draw from come on top
                drawn_ns = 0 if self.greedy or "head" not in shares else sum(self._told(size))
                beside_ns = costs.added(self.mesh, size.rows).late_ns + drawn_ns
                took = took._replace(tensor_parallel_ns=waits_ns + beside_ns)
            stages.append(took)
        return usual._replace(stages=tuple(stages))

    def _without_attention(self, size: ItemSize) -> ItemTimes:
        """With the calls of attention."""
        tp, costs = self.mesh.tp_degree, self.costs
        units = {kind: costs.unit(kind, tp, size) for kind in ("embedding", "mlp", "head")} | {"attn": UnitTime(0, 0)}
        carry_bytes = size.tokens * self.shape.hidden_size * ELEMENT_BYTES[self.dtype]
        summed = costs.all_reduce(tp, carry_bytes) if tp > 1 else _NO_CALL
        told, added = self._told(size), costs.added(self.mesh, size.rows)
        stages = []
        for stage, shares in enumerate(self.shares):
            compute_ns, calls_ns = added.stage_ns, added.late_ns
            for kind, share in shares.items():
                part, unit = share.part, units[kind]
                compute_ns += share.units * unit.fixed_ns + unit.divisible_ns * part.numerator // part.denominator
                call, calls = (told, 1) if kind == "head" else (summed, share.lasts)
                calls_ns += calls * sum(call)
            around = (added.before_ns, added.after_ns, 0) if stage == 0 else (0, added.next_ns, added.fetch_ns)
            stages.append(StageTime(compute_ns, calls_ns, *around))
        hops = (costs.message_ns(one.tensors * carry_bytes, same_host=one.same_host) for one in self._edges)
        back_ns = costs.back_ns(size.wanted, same_host=not any(self.crosses)) if self._edges else 0
        return ItemTimes(tuple(stages), tuple(hops), back_ns)

    def _told(self, size: ItemSize) -> CallTime:
        """What tensor-parallel ranks tell each other to choose tokens."""
        tp = self.mesh.tp_degree
        if tp == 1 or not size.wanted:
            return _NO_CALL
        if self.greedy:
            return self.costs.all_reduce(tp, size.wanted * _BEST_BYTES * tp)
        return self.costs.all_gather(tp, size.wanted * _LOGIT_BYTES * self.shape.vocab_size)

    def buffer_bytes(self, stage: int, tokens: int) -> int:
        """Of messages of an item of so many tokens: one that is received, one that is on its way out."""
        tensors = sum(one.tensors for one in self._edges[max(0, stage - 1) : stage + 1])
        return tensors * tokens * self.shape.hidden_size * ELEMENT_BYTES[self.dtype]

    def flops(self, stage: int) -> Fraction:
        """Of all items that were asked for, all tensor-parallel ranks together."""
        found = Fraction(0)
        for size, count in self.seen.items():
            for kind, share in self.shares[stage].items():
                found += count * share.part * unit_flops(self.shape, kind, size)
        return found

    def parameter_bytes(self, stage: int) -> int:
        """Of one tensor-parallel rank; a tied head on another rank than the embedding has a copy."""
        tied = self.shape.tie_embeddings and stage == 0  # there the head has no weight of its own
        found = Fraction(0)
        for kind, share in self.shares[stage].items():
            if not (kind == "head" and tied):
                found += share.part * rank_weights(self.shape, kind, self.mesh.tp_degree)
            found += share.firsts * norm_weights(self.shape, kind)
        return int(found) * ELEMENT_BYTES[self.dtype]

    def kv_bytes_per_token(self, stage: int) -> int:
        """Keys and values of one token of one sequence, on one tensor-parallel rank."""
        return kv_cache_bytes(
            self.stages[stage],
            self.shape,
            num_slots=1,
            capacity=1,
            tp_degree=self.mesh.tp_degree,
            element_bytes=ELEMENT_BYTES[self.dtype],
        )


def _paces(equally_likely: Sequence[int], stage: int) -> Iterator[int]:
    """All of them equally often, in an order of the stage's own."""
    drawn, block = random.Random(f"pace {stage}"), list(equally_likely)
    while True:
        drawn.shuffle(block)
        yield from block


def _parts_of(shape: LlamaShape) -> dict[str, int]:
    units = unit_costs(shape, microbatch_size=1, sequence_length=1, workload="forward")
    return {kind_of(cost.name): cost.parts for cost in units}


def _shares(names: Sequence[str], parts: Mapping[str, int]) -> dict[str, Share]:
    found: dict[str, Share] = {}
    for name in names:
        kind, piece = kind_of(unit_of(name)), read_piece(name)
        part = Fraction(1) if piece is None else Fraction(piece.parts, parts[kind])
        begins, ends = piece is None or piece.start == 0, piece is None or piece.stop == parts[kind]
        before = found.get(kind, Share(0, Fraction(0), 0, 0))
        found[kind] = Share(before.units + 1, before.part + part, before.firsts + begins, before.lasts + ends)
    return found


def _is_cut_inside(last: str, parts: Mapping[str, int]) -> bool:
    piece = read_piece(last)
    return piece is not None and piece.stop < parts[kind_of(piece.unit)]
