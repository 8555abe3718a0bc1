"""What the static checks share: the facts of a deployment, worked out once, and short makers of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.errors import PlanError
from hybrid_runtime.mesh import Mesh, divisors, nearest_meshes
from hybrid_runtime.plan import UnitCost
from hybrid_runtime.planner.costs import costs_of_names
from hybrid_runtime.planner.cover import parts_of, stage_cover, tp_findings, wanted_by
from hybrid_runtime.planner.cuts import Stages, cut_units
from hybrid_runtime.planner.embedding_rows import embedding_pieces, rows_problems, stage_parameters
from hybrid_runtime.schedule.choose import place
from hybrid_runtime.schedule.placement import linear
from hybrid_runtime.shapes import LlamaShape
from hybrid_runtime.verdict import Outcome, Reason, StaticCheck


def row(name: str, requirement: str, problems: Sequence[str], detail: str) -> StaticCheck:
    """FAIL with its problems, or PASS with `detail` where there is none."""
    outcome = Outcome.FAIL if problems else Outcome.PASS
    return StaticCheck(id=name, requirement=requirement, outcome=outcome, detail="; ".join(problems) or detail)


def amount(number: int, one: str, many: str = "") -> str:
    """ "1 rank", "2 ranks"."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def undecided(name: str, requirement: str, reason: Reason, detail: str) -> StaticCheck:
    """INCONCLUSIVE: the file does not say enough, or only a run can tell."""
    return StaticCheck(id=name, requirement=requirement, outcome=Outcome.INCONCLUSIVE, reason=reason, detail=detail)


@dataclass(frozen=True)
class Facts:
    """A deployment with what follows from it.

    Attributes:
        shape: sizes of the model; None without a model or for a user's own units.
        costs: of all units in model order; empty where the units are not known.
    """

    deployment: Deployment
    shape: LlamaShape | None
    costs: tuple[UnitCost, ...]

    @cached_property
    def stages(self) -> Stages | None:
        """Units of every stage; None where the units are unknown or the cuts do not hold the model."""
        return None if self.cover_problems or not self.costs else self._cut

    @cached_property
    def cover_problems(self) -> tuple[str, ...]:
        """Why the stages do not hold the model, one sentence each; of unknown units only the number of cuts counts."""
        cuts, num_stages = self.deployment.pipeline.cuts, len(self.stage_to_rank)
        asked_by = wanted_by(num_stages, self.deployment.mesh.pp_degree)
        if not self.costs:
            ranges = num_stages if isinstance(cuts, str) else len(cuts)
            return () if ranges == num_stages else (f"{ranges} cuts are given, but {asked_by} asks for {num_stages}",)
        try:
            names, parts = [cost.name for cost in self.costs], parts_of(self.costs)
            return stage_cover(self._cut, names, num_stages, asked_by=asked_by, parts=parts)
        except PlanError as problem:
            return (str(problem),)

    @cached_property
    def piece_problems(self) -> tuple[str, ...]:
        """Cuts inside units that tensor parallelism forbids, one sentence each."""
        return tp_findings(self.stages or (), parts_of(self.costs), self.deployment.mesh.tp_degree)

    @cached_property
    def _cut(self) -> Stages:
        return cut_units(self.deployment.pipeline.cuts, self.costs, len(self.stage_to_rank))

    @cached_property
    def stage_to_rank(self) -> tuple[int, ...]:
        """The pipeline rank of every stage; one stage on each if the schedule is unusable, which its own row says."""
        pipeline, pp_degree = self.deployment.pipeline, self.deployment.mesh.pp_degree
        try:
            return place(pipeline.schedule, pp_degree, pipeline.virtual_stages)
        except PlanError:
            return linear(pp_degree)

    @property
    def stage_flops(self) -> tuple[int, ...]:
        """FLOPs of one microbatch per stage, all tp ranks together; empty where nothing is known or counted."""
        known = self.deployment.batch is not None and any(cost.flops for cost in self.costs)
        return tuple(sum(cost.flops for cost in stage) for stage in self._stage_costs) if known else ()

    @property
    def stage_parameters(self) -> tuple[int, ...]:
        """Parameters per stage; empty where nothing is known or counted."""
        if self.stages is None or not any(cost.parameters for cost in self.costs):
            return ()
        return stage_parameters(self.stages, self.stage_to_rank, self.costs, self.embedding_pieces)

    @cached_property
    def rows_problems(self) -> tuple[str, ...]:
        """Why the rows of a sharded embedding do not hold it, one sentence each."""
        rows = self.deployment.pipeline.embedding_rows
        return tuple(rows_problems(rows, self.costs[0], self.deployment.mesh)) if rows and self.costs else ()

    @cached_property
    def embedding_pieces(self) -> tuple[str, ...]:
        """Rows of the embedding per pipeline rank; empty where it is not sharded, or wrongly."""
        if self.rows_problems or not self.costs:
            return ()
        return embedding_pieces(self.deployment.pipeline.embedding_rows, self.costs, self.deployment.mesh)

    @cached_property
    def _stage_costs(self) -> list[list[UnitCost]]:
        return [costs_of_names(stage, self.costs) for stage in self.stages or ()]

    def per_rank(self, of_stages: Sequence[int]) -> tuple[int, ...]:
        """A figure of every stage, summed over the stages of each pipeline rank; empty where there is none."""
        sums = [0] * self.deployment.mesh.pp_degree
        for rank, figure in zip(self.stage_to_rank, of_stages):
            sums[rank] += figure
        return tuple(sums) if of_stages else ()

    @property
    def num_microbatches(self) -> int:
        """Microbatches of a step; 0 where there is no batch or it does not divide."""
        return self.deployment.num_microbatches if self.deployment.batch else 0


