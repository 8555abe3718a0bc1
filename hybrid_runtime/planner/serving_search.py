"""The search for a serving plan: every mesh, microbatch size, chunk and cut, each simulated with the deployment's load.

    latency       the lowest median of the latency that [load] names, of equals the most tokens per second
    throughput    the most tokens per second, of equals the lowest latency
    either        among those that fit the memory and keep the latencies that [targets] limits

Nothing here looks at a clock: equal arguments give equal plans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from hybrid_runtime.errors import PlanError
from hybrid_runtime.mesh import Mesh, divisors
from hybrid_runtime.planner.candidates import Impossible, Space, meshes
from hybrid_runtime.planner.costs import unit_costs
from hybrid_runtime.planner.cover import checked_stages
from hybrid_runtime.planner.cuts import Stages
from hybrid_runtime.planner.layout import MEMORY_SAFETY
from hybrid_runtime.planner.request import space_of
from hybrid_runtime.planner.serving_costs import norm_weights, rank_weights
from hybrid_runtime.planner.serving_evaluate import Asked, EvaluatedServing, evaluate_serving
from hybrid_runtime.planner.serving_layout import PHASES, ServingLayout, cut, round_sizes, serving_line
from hybrid_runtime.planner.state_bytes import ELEMENT_BYTES
from hybrid_runtime.planner.work import Line
from hybrid_runtime.serving.kv_bytes import kv_heads

SMALLEST_CHUNK = 16  # tokens; less is decode's size and costs as much


@dataclass(frozen=True)
class Dropped:
    """A layout that cannot serve.

    Attributes:
        mesh: in words; layouts of one mesh are told together.
        lacking_bytes: above the memory limit.
    """

    mesh: str
    what: str
    why: str
    lacking_bytes: int = 0


@dataclass
class FoundServing:
    """What a search came to: layouts that fit, the chosen one first, and those that do not."""

    evaluated: list[EvaluatedServing] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)


def search_serving(asked: Asked, progress: Callable[[str, float], None] | None = None) -> FoundServing:
    """Simulates all layouts.

    Raises:
        PlanError: none is possible, none fits, or none keeps the limits: which, by how much, and what would help.
    """
    found = FoundServing()
    possible = list(_layouts(asked, found))
    for number, layout in enumerate(possible):
        if progress is not None:
            progress("simulating the load", number / len(possible))
        try:
            one = evaluate_serving(asked, layout)
        except PlanError as problem:  # its costs are not known
            found.dropped.append(Dropped(_words(layout.mesh), str(layout), str(problem)))
            continue
        lacking = one.peak_bytes - (asked.setting.memory_bytes or one.peak_bytes)
        if lacking > 0:
            found.dropped.append(_too_large(one, lacking))
        else:
            found.evaluated.append(one)
    if not found.evaluated:
        raise PlanError(_infeasible(found, asked))
    found.evaluated.sort(key=_order(asked))
    if broken := list(found.evaluated[0].broken_limits()):
        raise PlanError(
            f"{asked.setting.name}: no layout of {asked.setting.num_devices} devices keeps the limits of [targets]: "
            f"the nearest ({found.evaluated[0].layout}) has {'; '.join(broken)}; allow so much, ask for less at once "
            "([load]), or plan for more devices"
        )
    return found


def _order(asked: Asked) -> Callable[[EvaluatedServing], tuple[object, ...]]:
    """The best first."""

    def key(one: EvaluatedServing) -> tuple[object, ...]:
        latency, rate = one.latency_ns, -one.tokens_per_s
        wanted = (latency, rate) if asked.deployment.search.objective == "latency" else (rate, latency)
        return _excess(one), *wanted, one.peak_bytes, str(one.layout)

    return key


def _excess(one: EvaluatedServing) -> int:
    """Nanoseconds above limits, all together."""
    above = 0
    for kind, name, limit_ns in one.asked.limits:
        times = one.latency(kind)
        above += 0 if times is None else max(0, getattr(times, f"{name}_ns") - limit_ns)
    return above


def _layouts(asked: Asked, found: FoundServing) -> Iterator[ServingLayout]:
    """All layouts, in a fixed order; what is none is noted."""
    space = replace(space_of(asked.deployment), dp_degrees=(1,))
    for mesh in meshes(space, asked.setting):
        if isinstance(mesh, Impossible):
            found.dropped.append(Dropped(mesh.what, mesh.what, mesh.why))
            continue
        for size in space.microbatch_sizes or divisors(asked.slots):
            for chunk in _chunks(asked, size):
                yield from _cut_ways(asked, space, mesh, size, chunk, found)


def _chunks(asked: Asked, microbatch_size: int) -> Sequence[int | None]:
    """Whole prompts, and powers of two up to all prompts of a microbatch."""
    batch = asked.deployment.batch
    assert batch is not None
    if "prefill_chunk_tokens" not in asked.deployment.search.vary:
        return [batch.prefill_chunk_tokens]
    longest = max(len(request.prompt) for request in asked.traffic.requests)
    least = max(SMALLEST_CHUNK, longest // 8)
    powers = (1 << power for power in range(31))
    return [None, *(size for size in powers if least <= size < longest * microbatch_size)]


def _cut_ways(
    asked: Asked, space: Space, mesh: Mesh, size: int, chunk: int | None, found: FoundServing
) -> Iterator[ServingLayout]:
    count, rest = divmod(asked.slots, size)
    if rest:
        why = f"{asked.slots} sequences do not divide into microbatches of {size}"
        found.dropped.append(Dropped(_words(mesh), f"microbatches of {size}", why))
        return
    batch = asked.deployment.batch
    limit = None if batch is None else batch.items_in_flight
    ways = ["whole"] if mesh.pp_degree == 1 else ["fractional", "whole"]
    if "cuts" not in asked.deployment.search.vary:
        ways = ["given"]
    known: set[Stages] = set()
    for way in ways:
        try:
            stages = stages_cut(asked, space, mesh, size, chunk, way)
        except PlanError as problem:
            found.dropped.append(Dropped(_words(mesh), f"{_words(mesh)}, {way} cuts", str(problem)))
            continue
        if stages not in known:
            known.add(stages)
            yield ServingLayout(mesh, size, count, chunk, None if limit is None else min(limit, count), way, stages)


def stages_cut(asked: Asked, space: Space, mesh: Mesh, size: int, chunk: int | None, way: str) -> Stages:
    """The stages of a layout.

    Raises:
        PlanError: there are none.
    """
    if way == "given":
        costs = unit_costs(
            asked.setting.shape,
            microbatch_size=size,
            sequence_length=asked.setting.sequence_length,
            workload="forward",
        )
        return checked_stages(asked.deployment.pipeline.cuts, costs, mesh.pp_degree, mesh)
    return cut(line_of_round(asked, mesh, size, chunk), mesh.pp_degree, way, asked.setting.memory_bytes)


def line_of_round(
    asked: Asked, mesh: Mesh, microbatch_size: int, chunk: int | None, phases: tuple[str, ...] = PHASES
) -> Line:
    """What is cut: the model's units with what a round asks of them."""
    shape, tp, setting = asked.setting.shape, mesh.tp_degree, asked.setting
    sizes = round_sizes(asked.traffic, asked.slots, microbatch_size, chunk)

    def bytes_of(kind: str) -> int:
        cached = 2 * asked.slots * setting.sequence_length * kv_heads(shape, tp) * shape.head_dim
        held = rank_weights(shape, kind, tp) + norm_weights(shape, kind) + (cached if kind == "attn" else 0)
        return held * ELEMENT_BYTES[asked.dtype]

    return serving_line(shape, tp, sizes, asked.costs, bytes_of, phases=phases, granule=asked.deployment.search.granule)


