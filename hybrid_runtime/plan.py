"""`plan.json`: degrees, stages, schedule and prediction; written before a run and never edited.

The executor and the replay simulator consume the very `actions` stored here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ValidationError

from hybrid_runtime.deployment_fields import RecomputeKind
from hybrid_runtime.errors import PlanError
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.predicted import PlanPart, PredictedStep

SCHEMA_VERSION = "1.1"


class StagePlan(PlanPart):
    """One pipeline stage: a slice of the model's flat list of units, on one pipeline rank.

    Attributes:
        units: names of whole units, or of pieces of units (pieces.py) where a cut falls inside one.
        recompute: what they forget after F and compute again; the model's first and last unit forget nothing.
    """

    _later: ClassVar[tuple[str, ...]] = ("recompute",)

    index: int
    pp_rank: int
    units: tuple[str, ...]
    recompute: RecomputeKind = "none"


class UnitCost(PlanPart):
    """Exact cost of one unit for one microbatch of the whole model (all tensor-parallel ranks together).

    Attributes:
        forward_flops: FLOPs of the forward pass.
        input_grad_flops: FLOPs of the input gradient (I).
        weight_grad_flops: FLOPs of the weight gradient (W).
        parameters: number of parameters held by this unit; a tied weight counts where it is first held.
        parts: how many equal parts the unit is a sum over, so that it may be cut between them (pieces.py); 1 if it
            cannot be cut.
        fixed_parameters: of `parameters`, those that do not belong to a part (norms): the first piece holds them.
        selective_recompute_flops, full_recompute_flops: of `forward_flops`, those of what is forgotten and computed
            again.
    """

    _later: ClassVar[tuple[str, ...]] = ("selective_recompute_flops", "full_recompute_flops")

    name: str
    forward_flops: int
    input_grad_flops: int
    weight_grad_flops: int
    parameters: int
    parts: int = 1
    fixed_parameters: int = 0
    selective_recompute_flops: int = 0
    full_recompute_flops: int = 0

    @property
    def flops(self) -> int:
        return self.forward_flops + self.input_grad_flops + self.weight_grad_flops

    def again_flops(self, recompute: RecomputeKind) -> int:
        """FLOPs of what a backward computes again; they are no part of `flops`, the model's own."""
        again = {"none": 0, "selective": self.selective_recompute_flops, "full": self.full_recompute_flops}
        return again[recompute]


class Prediction(PlanPart):
    """What the plan expects before anything runs; every figure here is computed, none is measured.

    Attributes:
        stage_flops: FLOPs of one microbatch per stage (index order), all tp ranks together; forward only for `forward`.
        stage_parameters: parameters per stage.
        peak_in_flight: per pp rank, the largest number of (stage, microbatch) pairs whose activations are held at once.
        receive_depth: per directed pp edge "src>dst", how many receive buffers the executor must pool.
        ideal_busy_ppm: compute-busy share of the busiest pp rank in the schedule with these FLOPs and free
            communication, per pp rank, in parts per million.
    """

    stage_flops: tuple[int, ...]
    stage_parameters: tuple[int, ...]
    peak_in_flight: tuple[int, ...]
    receive_depth: dict[str, int]
    ideal_busy_ppm: tuple[int, ...]


