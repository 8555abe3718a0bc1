"""The deployment file (TOML or JSON) -> a validated, frozen `Deployment`.

Decimals stay decimals: floats in the file are parsed as `Decimal` and never become binary floats before a comparison.
Whether the plan is *possible* (ranks against devices, heads against ranks, cuts) is not decided here: the static checks
of the verifier judge it row by row, so that a wrong plan gets a verdict and not merely an error.

    path --read_values--> plain values --parse_deployment--> Deployment --canonical_json--> text --> the same Deployment

Relative paths inside the file are relative to the current folder, not to the file.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Collection, Iterator, Mapping
from decimal import Decimal
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from hybrid_runtime.deployment_checkpoint import Checkpoint
from hybrid_runtime.deployment_data import Data
from hybrid_runtime.deployment_declared import Declared
from hybrid_runtime.deployment_errors import CUSTOM, explain
from hybrid_runtime.deployment_export import Export
from hybrid_runtime.deployment_faults import Faults
from hybrid_runtime.deployment_fields import (
    MAX_RANKS,
    Cuts,
    Degree,
    DevicePair,
    EmbeddingRows,
    LinkRateText,
    NonNegativeNumber,
    Percent,
    Positive,
    Recomputes,
    SizeText,
    Table,
    given_keys,
)
from hybrid_runtime.deployment_load import Load
from hybrid_runtime.deployment_measurement import Measurement
from hybrid_runtime.deployment_model import Model
from hybrid_runtime.deployment_optimizer import Optimizer as Optimizer
from hybrid_runtime.deployment_search import Search
from hybrid_runtime.deployment_telemetry import Telemetry
from hybrid_runtime.deployment_text import read_values
from hybrid_runtime.errors import DeploymentError, Problem
from hybrid_runtime.hugging_face_config import shape_from_hugging_face
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.shapes import OVERRIDABLE, PRESETS, LlamaShape, with_overrides

_NEWER_KEYS = {  # by table: left out of a fingerprint while they have their defaults, so that old runs can be judged
    "model": ("compile",),
    "data": ("sources", "pack", "validation_fraction", "validation_sources"),
    "workload": ("validate_every", "validation_batches"),
    "optimizer": ("schedule", "decay_steps", "master_weights"),
    "parallel": ("shard_optimizer",),
    "pipeline": ("recompute",),
    "batch": ("prefill_chunk_tokens",),
}
BaselineKind = Literal["single", "tp_only", "pp_only", "dp_only", "naive_pipeline"]
BalanceMetric = Literal["time_share_range", "work_share_range", "time_rel_spread", "work_rel_spread"]


class Parallel(Table):
    """Degrees of the mesh."""

    tp_degree: Degree = Field(1, description="ranks that share every layer")
    pp_degree: Degree = Field(1, description="stages in a row")
    dp_degree: Degree = Field(1, description="replicas of the whole pipeline")
    sequence_parallel: bool = Field(False, description="shard the sequence between tensor-parallel regions over tp")
    shard_optimizer: bool = Field(
        False,
        description="ZeRO-1: every replica updates a part of the parameters and has the optimizer's state of no other "
        "part; changes nothing where dp_degree is 1",
    )

    @classmethod
    def rules(cls, given: Collection[str], values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        degrees = [values.get(name, 1) for name in ("tp_degree", "pp_degree", "dp_degree")]
        if all(isinstance(degree, int) and 0 < degree <= MAX_RANKS for degree in degrees):
            ranks = math.prod(degrees)
            if ranks > MAX_RANKS:
                yield f"makes {ranks} ranks", f"lower the degrees: at most {MAX_RANKS} ranks are supported"

    @property
    def mesh(self) -> Mesh:
        return Mesh(tp_degree=self.tp_degree, pp_degree=self.pp_degree, dp_degree=self.dp_degree)


class Pipeline(Table):
    """How units become stages and stages are walked."""

    schedule: str = Field(
        "1f1b",
        description="gpipe, 1f1b, interleaved_1f1b, zb_h1, interleaved_zb, zb_h2, zb_v, dualpipe_v, v_half, v_min, "
        "auto (searched for this model), or a .csv file of action lists",
    )
    virtual_stages: Annotated[int, Field(ge=1, le=64)] | None = Field(
        None,
        description="stages on each rank; default: 2 for the interleaved, V and auto schedules, else 1",
        examples=[2],
    )
    in_flight_limit: Positive | None = Field(
        None,
        description="of schedule auto: most microbatches of activations that a rank may hold; default: pp_degree + 1",
        examples=[5],
    )
    cuts: Cuts = Field(
        "balanced",
        description="even (equally many layers per stage), balanced (stages as equal in FLOPs as cuts between units "
        "allow), or one 'first..last' of unit names per stage; an end may be a part of a unit, '3.mlp[:96]' or "
        "'3.mlp[96:]', counted in an MLP's neurons or an attention's key/value heads",
        examples=[["embedding..1.mlp", "2.attn..head"], ["embedding..1.mlp[:96]", "1.mlp[96:]..head"]],
    )
    embedding_rows: EmbeddingRows | None = Field(
        None,
        description="rows of the first unit on every pipeline rank: equal, or one number per rank, each a multiple of "
        "tp_degree, adding up to the vocabulary padded to one; default: all on the first stage's rank",
        examples=[[96, 160]],
    )

    recompute: Recomputes = Field(
        "none",
        description="what units forget after their forward and compute again for their backward: none, selective "
        "(norms, attention's core and the MLP's product: little time) or full (all but a unit's input: up to a third "
        "more time); one word, or one for each stage; the first and the last unit forget nothing",
        examples=["selective", ["full", "none"]],
    )

    @classmethod
    def rules(cls, given: Collection[str], values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        if "in_flight_limit" in given and values.get("schedule", "1f1b") != "auto":
            yield "has in_flight_limit, which only schedule auto obeys", "remove it, or write schedule = 'auto'"


class Batch(Table):
    """Sizes of one optimizer step, in sequences and tokens; of a serving deployment, of its caches."""

    global_batch_size: Positive = Field(
        description="sequences of one optimizer step, over all replicas; of a serving deployment (one with [load]), "
        "those that are served at once",
        examples=[16],
    )
    microbatch_size: Positive = Field(description="sequences that pass the pipeline together", examples=[2])
    sequence_length: Positive = Field(
        description="tokens of one sequence; of a serving deployment the most, prompt and answer together",
        examples=[128],
    )
    prefill_chunk_tokens: Positive | None = Field(
        None,
        description="of a serving deployment: most tokens of prompts that pass the pipeline together; default: whole "
        "prompts",
        examples=[256],
    )


class Workload(Table):
    """What one step does."""

    kind: Literal["train", "forward", "generate"] = Field(
        "train",
        description="train; forward: losses only, or with [load] prompts to their first tokens (prefill); generate: "
        "prompts of [load] to whole answers",
    )
    steps: Positive = Field(100, description="steps of a plain run, warm-up included")
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    validate_every: Positive | None = Field(
        None, description="steps of a training between two validations; the last step ends with one", examples=[100]
    )
    validation_batches: Positive = Field(8, description="global batches of one validation, the same ones every time")


class Hardware(Table):
    """What the deployment requires of the machine; absent fields demand nothing."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: Positive | None = Field(None, description="how many physical devices the deployment is for", examples=[8])
    oversubscribe: bool = Field(False, description="allow several ranks on one device (function only, no speed claim)")
    threads_per_rank: Positive = 1
    memory_per_device: SizeText | None = Field(
        None, description="with unit, GB (10^9) or GiB (2^30)", examples=["32 GB"]
    )
    interconnect: Literal["nvlink"] | None = Field(None, examples=["nvlink"])
    link_pairs: list[DevicePair] | None = Field(
        None, description="device pairs that must be linked", examples=[[[0, 1], [1, 2]]]
    )
    min_link_bandwidth: LinkRateText | None = Field(None, description="one direction", examples=["300 GB/s"])


