"""Stages of a serving layout: what an item takes each of them, and the bytes that each holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

from hybrid_runtime.mesh import Mesh
from hybrid_runtime.pieces import read_piece, unit_of
from hybrid_runtime.planner.analytic import kind_of
from hybrid_runtime.planner.costs import unit_costs
from hybrid_runtime.planner.cuts import Stages
from hybrid_runtime.planner.serving_costs import ServingCosts, kv_heads, norm_weights, rank_weights, unit_flops
from hybrid_runtime.planner.serving_items import ItemSize, size_of
from hybrid_runtime.planner.state_bytes import ELEMENT_BYTES
from hybrid_runtime.planner.tp_calls import CallTime
from hybrid_runtime.serving.requests import Item
from hybrid_runtime.serving.simulate import StageTime
from hybrid_runtime.shapes import LlamaShape

_LOGIT_BYTES = 4  # logits are float32
_TOKEN_BYTES = 8  # of an id that returns to rank 0


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


@dataclass(frozen=True)
class ServedStages:
    """`PipelineCosts` of a cut model (serving/simulate.py); every item is asked for once, which counts FLOPs.

    Attributes:
        stages: names of units and pieces.
        crosses: for every stage but the last, whether its messages leave a node.
    """

    shape: LlamaShape
    dtype: str
    mesh: Mesh
    stages: Stages
    crosses: Sequence[bool]
    costs: ServingCosts
    _known: dict[tuple[int, ItemSize], StageTime] = field(default_factory=dict, compare=False, repr=False)
    seen: Counter[ItemSize] = field(default_factory=Counter, compare=False, repr=False)

    @property
    def num_stages(self) -> int:
        return len(self.stages)

    @cached_property
    def shares(self) -> tuple[dict[str, Share], ...]:
        """Per stage and kind of unit."""
        return tuple(_shares(names, self._parts) for names in self.stages)

    @cached_property
    def _parts(self) -> dict[str, int]:
        units = unit_costs(self.shape, microbatch_size=1, sequence_length=1, workload="forward")
        return {kind_of(cost.name): cost.parts for cost in units}

    def stage(self, stage: int, item: Item) -> StageTime:
        size = size_of(item)
        if stage == 0:
            self.seen[size] += 1
        return self.of_size(stage, size)

    def of_size(self, stage: int, size: ItemSize) -> StageTime:
        """What an item of this size takes a stage."""
        key = (stage, size)
        if key not in self._known:
            self._known[key] = self._of_size(stage, size)
        return self._known[key]

    def _of_size(self, stage: int, size: ItemSize) -> StageTime:
        compute_ns = waits_ns = 0
        for kind, share in self.shares[stage].items():
            time = self.costs.unit(kind, self.mesh.tp_degree, size)
            compute_ns += share.units * time.fixed_ns + int(share.part * time.divisible_ns)
            for call in self._calls(kind, share, size):
                compute_ns, waits_ns = compute_ns + call.compute_ns, waits_ns + call.wait_ns
        return StageTime(
            compute_ns, waits_ns, self._messages_ns(stage, size), self.costs.item_ns(stage, self.num_stages)
        )

    def _calls(self, kind: str, share: Share, size: ItemSize) -> Iterator[CallTime]:
        """Collectives of a stage's units of a kind."""
        tp = self.mesh.tp_degree
        if tp == 1:
            return
        if kind == "head":
            if size.wanted:
                yield self.costs.all_gather(tp, size.wanted * self.shape.vocab_size * _LOGIT_BYTES)
            return
        one = self.costs.all_reduce(tp, self._carry_bytes(size))
        yield CallTime(share.lasts * one.compute_ns, share.lasts * one.wait_ns)

    def _messages_ns(self, stage: int, size: ItemSize) -> int:
        """What receiving and sending takes the rank itself."""
        edges = [edge for edge in (stage - 1, stage) if 0 <= edge < self.num_stages - 1]
        return sum(
            self.costs.post_ns(self._message_bytes(edge, size), same_host=not self.crosses[edge]) for edge in edges
        )

    def hop_ns(self, stage: int, item: Item) -> int:
        return self._message_ns(self._message_bytes(stage, size_of(item)), crosses=self.crosses[stage])

    def return_ns(self, item: Item) -> int:
        """The ids go straight from the last stage to rank 0; nothing to send on one stage."""
        if self.num_stages == 1:
            return 0
        return self._message_ns(item.num_wanted * _TOKEN_BYTES, crosses=any(self.crosses))

    def _message_ns(self, num_bytes: int, *, crosses: bool) -> int:
        hop = self.costs.hop(same_host=not crosses)
        return int(hop.latency + hop.transfer(num_bytes))

    def _message_bytes(self, edge: int, size: ItemSize) -> int:
        """Behind a cut inside a unit travel the sum so far and the normed input."""
        tensors = 2 if _cuts_inside(self.stages, edge, self._parts) else 1
        return tensors * self._carry_bytes(size)

    def _carry_bytes(self, size: ItemSize) -> int:
        return size.tokens * self.shape.hidden_size * ELEMENT_BYTES[self.dtype]

    def buffer_bytes(self, stage: int, tokens: int) -> int:
        """Of messages of an item of so many tokens: one that is received, one that is on its way out."""
        edges = [edge for edge in (stage - 1, stage) if 0 <= edge < self.num_stages - 1]
        size = ItemSize("prefill", 1, tokens, 0, 0, 0)
        return sum(self._message_bytes(edge, size) for edge in edges)

    def flops(self, stage: int) -> int:
        """Of all items that were asked for, all tensor-parallel ranks together."""
        found = Fraction(0)
        for size, count in self.seen.items():
            for kind, share in self.shares[stage].items():
                found += count * share.part * unit_flops(self.shape, kind, size)
        return int(found)

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
        share = self.shares[stage].get("attn")
        if share is None:
            return 0
        heads = share.part * kv_heads(self.shape, self.mesh.tp_degree)
        return int(2 * heads * self.shape.head_dim * ELEMENT_BYTES[self.dtype])


def _shares(names: Sequence[str], parts: dict[str, int]) -> dict[str, Share]:
    found: dict[str, Share] = {}
    for name in names:
        kind, piece = kind_of(unit_of(name)), read_piece(name)
        part = Fraction(1) if piece is None else Fraction(piece.parts, parts[kind])
        ends = piece is None or piece.stop == parts[kind]
        begins = piece is None or piece.start == 0
        before = found.get(kind, Share(0, Fraction(0), 0, 0))
        found[kind] = Share(before.units + 1, before.part + part, before.firsts + begins, before.lasts + ends)
    return found


def _cuts_inside(stages: Stages, edge: int, parts: dict[str, int]) -> bool:
    last = read_piece(stages[edge][-1])
    return last is not None and last.stop < parts[kind_of(last.unit)]