def _words(mesh: Mesh) -> str:
    return f"tp {mesh.tp_degree} x pp {mesh.pp_degree}"


def _too_large(one: EvaluatedServing, lacking: int) -> Dropped:
    rank = max(range(len(one.memory)), key=lambda index: one.memory[index].ledger_peak)
    held = one.memory[rank]
    why = (
        f"out of memory: pipeline rank {rank} holds {held.parameters / 1e9:.3g} GB of weights and "
        f"{held.kv_cache / 1e9:.3g} GB of cache, {lacking / 1e9:.3g} GB more than {one.asked.setting.limit_text}"
    )
    return Dropped(_words(one.layout.mesh), str(one.layout), why, lacking)


def _infeasible(found: FoundServing, asked: Asked) -> str:
    short = [one for one in found.dropped if one.lacking_bytes]
    setting = asked.setting
    if not short:
        shown = "; ".join(list(dict.fromkeys(one.why for one in found.dropped))[:3]) or "[search] allows none"
        devices = f"no layout of {setting.num_devices} devices is possible"
        return f"{setting.name}: {devices}: {shown}; let more vary in [search]"
    nearest = min(short, key=lambda one: one.lacking_bytes)
    assert setting.memory_bytes is not None
    needed = (setting.memory_bytes + nearest.lacking_bytes) / float(1 - MEMORY_SAFETY)
    return (
        f"{setting.name}: hardware.memory_per_device is too little: no layout fits {setting.limit_text}; the nearest "
        f"of {len(short)} ({nearest.what}): {nearest.why}; it would fit {needed / 1e9:.3g} GB; else serve fewer "
        "sequences at once (batch.global_batch_size), shorter ones (batch.sequence_length), or on more devices"
    )