class Baseline(Table):
    """What the candidate is compared with: same model, global batch and data; other parallel fields."""

    kind: BaselineKind = Field(examples=["single"])
    devices: Degree | None = Field(
        None, description="ranks of the baseline; default: as many as the candidate's", examples=[2]
    )
    microbatch_size: Positive | None = Field(None, description="default: the candidate's", examples=[2])
    others: list[BaselineKind] = Field(
        [], description="other kinds to run and show beside it; they decide nothing", examples=[["tp_only", "pp_only"]]
    )


class Targets(Table):
    """What is promised. Limits are inclusive: exactly 1 pp passes a limit of 1 pp. An absent target makes no claim."""

    compute_balance_pp: Percent | None = Field(
        None,
        description="largest allowed gap between two devices' shares of compute, in percentage points",
        examples=[1],
    )
    compute_balance_metric: BalanceMetric = "time_share_range"
    memory_balance_pp: Percent | None = Field(
        None, description="largest allowed gap between two devices' shares of peak memory, pp", examples=[1]
    )
    utilisation_percent: Percent | None = Field(
        None, description="compute-busy share of the least busy device", examples=[90]
    )
    latency_reduction_percent: Percent | None = Field(
        None, description="of one step, against the baseline", examples=[30]
    )
    throughput_gain_percent: NonNegativeNumber | None = Field(
        None, description="tokens per second, against the baseline", examples=[50]
    )


