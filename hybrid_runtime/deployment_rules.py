"""What the deployment's tables allow beside each other: (what is wrong, what to do) of every contradiction."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from hybrid_runtime.deployment_data import Data
from hybrid_runtime.deployment_model import Model
from hybrid_runtime.deployment_parallel import Parallel, Pipeline
from hybrid_runtime.deployment_targets import Targets
from hybrid_runtime.deployment_workload import Batch, Workload


def rules_between_tables(given: Collection[str], values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every contradiction between tables that are themselves in order.

    Args:
        given: tables that the file has.
        values: the tables as far as they could be read.
    """
    model = values.get("model")
    if "export" in given and isinstance(model, Model) and model.units is not None:
        yield (
            "has [export], which writes models of the Llama family, and a model of your own units",
            "leave [export] out: transformers has no such model",
        )
    yield from _load_rules(values)
    yield from _training_rules(values)


def _training_rules(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What only a training obeys."""
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


def _load_rules(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What [load] allows beside it, and what means nothing without it."""
    workload, batch, targets = (values.get(name) for name in ("workload", "batch", "targets"))
    kind = workload.kind if isinstance(workload, Workload) else "train"
    limits = targets.latency_limits if isinstance(targets, Targets) else {}
    if (load := values.get("load")) is not None:
        yield from _serving_rules(values, kind)
        if kind == "forward" and "output_token" in (*limits, getattr(load, "latency", None)):
            yield "asks for the time between an answer's tokens, and a prefill gives one token", "leave it out"
        return
    if kind == "generate":
        yield "has a workload of kind 'generate' and no [load]", "add [load]: what it is to be asked"
    for name in ("prefill_chunk_tokens", "items_in_flight"):
        if isinstance(batch, Batch) and getattr(batch, name) is not None:
            yield f"has batch.{name} and no [load]", "remove it: only where requests are served it means something"
    if limits:
        yield "limits the latency of requests and has no [load]", "add [load], or remove the limit from [targets]"


def _serving_rules(values: Mapping[str, Any], kind: str) -> Iterator[tuple[str, str]]:
    """What a deployment that serves cannot have."""
    model, parallel, pipeline = (values.get(name) for name in ("model", "parallel", "pipeline"))
    if kind == "train":
        yield "has [load], which no training obeys", "set workload.kind to 'forward' or 'generate', or remove [load]"
    for name in ("export", "checkpoint"):
        if values.get(name) is not None:
            yield f"has [{name}] and [load], and what is served is not trained", f"remove [{name}]"
    if isinstance(model, Model) and model.compile:
        yield "has model.compile and [load], whose items are each of another length", "remove compile"
    if isinstance(model, Model) and model.units is not None:
        yield "serves a model of your own units, which have no cache of keys and values", "name a preset or hf_config"
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
    if isinstance(pipeline, Pipeline) and pipeline.embedding_rows is not None:
        yield (
            "serves with pipeline.embedding_rows, whose sums over the pipeline each decode would wait for",
            "remove embedding_rows",
        )
    if isinstance(pipeline, Pipeline) and (pipeline.virtual_stages or 1) > 1:
        yield (
            f"serves with virtual_stages = {pipeline.virtual_stages}; a token would pass each rank as often",
            "set virtual_stages = 1, and a schedule with one stage on each rank: schedule = '1f1b'",
        )