class Plan(PlanPart):
    """Everything a rank needs to know before it starts.

    Attributes:
        actions: per pp rank, the lowered action list in text form (`0F0`, `0SEND_F0`, `1RECV_B2`).
        units: cost of every whole unit of the model, in model order; empty costs (zeros) mean "not counted".
        embedding_pieces: per pp rank, the piece of the embedding whose rows it looks up ("" for none), where the rows
            are sharded over the pipeline; stage 0's own "embedding" then only sums what the ranks looked up. Empty
            where stage 0 holds the whole embedding.
        compile: what units compute between their parallel layers is handed to torch.compile.
        predicted: step time and memory as they were predicted; None for a plan that nobody calculated through.
        prefill_chunk_tokens, items_in_flight: of [batch], where requests are served.
        shard_optimizer: replicas share the optimizer's state; None where the deployment file alone says so.
    """

    _later: ClassVar[tuple[str, ...]] = ("prefill_chunk_tokens", "items_in_flight", "shard_optimizer")

    schema_version: str = SCHEMA_VERSION
    name: str
    workload: str
    tp_degree: int
    pp_degree: int
    dp_degree: int
    sequence_parallel: bool
    schedule: str
    global_batch_size: int
    microbatch_size: int
    num_microbatches: int
    sequence_length: int
    stages: tuple[StagePlan, ...]
    units: tuple[UnitCost, ...]
    actions: tuple[tuple[str, ...], ...]
    prediction: Prediction
    embedding_pieces: tuple[str, ...] = ()
    compile: bool = False
    predicted: PredictedStep | None = None
    prefill_chunk_tokens: int | None = None
    items_in_flight: int | None = None
    shard_optimizer: bool | None = None

    @property
    def mesh(self) -> Mesh:
        return Mesh(tp_degree=self.tp_degree, pp_degree=self.pp_degree, dp_degree=self.dp_degree)

    def stages_of(self, pp_rank: int) -> tuple[StagePlan, ...]:
        """The stages that live on a pipeline rank, in index order."""
        return tuple(stage for stage in self.stages if stage.pp_rank == pp_rank)

    @property
    def stage_to_rank(self) -> tuple[int, ...]:
        return tuple(stage.pp_rank for stage in self.stages)

    @property
    def peak_microbatches(self) -> tuple[Fraction, ...]:
        """Per pp rank, `Prediction.peak_in_flight` in microbatches of the rank's whole share: divided by its stages."""
        pairs = self.prediction.peak_in_flight
        return tuple(Fraction(pairs[rank], len(self.stages_of(rank))) for rank in range(self.pp_degree))

    @property
    def tokens_per_step(self) -> int:
        return self.global_batch_size * self.sequence_length

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the JSON form; every record file carries it."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def recompute_text(kinds: Sequence[RecomputeKind]) -> str:
    """What stages forget, as the end of a line: ", recompute full on stage 0-2, selective on stage 3"."""
    if len(set(kinds)) == 1:
        return "" if kinds[0] == "none" else f", recompute {kinds[0]}"
    runs = [(kind, [stage for stage, _ in run]) for kind, run in groupby(enumerate(kinds), key=lambda pair: pair[1])]
    words: dict[str, list[str]] = {}
    for kind, stages in runs:
        text = str(stages[0]) if len(stages) == 1 else f"{stages[0]}-{stages[-1]}"
        words.setdefault(kind, []).append(text)
    return ", recompute " + ", ".join(
        f"{kind} on stage {' and '.join(stages)}" for kind, stages in words.items() if kind != "none"
    )


def read_plan(path: Path) -> Plan:
    """Reads plan.json.

    Raises:
        PlanError: the file is missing, not a plan of this version, or says what no plan says.
    """
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
        plan = Plan.model_validate(values)
    except OSError as problem:
        raise PlanError(f"{path}: cannot be read ({problem.strerror}); name a folder that a run wrote") from None
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise PlanError(f"{path}: not a plan: {where}: {first['msg']}; use the file as the run wrote it") from None
    except (ValueError, RecursionError) as problem:
        raise PlanError(f"{path}: is not JSON ({problem}); use the file as the run wrote it") from None
    if plan.schema_version != SCHEMA_VERSION:
        raise PlanError(f"{path}: schema_version {plan.schema_version} is not {SCHEMA_VERSION}; make the run again")
    from hybrid_runtime.plan_contradictions import contradictions  # that file knows what a Plan is

    wrong = next(contradictions(plan), None)
    if wrong is not None:
        raise PlanError(f"{path}: {wrong}; plan again, or use the file as it was written")
    return plan
