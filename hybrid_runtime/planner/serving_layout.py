"""Layouts of a serving deployment, and how its model is cut for them: for all that a round asks of each unit.

A round reads every prompt once, in chunks, and generates token by token. What a unit takes for the one and for the
other differs: the head is nearly free in a prefill, which wants one token's logits of a whole prompt, and costs as much
as several layers in a decode. So the best cuts of the two differ; the plan cuts by their sum over a round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from hybrid_runtime.errors import PlanError
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.planner.analytic import granule_of, kind_of
from hybrid_runtime.planner.costs import unit_costs
from hybrid_runtime.planner.cut_linear import fractional_cut, whole_cut
from hybrid_runtime.planner.cuts import Stages
from hybrid_runtime.planner.serving_costs import ServingCosts, UnitTime
from hybrid_runtime.planner.serving_items import ItemSize, decode_size, prefill_size
from hybrid_runtime.planner.work import Line, Unit, Work
from hybrid_runtime.serving.load import Traffic
from hybrid_runtime.shapes import LlamaShape

PHASES = ("prefill", "decode")


@dataclass(frozen=True)
class ServingLayout:
    """One way to serve.

    Attributes:
        num_microbatches: sets of slots.
        chunk_tokens: most tokens of a prefill; None for whole prompts.
        items_in_flight: None for as many as there are microbatches.
        cuts: "fractional" (inside units too), "whole", or "given".
        stages: names of units and pieces.
    """

    mesh: Mesh
    microbatch_size: int
    num_microbatches: int
    chunk_tokens: int | None
    items_in_flight: int | None
    cuts: str
    stages: Stages

    def __str__(self) -> str:
        chunk = "whole prompts" if self.chunk_tokens is None else f"chunks of {self.chunk_tokens}"
        cuts = "" if self.mesh.pp_degree == 1 else f", {self.cuts} cuts"
        sets = "1 microbatch" if self.num_microbatches == 1 else f"{self.num_microbatches} microbatches"
        return f"tp {self.mesh.tp_degree} x pp {self.mesh.pp_degree}, {sets} of {self.microbatch_size}, {chunk}{cuts}"


@dataclass(frozen=True)
class RoundSizes:
    """The items that a round consists of, on average: what a layout is cut by before it is simulated.

    Attributes:
        prefill, decode: sizes of a typical item.
        num_prefills, num_decodes: how many of them.
        num_prompts: each wants logits of one token.
    """

    prefill: ItemSize
    decode: ItemSize
    num_prefills: Fraction
    num_decodes: Fraction
    num_prompts: int

    def phase_ns(self, phase: str, kind: str, unit: Callable[[str, ItemSize], UnitTime]) -> tuple[Fraction, Fraction]:
        """What a unit takes in a round for a phase: its fixed and its divisible part."""
        if phase == "decode":
            count, size = self.num_decodes, self.decode
        elif kind == "head":
            count, size = Fraction(self.num_prompts), self.prefill._replace(wanted=1)
        else:
            count, size = self.num_prefills, self.prefill
        time = unit(kind, size)
        return count * time.fixed_ns, count * time.divisible_ns


def round_sizes(traffic: Traffic, slots: int, microbatch_size: int, chunk_tokens: int | None) -> RoundSizes:
    """Of a load with these cache slots."""
    requests = traffic.requests
    count, num_microbatches = len(requests), max(1, slots // microbatch_size)
    prompt = max(1, traffic.prompt_tokens // count)
    chunk = min(prompt, chunk_tokens or prompt)
    at_once = min(slots, traffic.clients or slots, count)
    rows = max(1, min(microbatch_size, -(-at_once // num_microbatches)))
    generated = sum(request.max_new_tokens - 1 for request in requests)
    return RoundSizes(
        prefill=prefill_size(1, (prompt - chunk) // 2, chunk, 1),
        decode=decode_size(rows, prompt + generated // count // 2 + 1),
        num_prefills=Fraction(traffic.prompt_tokens, chunk),
        num_decodes=Fraction(generated, rows),
        num_prompts=count,
    )


def serving_line(
    shape: LlamaShape,
    tp_degree: int,
    sizes: RoundSizes,
    costs: ServingCosts,
    bytes_of: Callable[[str], int],
    *,
    phases: tuple[str, ...] = PHASES,
    granule: int | None = None,
) -> Line:
    """The model as a line to be cut.

    A unit's work is, as `forward`, what a round asks of it in these phases, and as `saved` what it holds on a rank.

    Args:
        bytes_of: kind of unit -> weights and cache of one tensor-parallel rank.
        granule: as `wanted` of `granule_of`.
    """

    def unit_time(kind: str, size: ItemSize) -> UnitTime:
        return costs.unit(kind, tp_degree, size)

    found: dict[str, tuple[Fraction, Fraction]] = {}
    for kind in ("embedding", "attn", "mlp", "head"):
        parts = [sizes.phase_ns(phase, kind, unit_time) for phase in phases]
        found[kind] = (sum((one for one, _ in parts), Fraction()), sum((other for _, other in parts), Fraction()))
    units = []
    for cost in unit_costs(shape, microbatch_size=1, sequence_length=1, workload="forward"):
        kind = kind_of(cost.name)
        granule_here = granule_of(cost, tp_degree, granule)
        units.append(Unit(cost, granule_here, kind == "mlp", _piece(cost.parts, bytes_of(kind), *found[kind])))
    return Line(tuple(units), carry_bytes=1)


def _piece(parts: int, num_bytes: int, fixed_ns: Fraction, divisible_ns: Fraction) -> Callable[[int, int], Work]:
    def piece(start: int, stop: int) -> Work:
        time_ns = int(fixed_ns + divisible_ns * (stop - start) / parts)
        return Work(forward=time_ns, saved=num_bytes * (stop - start) // parts)

    return piece


def cut(line: Line, pp_degree: int, cuts: str, memory_bytes: int | None = None) -> Stages:
    """Stages as equal as they can be; of cuts between units, those that fit into the memory.

    Raises:
        PlanError: there are fewer units than stages, or none fits.
    """
    limit = memory_bytes
    if pp_degree > len(line.units):
        raise PlanError(f"{pp_degree} stages are too many for {len(line.units)} units")
    fits = None if limit is None else lambda stage, work: work.saved <= limit
    boundaries = (
        fractional_cut([line] * pp_degree, _forward)
        if cuts == "fractional"
        else whole_cut([line] * pp_degree, _forward, fits)
    )
    if boundaries is None:
        raise PlanError(f"no {cuts} cut into {pp_degree} stages leaves work on each of them and fits")
    return tuple(line.names(start, stop) for start, stop in pairwise(boundaries))


def _forward(work: Work) -> int:
    return work.forward
