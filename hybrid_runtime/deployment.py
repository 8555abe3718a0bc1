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
from hybrid_runtime.deployment_fields import DevicePair, LinkRateText, Positive, SizeText, Table, given_keys
from hybrid_runtime.deployment_load import Load
from hybrid_runtime.deployment_measurement import Measurement
from hybrid_runtime.deployment_model import Model
from hybrid_runtime.deployment_optimizer import Optimizer as Optimizer
from hybrid_runtime.deployment_parallel import Parallel as Parallel
from hybrid_runtime.deployment_parallel import Pipeline as Pipeline
from hybrid_runtime.deployment_rules import rules_between_tables
from hybrid_runtime.deployment_search import Search
from hybrid_runtime.deployment_targets import Baseline as Baseline
from hybrid_runtime.deployment_targets import BaselineKind as BaselineKind
from hybrid_runtime.deployment_targets import Targets
from hybrid_runtime.deployment_telemetry import Telemetry
from hybrid_runtime.deployment_text import read_values
from hybrid_runtime.deployment_workload import Batch as Batch
from hybrid_runtime.deployment_workload import Workload
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
    "batch": ("prefill_chunk_tokens", "items_in_flight"),
    "targets": ("first_token_s", "output_token_s", "request_latency_s"),
    "faults": ("most_skips_in_a_row",),
}


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
        yield from rules_between_tables(given, values)

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
            for key in keys if table is not None and name in values else ():
                if getattr(table, key) == type(table).model_fields[key].default:
                    del values[name][key]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


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
    "load": Load,
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
