"""One way to lay a model out over devices, before anything is calculated: the points of the planner's search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache, cached_property
from typing import Literal

from hybrid_runtime.deployment_fields import RecomputeKind
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.plan import recompute_text
from hybrid_runtime.planner.cuts import Stages
from hybrid_runtime.schedule.choose import place
from hybrid_runtime.shapes import LlamaShape

CutKind = Literal["fractional", "whole", "even", "given"]
FUSED = ("gpipe", "1f1b", "interleaved_1f1b")  # schedules whose backwards are whole
MEMORY_SAFETY = Fraction(5, 100)  # of a device's memory, until past errors of predictions say what is needed
KINDS: tuple[RecomputeKind, ...] = ("none", "selective", "full")  # of forgetting, each more than the one before
MESSAGE_BUFFERS = 2  # outstanding receives of an edge (schedule/lower.py)


@dataclass(frozen=True)
class Setting:
    """What is planned for: everything that no layout changes.

    Attributes:
        memory_bytes: most that a rank may hold, the safety margin taken off; None for no limit.
        limit_text: that limit as the user wrote it, for messages.
        devices_per_node: neighbours by rank that share fast links.
        compute_share_limit, memory_share_limit: promised gaps between devices' shares, of 1; None for no promise.
        beside_bytes: per pipeline rank, what it is known to hold beyond what is calculated; empty for nothing.
        recomputes: what stages may be made to forget so that a layout fits, the least first; empty where the file says.
        shardings: whether replicas share the optimizer's state; both where that is free.
        compile: units are compiled.
        seed: of the schedule search.
    """

    name: str
    workload: str
    shape: LlamaShape
    global_batch_size: int
    sequence_length: int
    sequence_parallel: bool
    num_devices: int
    devices_per_node: int
    memory_bytes: int | None = None
    limit_text: str = ""
    compute_share_limit: Fraction | None = None
    memory_share_limit: Fraction | None = None
    beside_bytes: tuple[int, ...] = ()
    recomputes: tuple[RecomputeKind, ...] = ()
    shardings: tuple[bool, ...] = (False,)
    compile: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Layout:
    """Degrees, microbatches, schedule, and how the model is cut.

    Attributes:
        virtual_stages: stages per rank, None for the schedule's own number.
        cuts: "fractional" (inside units too), "whole" (between units, under the memory limit), "even" (equal layers),
            "given" (as `stages` say).
        sharded: the embedding's rows are spread over the pipeline ranks.
        stages: names of units and pieces per stage, where the deployment file says them.
        rows: of a sharded embedding per pipeline rank, where the file says them; None to fill them in.
        share: V placement, of a rank's work that its first stage gets. A smaller one fills the pipeline sooner and
            costs memory.
        level: of schedule auto, ranks that would hold more than the others with all rows are held down to their level.
        in_flight: of schedule auto, most microbatches of a rank's whole share whose activations it may hold.
        even_rows: of schedule auto, every rank leaves room for as many rows of a sharded embedding as any other, and
            has what is left of the common level for activations (planner/orders.py).
        recompute: what stages forget after F and compute again: one word for all, or one for each.
        shard_optimizer: replicas share the optimizer's state (ZeRO-1).
    """

    mesh: Mesh
    microbatch_size: int
    num_microbatches: int
    schedule: str
    virtual_stages: int | None = None
    cuts: CutKind = "fractional"
    sharded: bool = True
    stages: Stages | None = None
    rows: tuple[int, ...] | None = None
    share: Fraction = Fraction(1, 2)
    level: bool = False
    in_flight: int | None = None
    even_rows: bool = False
    recompute: RecomputeKind | tuple[RecomputeKind, ...] = "none"
    shard_optimizer: bool = False

    @cached_property
    def stage_to_rank(self) -> tuple[int, ...]:
        return place(self.schedule, self.mesh.pp_degree, self.virtual_stages)

    @cached_property
    def is_v(self) -> bool:
        """Two stages per rank, down the ranks and up again."""
        ranks = self.mesh.pp_degree
        return ranks > 1 and self.stage_to_rank == (*range(ranks), *reversed(range(ranks)))

    @cached_property
    def recomputes(self) -> tuple[RecomputeKind, ...]:
        """What every stage forgets."""
        given = self.recompute
        return (given,) * len(self.stage_to_rank) if isinstance(given, str) else given

    def forgetting(self, kinds: Sequence[RecomputeKind]) -> Layout:
        """The layout whose stages forget this."""
        return replace(self, recompute=kinds[0] if len(set(kinds)) == 1 else tuple(kinds))

    def with_kind(self, stage: int, kind: RecomputeKind) -> Layout:
        """The layout in which one stage forgets this."""
        kinds = list(self.recomputes)
        kinds[stage] = kind
        return self.forgetting(kinds)

    @property
    def is_fused(self) -> bool:
        return self.schedule in FUSED

    def __str__(self) -> str:
        virtual = f" x {self.virtual_stages}" if self.virtual_stages else ""
        limit = f" (in flight {self.in_flight}{', level' if self.level else ''})" if self.in_flight else ""
        limit += f" (first stages {float(100 * self.share):g} %)" if self.share != Fraction(1, 2) else ""
        limit += " (room for even rows)" if self.even_rows else ""
        rows = "embedding sharded" if self.sharded else "embedding on the first stage"
        return (
            f"{self.mesh}, {self.schedule}{virtual}{limit}, {self.num_microbatches} microbatches of "
            f"{self.microbatch_size}, {self.cuts} cuts, {rows}{recompute_text(self.recomputes)}"
            + (", optimizer sharded" if self.shard_optimizer else "")
        )


def in_flight(layout: Layout, rank: int) -> Fraction:
    """Most microbatches of a rank's whole share whose activations it holds at once, where weight gradients wait.

    The schedules' own figures for equal stages (schedule/registry.py); a replay counts what really happens.
    """
    ranks = layout.mesh.pp_degree
    per_rank = len(layout.stage_to_rank) // ranks
    return _in_flight(layout.schedule, ranks, rank, layout.num_microbatches, per_rank, layout.in_flight)


@cache
def _in_flight(schedule: str, ranks: int, rank: int, m: int, per_rank: int, limit: int | None) -> Fraction:
    match schedule:
        case "gpipe":
            held = Fraction(m)
        case "1f1b":
            held = Fraction(ranks - rank)
        case "interleaved_1f1b":
            held = Fraction((per_rank - 1) * ranks + 2 * (ranks - 1 - rank) + 1, per_rank)
        case "zb_h2":
            held = Fraction(2 * ranks - 1)
        case "dualpipe_v":
            held = Fraction(2 * ranks + 1, 2)
        case "v_half":
            held = Fraction((ranks + 2) // 2)
        case "v_min":
            held = Fraction((ranks + 4) // 3)
        case "auto":
            held = Fraction(limit or ranks + 1)
        case _:
            held = Fraction(ranks)
    return min(held, Fraction(m))


def crosses_nodes(mesh: Mesh, setting: Setting, source: int, target: int) -> bool:
    """Whether a message between two pipeline ranks leaves a node; tensor ranks are neighbours, then pipeline ranks."""
    per_node = setting.devices_per_node
    tp = mesh.tp_degree
    return any((source * tp + one) // per_node != (target * tp + one) // per_node for one in range(tp))


def may_share(layout: Layout, setting: Setting) -> bool:
    """Whether replicas may share the optimizer's state or not, as is better."""
    return len(setting.shardings) > 1 and layout.mesh.dp_degree > 1


def dp_crosses_nodes(layout: Layout, setting: Setting) -> bool:
    """Whether replicas live on different nodes."""
    return layout.mesh.world_size > setting.devices_per_node