def tp_problems(tp_degree: int, shape: LlamaShape) -> dict[str, str]:
    """Which sizes a tensor-parallel degree does not divide, by row id."""
    heads, kv_heads, ffn_size = shape.num_heads, shape.num_kv_heads, shape.ffn_size
    problems = {}
    if heads % tp_degree:
        problems["heads_divisible"] = (
            f"{heads} heads do not divide by tp {tp_degree} ({heads} mod {tp_degree} = {heads % tp_degree})"
        )
    if kv_heads % tp_degree and tp_degree % kv_heads:
        problems["kv_heads_divisible"] = f"{kv_heads} key/value heads neither divide by tp {tp_degree} nor divide it"
    if ffn_size % tp_degree:
        problems["ffn_divisible"] = f"ffn_size {ffn_size} does not divide by tp {tp_degree}"
    return problems


def valid_tp_degrees(shape: LlamaShape) -> list[int]:
    """Every tensor-parallel degree that the model's sizes allow, ascending."""
    return [degree for degree in divisors(shape.num_heads) if not tp_problems(degree, shape)]


def nearest_plans(facts: Facts, devices: int) -> str:
    """The valid plans most like the file's own, for `devices` devices, and how many devices its own plan needs."""
    mesh = facts.deployment.mesh
    fitting = [other for other in nearest_meshes(mesh, devices) if other != mesh and _fits(other, facts)][:3]
    listed = ", ".join(map(str, fitting)) or "none"
    needs = amount(mesh.world_size, "device")
    return f"nearest valid plans on {amount(devices, 'device')}: {listed}; {mesh} itself needs {needs}"


def _fits(mesh: Mesh, facts: Facts) -> bool:
    """Whether the model and the batch, as far as they are known, allow these degrees."""
    batch = facts.deployment.batch
    if facts.shape is not None and tp_problems(mesh.tp_degree, facts.shape):
        return False
    stages_per_rank = len(facts.stage_to_rank) // facts.deployment.mesh.pp_degree
    if facts.costs and mesh.pp_degree * stages_per_rank > len(facts.costs):
        return False
    return batch is None or batch.global_batch_size % (batch.microbatch_size * mesh.dp_degree) == 0
