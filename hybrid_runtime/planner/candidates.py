"""Every layout that the devices, the model and the batch admit, and the reasons why others are none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from hybrid_runtime.deployment_fields import RecomputeKind
from hybrid_runtime.errors import PlanError
from hybrid_runtime.mesh import Mesh, divisors
from hybrid_runtime.plan import UnitCost
from hybrid_runtime.planner.costs import unit_costs
from hybrid_runtime.planner.cover import checked_stages, demand_word_each
from hybrid_runtime.planner.embedding_rows import counted_rows
from hybrid_runtime.planner.layout import CutKind, Layout, Setting
from hybrid_runtime.schedule.choose import accept, is_searched, place
from hybrid_runtime.schedule.registry import SCHEDULES

MOST_ACTIONS = 1_000_000  # of a step; a replay of more takes minutes
# Of a rank's work in V placement: fills the pipeline sooner, at the price of memory on some ranks.
SMALLER_FIRST_STAGE = Fraction(21, 50)
# Takes longer to fill it, and less memory meanwhile, which is what many ranks are short of.
LARGER_FIRST_STAGE = Fraction(3, 5)
FEW_RANKS = 4


@dataclass(frozen=True)
class Space:
    """What may vary, as values to choose from; one value fixes it.

    Attributes:
        tp_degrees, pp_degrees, dp_degrees, microbatch_sizes: None for every one that is possible.
        schedules: names, "auto" among them.
        virtual_stages: of the schedules that take any number.
        in_flight: of auto; None for one more than there are pipeline ranks.
        cuts: "fractional" where the runtime may cut inside units, else "whole" or "even"; "given" with `ranges`.
        sharded: whether the embedding's rows may be spread over the pipeline.
        ranges: `pipeline.cuts` where they are fixed.
        rows: `pipeline.embedding_rows` where they are fixed.
        recompute: what stages forget, all alike or each by itself; more where that is free and nothing fits else.
    """

    tp_degrees: Sequence[int] | None = None
    pp_degrees: Sequence[int] | None = None
    dp_degrees: Sequence[int] | None = None
    microbatch_sizes: Sequence[int] | None = None
    schedules: Sequence[str] = (*SCHEDULES, "auto")
    virtual_stages: Sequence[int] = (2, 4)
    in_flight: int | None = None
    cuts: CutKind = "fractional"
    sharded: bool = True
    ranges: Sequence[str] | None = None
    rows: str | Sequence[int] | None = None
    recompute: RecomputeKind | tuple[RecomputeKind, ...] = "none"


@dataclass(frozen=True)
class Impossible:
    """Layouts that are none.

    Attributes:
        what: in words, e.g. "tp 16".
        why: one sentence.
    """

    what: str
    why: str


def layouts(space: Space, setting: Setting) -> Iterator[Layout | Impossible]:
    """All layouts, in a fixed order."""
    costs = unit_costs(
        setting.shape, microbatch_size=1, sequence_length=setting.sequence_length, workload=setting.workload
    )
    for mesh in meshes(space, setting):
        if isinstance(mesh, Impossible):
            yield mesh
            continue
        for size in _microbatch_sizes(space, setting, mesh):
            if isinstance(size, Impossible):
                yield size
                continue
            count = setting.global_batch_size // (mesh.dp_degree * size)
            of_mesh = _of_mesh(space, setting, mesh, size, count)
            given = (_as_given(one, space, setting, costs) if isinstance(one, Layout) else one for one in of_mesh)
            yield from dict.fromkeys(given)  # layouts that differ in their cuts only are one where those are fixed


def meshes(space: Space, setting: Setting) -> Iterator[Mesh | Impossible]:
    """All meshes of exactly the devices."""
    for tp in divisors(setting.num_devices):
        if space.tp_degrees is not None and tp not in space.tp_degrees:
            continue
        why = tp_problem(tp, setting)
        if why is not None:
            yield Impossible(f"tp {tp}", why)
            continue
        for pp in divisors(setting.num_devices // tp):
            dp = setting.num_devices // (tp * pp)
            fixed = (space.pp_degrees, pp), (space.dp_degrees, dp)
            if all(allowed is None or degree in allowed for allowed, degree in fixed):
                yield Mesh(tp_degree=tp, pp_degree=pp, dp_degree=dp)


def tp_problem(tp_degree: int, setting: Setting) -> str | None:
    """Why a model cannot be split over so many tensor-parallel ranks; None if it can."""
    shape = setting.shape
    if tp_degree > setting.devices_per_node:
        return f"tensor parallelism over {tp_degree} devices leaves a node of {setting.devices_per_node}"
    if shape.num_heads % tp_degree:
        return f"{shape.num_heads} heads do not divide by {tp_degree}"
    if max(shape.num_kv_heads, tp_degree) % min(shape.num_kv_heads, tp_degree):
        return f"{shape.num_kv_heads} key/value heads can be neither split over nor shared by {tp_degree} ranks"
    if shape.ffn_size % tp_degree:
        return f"the MLP's {shape.ffn_size} columns do not divide by {tp_degree}"
    if setting.sequence_parallel and setting.sequence_length % tp_degree:
        return f"sequences of {setting.sequence_length} tokens do not divide by {tp_degree} for sequence parallelism"
    return None


def _microbatch_sizes(space: Space, setting: Setting, mesh: Mesh) -> Iterator[int | Impossible]:
    share, rest = divmod(setting.global_batch_size, mesh.dp_degree)
    if rest or not share:
        why = f"a batch of {setting.global_batch_size} sequences does not divide into {mesh.dp_degree} replicas"
        yield Impossible(f"dp {mesh.dp_degree}", why)
        return
    sizes = _powers(share) if space.microbatch_sizes is None else space.microbatch_sizes
    for size in sizes:
        if share % size:
            why = f"a replica's {share} sequences do not divide into microbatches of {size}"
            yield Impossible(f"dp {mesh.dp_degree}", why)
        else:
            yield size


def _of_mesh(space: Space, setting: Setting, mesh: Mesh, size: int, count: int) -> Iterator[Layout | Impossible]:
    if mesh.pp_degree == 1:
        yield Layout(mesh, size, count, "1f1b", cuts="whole", sharded=False)
        return
    sharded = space.sharded and not setting.shape.tie_embeddings
    units = 2 * setting.shape.num_layers + 2
    for schedule in space.schedules:
        any_number = not is_searched(schedule) and SCHEDULES[schedule].any_virtual_stages
        for virtual in space.virtual_stages if any_number else (None,):
            stages = len(place(schedule, mesh.pp_degree, virtual))
            if stages > units:
                yield Impossible(
                    f"{schedule}, pp {mesh.pp_degree}", f"{stages} stages, but the model has {units} units"
                )
                continue
            if 3 * stages * count > MOST_ACTIONS:
                why = f"{3 * stages * count} actions a step are more than the {MOST_ACTIONS} that are planned for"
                yield Impossible(f"{schedule}, {mesh}", why)
                continue
            try:
                accept(schedule, mesh.pp_degree, count, setting.workload, virtual)
            except PlanError as problem:
                yield Impossible(f"{schedule}, {mesh}", str(problem))
                continue
            if is_searched(schedule):
                limit = space.in_flight or mesh.pp_degree + 1
                common = Layout(
                    mesh, size, count, schedule, cuts=space.cuts, sharded=sharded, in_flight=min(limit, count)
                )
                yield from searched_layouts(common, strict=space.in_flight is not None)
                if setting.memory_share_limit is not None:
                    yield replace(common, level=True)
            else:
                yield Layout(mesh, size, count, schedule, virtual, space.cuts, sharded)


def searched_layouts(layout: Layout, *, strict: bool = False) -> Iterator[Layout]:
    """A layout of schedule auto, and what else is worth a search: which of them is better, only the search tells.

    Args:
        strict: no rank may hold more microbatches than `in_flight` says, not even in place of rows.
    """
    yield layout
    if may_have_even_rows(layout) and not strict:
        yield replace(layout, share=LARGER_FIRST_STAGE, even_rows=True)
    else:
        yield replace(layout, share=SMALLER_FIRST_STAGE)


def may_have_even_rows(layout: Layout) -> bool:
    """Whether room for activations in place of rows is worth a search: few ranks have enough of it as it is, and lose
    by what they leave for rows.
    """
    return is_searched(layout.schedule) and layout.sharded and layout.mesh.pp_degree > FEW_RANKS


def _as_given(layout: Layout, space: Space, setting: Setting, costs: Sequence[UnitCost]) -> Layout | Impossible:
    """The layout with everything that is fixed, or why that is none of its mesh and schedule."""
    mesh, num_stages = layout.mesh, len(layout.stage_to_rank)
    try:
        if space.ranges is not None:
            stages = checked_stages(space.ranges, costs, num_stages, mesh)
            layout = replace(layout, cuts="given", stages=stages, share=Fraction(1, 2))
        if space.rows is not None:
            layout = replace(layout, sharded=True, rows=counted_rows(space.rows, costs, mesh), even_rows=False)
        demand_word_each(space.recompute, num_stages)
    except PlanError as problem:
        return Impossible(f"{layout.schedule}, {mesh}", str(problem))
    shared = setting.shardings[0] and mesh.dp_degree > 1
    return replace(layout, recompute=space.recompute, shard_optimizer=shared)


def _powers(number: int) -> list[int]:
    """Powers of two that divide a number."""
    return [1 << power for power in range(number.bit_length()) if number % (1 << power) == 0]
