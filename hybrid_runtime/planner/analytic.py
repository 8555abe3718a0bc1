"""Costs without a measurement: FLOPs divided by a declared rate, bytes from the sizes of tensors. A labelled fallback.

Elements that a unit of the Llama family keeps per token (h hidden, q and kv widths of the heads, f the MLP's, v
vocabulary), all until W, for a linear keeps what it read and what came back:

    attn   input h, normed h, heads q + 2kv, result q      mlp    input h, normed h, gate, up and product 3f
    head   input h, normed h, logits v                     a later piece of a unit keeps the normed input only

Forgotten and computed again (models/residual.py) is of all these with "full" everything but the input (or the normed
input of a later piece), with "selective" the normed input and the result, heads and product but for one copy each: the
column's output, h heads q + 2kv or 2f, stays.

With tp_degree T everything but input and normed is divided by T; with sequence parallelism the input is, too. The terms
are those of Korthikanti et al. 2022 (arXiv 2205.05198, section 4), adapted to grouped heads and gated MLPs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache
from typing import Literal, NamedTuple

from hybrid_runtime.deployment_fields import RecomputeKind
from hybrid_runtime.plan import UnitCost
from hybrid_runtime.planner.costs import unit_costs
from hybrid_runtime.planner.state_bytes import ELEMENT_BYTES, StateBytes, state_bytes
from hybrid_runtime.planner.step_model import Collective, Overlap
from hybrid_runtime.planner.work import Forgets, Forgotten, Line, Longer, Unit, Work
from hybrid_runtime.predicted import LABELS, Label, TimeInterval
from hybrid_runtime.schedule.step_costs import Hop
from hybrid_runtime.shapes import LlamaShape

# Planners that measured nothing erred by up to 57 %, and of 43 runs 42 took longer than foretold (the published tables
# of Sailor, SOSP'25, and SimuMax): a step may take 10 % less or 60 % more than declared rates say.
LOW, HIGH = Fraction(9, 10), Fraction(16, 10)


class Rates(NamedTuple):
    """What somebody declared of the machine.

    Attributes:
        flops_per_s: of one device.
        link_bytes_per_s, network_bytes_per_s: one direction, inside a node and between nodes.
        latency_ns: of a message, or of one step of a collective.
    """

    flops_per_s: int
    link_bytes_per_s: int
    network_bytes_per_s: int
    latency_ns: int

    def hop(self, *, same_host: bool) -> Hop:
        return Hop(self.latency_ns, Fraction(self._bandwidth(same_host), 10**9))

    def collective_ns(self, kind: Collective, ranks: int, num_bytes: int, *, same_host: bool) -> int:
        """A ring: 2 (n - 1) steps for an all-reduce, n - 1 for the others, each of 1/n of the bytes."""
        steps = (2 if kind == "all_reduce" else 1) * (ranks - 1)
        return steps * (self.latency_ns + num_bytes * 10**9 // (ranks * self._bandwidth(same_host)))

    def _bandwidth(self, same_host: bool) -> int:
        return self.link_bytes_per_s if same_host else self.network_bytes_per_s


class Kept(NamedTuple):
    """Bytes that a unit keeps for its backward.

    Attributes:
        first, later: by its first piece, and by every further one, beside their parts; on every tensor-parallel rank.
        divided: by all its parts, over all tensor-parallel ranks together.
        until_w: the part of `divided` that stays until W; the rest is freed by I.
        until_i: of `first`, what I frees: the input, which only the norm reads.
        gradient: of what the unit or piece returns, which I leaves for W; `shards` tensor ranks share the last piece's.
    """

    first: int
    later: int
    divided: int
    until_w: Fraction = Fraction(1)
    until_i: int = 0
    gradient: int = 0
    shards: int = 1


UnitModel = tuple[UnitCost, Kept]


def granule_of(cost: UnitCost, tp_degree: int, wanted: int | None = None) -> int:
    """At which multiples of parts a unit may be cut; 0 where it must stay whole.

    Args:
        wanted: parts of an MLP's granule on every tensor-parallel rank; by default up to 64, which kernels like.
    """
    kind = kind_of(cost.name)
    if kind not in ("mlp", "attn") or cost.parts <= tp_degree or cost.parts % tp_degree:
        return 0
    if kind == "attn":
        return tp_degree
    return tp_degree * (wanted or max(1, min(64, cost.parts // (64 * tp_degree))))


def kind_of(unit: str) -> str:
    """What equal units share: "12.mlp" -> "mlp"."""
    return unit.rpartition(".")[2]


def analytic_line(
    units: Sequence[UnitModel],
    tp_degree: int,
    carry_bytes: int,
    *,
    time_of: Callable[[int], int],
    tp_time: int = 0,
    granule: int | None = None,
    shards: int = 1,
) -> Line:
    """A line by formula.

    Args:
        time_of: FLOPs of a rank -> its time.
        tp_time: of one collective over the carry.
        granule: as `wanted` of `granule_of`.
        shards: of the carry.
    """

    def unit(cost: UnitCost, kept: Kept) -> Unit:
        kind = kind_of(cost.name)
        return Unit(
            cost, granule_of(cost, tp_degree, granule), kind == "mlp", _piece(cost, kept, tp_degree, time_of, tp_time)
        )

    return Line(tuple(unit(cost, kept) for cost, kept in units), carry_bytes, shards)


def _piece(
    cost: UnitCost, kept: Kept, tp_degree: int, time_of: Callable[[int], int], tp_time: int
) -> Callable[[int, int], Work]:
    """What parts of a unit cost; pieces that cover it cost together what it does, and keep the normed input each."""
    shared = (cost.parameters - cost.fixed_parameters) // tp_degree
    has_input = kind_of(cost.name) != "embedding"

    @cache
    def piece(start: int, stop: int) -> Work:
        def between(total: int) -> int:
            return total * stop // cost.parts - total * start // cost.parts

        flops = [between(total) for total in (cost.forward_flops, cost.input_grad_flops, cost.weight_grad_flops)]
        forward, input_grad, weight_grad = (time_of(one // tp_degree) for one in flops)
        divided = between(kept.divided // tp_degree)
        fixed = kept.first if start == 0 else kept.later
        gradient = kept.gradient // (kept.shards if stop == cost.parts else 1)
        return Work(
            forward=forward,
            backward=input_grad + weight_grad,
            input_grad=input_grad,
            weight_grad=weight_grad,
            tp_forward=tp_time if stop == cost.parts and cost.name != "head" else 0,
            tp_backward=tp_time if start == 0 and has_input and weight_grad else 0,
            tp_input_grad=tp_time if start == 0 and has_input and weight_grad else 0,
            saved=fixed + divided,
            until_w=fixed - (kept.until_i if start == 0 else 0) + gradient + int(divided * kept.until_w),
            parameters=between(shared) + (cost.fixed_parameters if start == 0 else 0),
            flops=sum(flops),
        )

    return piece


def llama_kept(shape: LlamaShape, cost: UnitCost, tokens: int, element_bytes: int, divisor: int) -> Kept:
    """What this runtime keeps of a unit; `divisor` is tp_degree with sequence parallelism, else 1."""
    h, bytes_per_row = shape.hidden_size, tokens * element_bytes
    once = bytes_per_row * h // divisor + 4 * tokens // divisor  # the input and the norm's scale, float32
    later = bytes_per_row * h
    first = once + later // divisor
    heads = bytes_per_row * (2 * shape.q_size + 2 * shape.kv_size) + 4 * tokens * shape.num_heads  # softmax's sums too
    match kind_of(cost.name):
        case "attn":
            return Kept(first, later, heads, until_i=once, gradient=later, shards=divisor)
        case "mlp":
            parts = bytes_per_row * 3 * shape.ffn_size
            return Kept(first, later, parts, until_i=once, gradient=later, shards=divisor)
        case "head":
            return Kept(first, later, tokens * shape.vocab_size * max(4, element_bytes), until_i=once)
    return Kept(0, 0, 8 * tokens, until_w=Fraction(0))


def llama_forgets(
    shape: LlamaShape,
    cost: UnitCost,
    tokens: int,
    element_bytes: int,
    tp_degree: int,
    *,
    divisor: int,
    gather_ns: int = 0,
) -> Forgets | None:
    """What recomputation makes of a unit; `divisor` and tokens as for `llama_kept`.

    Args:
        gather_ns: of the whole carry over the tensor-parallel ranks, with sequence parallelism.
    """
    name, row = kind_of(cost.name), tokens * element_bytes
    if name not in ("attn", "mlp") or not cost.full_recompute_flops:
        return None
    kept = llama_kept(shape, cost, tokens, element_bytes, divisor)
    columns = row * (shape.q_size + 2 * shape.kv_size if name == "attn" else 2 * shape.ffn_size)
    again = {"selective": cost.selective_recompute_flops, "full": cost.full_recompute_flops}

    def forgets(kind: RecomputeKind, start: int, stop: int) -> Forgotten:
        def between(total: int) -> int:
            return total // tp_degree * stop // cost.parts - total // tp_degree * start // cost.parts

        first = kept.first - row * shape.hidden_size // divisor if start == 0 else 0
        if kind == "full":
            forgotten = come_back = first + between(kept.divided)
        else:  # attention's heads come back, turned, beside the column's output; the normed input only after them
            forgotten = first + between(kept.divided - columns)
            come_back = max(first, between(kept.divided if name == "attn" else kept.divided - columns))
        share = Fraction(again[kind], cost.forward_flops)
        longer = Longer(backward=share, input_grad=share)
        return Forgotten(forgotten, come_back, longer, longer, gather_ns if kind == "full" and start == 0 else 0)

    return forgets


@dataclass(frozen=True)
class AnalyticCosts:
    """A `StepModel` of a Llama-family model by formula.

    Attributes:
        dtype: "float32" or "bfloat16".
        workload: "train" or "forward".
        granule: as `wanted` of `granule_of`.
        master_weights: bfloat16 parameters are updated in float32.
    """

    shape: LlamaShape
    sequence_length: int
    dtype: str
    workload: str
    sequence_parallel: bool
    rates: Rates
    granule: int | None = None
    master_weights: bool = True
    _lines: dict[tuple[int, int], Line] = field(default_factory=dict, compare=False, repr=False)

    action_ns = 0
    step_ns = 0
    overlap = Overlap()

    @property
    def source(self) -> Literal["analytic", "calibration", "records"]:
        return "analytic"

    @property
    def fingerprint(self) -> Mapping[str, str]:
        return {}

    @property
    def labels(self) -> Mapping[str, Label]:
        return LABELS["analytic"]

    @property
    def notes(self) -> tuple[str, ...]:
        r = self.rates
        return (
            f"analytic: declared are {r.flops_per_s / 1e12:g} TFLOP/s per device, {r.link_bytes_per_s / 1e9:g} GB/s "
            f"inside a node, {r.network_bytes_per_s / 1e9:g} GB/s between nodes and {r.latency_ns / 1e3:g} us latency; "
            "the optimizer and the executor's own time are not in the step",
        )

    @property
    def state(self) -> StateBytes:
        return state_bytes(self.dtype, self.workload, master_weights=self.master_weights)

    def line(self, tp_degree: int, microbatch_size: int) -> Line:
        if (tp_degree, microbatch_size) not in self._lines:
            self._lines[tp_degree, microbatch_size] = self._line(tp_degree, microbatch_size)
        return self._lines[tp_degree, microbatch_size]

    def _line(self, tp_degree: int, microbatch_size: int) -> Line:
        tokens = microbatch_size * self.sequence_length
        divisor = tp_degree if self.sequence_parallel else 1
        element_bytes = ELEMENT_BYTES[self.dtype]
        costs = unit_costs(
            self.shape,
            microbatch_size=microbatch_size,
            sequence_length=self.sequence_length,
            workload=self.workload,
        )
        keep = self.workload == "train"
        units = [
            (cost, llama_kept(self.shape, cost, tokens, element_bytes, divisor) if keep else Kept(0, 0, 0))
            for cost in costs
        ]
        whole_carry = tokens * self.shape.hidden_size * element_bytes
        gather_ns = self.gather_ns(tp_degree, whole_carry)
        line = analytic_line(
            units,
            tp_degree,
            whole_carry // divisor,
            time_of=lambda flops: flops * 10**9 // self.rates.flops_per_s,
            tp_time=self.tp_time(tp_degree, whole_carry),
            granule=self.granule,
            shards=divisor,
        )
        forgets = [
            llama_forgets(self.shape, cost, tokens, element_bytes, tp_degree, divisor=divisor, gather_ns=gather_ns)
            for cost in costs
        ]
        return replace(line, units=tuple(replace(unit, forgets=one) for unit, one in zip(line.units, forgets)))

    def gather_ns(self, tp_degree: int, num_bytes: int) -> int:
        """The gather of a column's input, which is done again where the column is."""
        if tp_degree == 1 or not self.sequence_parallel:
            return 0
        return self.collective_ns("all_gather", tp_degree, num_bytes, same_host=True)

    def tp_time(self, tp_degree: int, num_bytes: int) -> int:
        """One all-reduce, or the reduce-scatter and all-gather that replace it."""
        if tp_degree == 1:
            return 0
        kinds: tuple[Collective, ...] = ("reduce_scatter", "all_gather") if self.sequence_parallel else ("all_reduce",)
        return sum(self.collective_ns(kind, tp_degree, num_bytes, same_host=True) for kind in kinds)

    def collective_ns(self, kind: Collective, ranks: int, num_bytes: int, *, same_host: bool) -> int:
        return self.rates.collective_ns(kind, ranks, num_bytes, same_host=same_host)

    def hop(self, *, same_host: bool) -> Hop:
        return self.rates.hop(same_host=same_host)

    def post_ns(self, num_bytes: int, *, same_host: bool) -> int:
        return 0

    def optimizer_ns(self, parameters: int) -> int:
        return 0

    def interval(self, p50_ns: int) -> TimeInterval:
        return TimeInterval(p10_ns=int(p50_ns * LOW), p50_ns=p50_ns, p90_ns=int(p50_ns * HIGH))