# Keys that came after the first records, by table, with the values that leave a fingerprint as it was without them.


class Deployment(Table):
    """One deployment file. `model`, `batch` and `baseline` may be absent for `check`; a run needs model and batch."""

    name: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]*$")] = Field(
        description="letters, digits, '.', '_', '-' and spaces; begins with a letter or digit",
        examples=["my-deployment"],
    )
    model: Model | None = None
    parallel: Parallel = Parallel()
    pipeline: Pipeline = Pipeline()
    batch: Batch | None = None
    workload: Workload = Workload()
    optimizer: Optimizer = Optimizer()
    data: Data = Data()
    hardware: Hardware = Hardware()
    search: Search = Search()
    baseline: Baseline | None = None
    targets: Targets = Targets()
    declared: Declared = Declared()
    measurement: Measurement = Measurement()
    telemetry: Telemetry = Telemetry()
    checkpoint: Checkpoint | None = None
    export: Export | None = None
    faults: Faults = Faults()
    load: Load | None = None

    @classmethod
    def rules(cls, given: Collection[str], values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        model = values.get("model")
        if "export" in given and isinstance(model, Model) and model.units is not None:
            yield (
                "has [export], which writes models of the Llama family, and a model of your own units",
                "leave [export] out: transformers has no such model",
            )
        yield from _load_rules(values)
        workload, data = values.get("workload"), values.get("data")
        if isinstance(workload, Workload) and workload.validate_every is not None:
            if workload.kind != "train":
                yield "has workload.validate_every, and a workload that trains nothing", "remove validate_every"
            elif isinstance(data, Data) and not data.validates:
                yield (
                    "has workload.validate_every, but [data] keeps nothing to validate with",
                    "add validation_fraction = 0.01 to [data], or [[data.validation_sources]]",
                )
        pipeline = values.get("pipeline")
        recomputes = isinstance(pipeline, Pipeline) and pipeline.recompute != "none"
        if recomputes and isinstance(workload, Workload) and workload.kind != "train":
            yield (
                f"has pipeline.recompute and a workload of kind {workload.kind!r}, which keeps nothing for a backward",
                "remove recompute",
            )

    @property
    def mesh(self) -> Mesh:
        return self.parallel.mesh

    @property
    def serves(self) -> bool:
        """Whether it answers requests, each step being one round of [load]."""
        return self.load is not None

    @cached_property
    def shape(self) -> LlamaShape | None:
        """The model's sizes; None for a user's own units or without a model.

        Raises:
            UsageError: hf_config names an unusable file.
        """
        if self.model is None or self.model.units is not None:
            return None
        given = {name: getattr(self.model, name) for name in OVERRIDABLE}
        given = {name: float(value) if isinstance(value, Decimal) else value for name, value in given.items()}
        if self.model.preset is not None:
            return with_overrides(PRESETS[self.model.preset], given)
        return with_overrides(shape_from_hugging_face(Path(self.model.hf_config or "")), given)

    @property
    def num_microbatches(self) -> int:
        """Microbatches of one replica in one step. Needs `batch`; 0 if the batch does not divide."""
        assert self.batch is not None
        share, rest = divmod(self.batch.global_batch_size, self.parallel.dp_degree * self.batch.microbatch_size)
        return 0 if rest else share

    def canonical_json(self) -> str:
        """All values with defaults filled in and keys sorted: equal deployments give equal text."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical form without [telemetry], [search] and [export], which are no part of what runs.

        Without [checkpoint], [faults] and [load], and without the newer keys of a table, it is what it was before there
        were such.
        """
        absent = {
            "checkpoint": self.checkpoint is None,
            "faults": self.faults == Faults(),
            "load": self.load is None,
        }
        left_out = {"telemetry", "search", "export", *(name for name, is_absent in absent.items() if is_absent)}
        values = self.model_dump(mode="json", exclude=left_out)
        for name, keys in _NEWER_KEYS.items():
            table = getattr(self, name)
            for key in keys if table is not None else ():
                if getattr(table, key) == type(table).model_fields[key].default:
                    del values[name][key]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _load_rules(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What [load] allows beside it."""
    workload, parallel, batch = (values.get(name) for name in ("workload", "parallel", "batch"))
    kind = workload.kind if isinstance(workload, Workload) else "train"
    if values.get("load") is None:
        if kind == "generate":
            yield "has a workload of kind 'generate' and no [load]", "add [load]: what it is to be asked"
        if isinstance(batch, Batch) and batch.prefill_chunk_tokens is not None:
            yield "has batch.prefill_chunk_tokens and no [load]", "remove it: only prompts are cut into chunks"
        return
    if kind == "train":
        yield "has [load], which no training obeys", "set workload.kind to 'forward' or 'generate', or remove [load]"
    if isinstance(parallel, Parallel) and parallel.dp_degree > 1:
        yield (
            f"serves with dp_degree = {parallel.dp_degree}; replicas that share nothing are deployments of their own",
            "set dp_degree = 1 and start one deployment for each",
        )
    if isinstance(parallel, Parallel) and parallel.sequence_parallel:
        yield (
            "serves with sequence_parallel, which a decode's single tokens cannot be sharded by",
            "set sequence_parallel = false",
        )


def load_deployment(path: Path) -> Deployment:
    """Reads and validates a deployment file; relative paths inside it are relative to the current folder.

    Raises:
        UsageError: the file cannot be read or is neither TOML nor JSON.
        DeploymentError: its content is not valid; holds every problem.
    """
    values, repeated = read_values(path)
    try:
        deployment = parse_deployment(values, source=str(path))
    except DeploymentError as invalid:
        raise DeploymentError(str(path), [*repeated, *invalid.problems]) from None
    if repeated:
        raise DeploymentError(str(path), repeated)
    return deployment


def parse_deployment(values: object, *, source: str) -> Deployment:
    """Validates values that were read from `source` (used in messages only).

    Raises:
        DeploymentError: with every problem found.
    """
    try:
        return Deployment.model_validate(values)
    except ValidationError as invalid:
        errors = [error for error in invalid.errors(include_url=False) if not _is_rule(error)]
        problems = [*explain(errors, _schema()), *_rule_problems(values)]
        raise DeploymentError(source, problems) from None


_RULED: dict[str, type[Table]] = {
    "model": Model,
    "parallel": Parallel,
    "pipeline": Pipeline,
    "optimizer": Optimizer,
    "data": Data,
}


def _is_rule(error: Mapping[str, Any]) -> bool:
    """Rules between keys are left to `_rule_problems`: pydantic tries them only in tables without other errors."""
    return error["type"] == CUSTOM and error["loc"] in {(name,) for name in _RULED}


def _rule_problems(values: object) -> Iterator[Problem]:
    for name, table in _RULED.items():
        found = values.get(name) if isinstance(values, dict) else None
        if isinstance(found, dict):
            yield from (Problem(name, "", message, fix) for message, fix in table.rules(given_keys(found), found))


@cache
def _schema() -> dict[str, Any]:
    return Deployment.model_json_schema()


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the deployment file, for editors."""
    return copy.deepcopy(_schema()) | {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "hybrid_runtime deployment",
    }
