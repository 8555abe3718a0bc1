"""What `generate` makes of a deployment file that was written for something else: the same model on the same ranks.

with [load]       caches, chunks and items in flight are the file's own
without           degrees and cuts are the file's, caches are made for the prompts; one sentence says what was assumed
"""

from __future__ import annotations

from typing import Any

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.deployment_load import Load
from hybrid_runtime.deployment_parallel import Pipeline
from hybrid_runtime.deployment_targets import Targets
from hybrid_runtime.deployment_workload import Batch
from hybrid_runtime.errors import UsageError

LONGEST = 10**9  # tokens that `batch.sequence_length` can say
ROWS = 8  # most sequences of a microbatch that is made for the prompts


def served(deployment: Deployment, num_prompts: int, longest: int) -> tuple[Deployment, str]:
    """The deployment that answers so many prompts.

    Args:
        longest: tokens of the longest prompt and its answer.

    Returns:
        It, and a sentence that says what was assumed; "" where nothing was.

    Raises:
        UsageError: no cache can be so long.
    """
    plain: dict[str, Any] = {"checkpoint": None, "export": None, "baseline": None, "targets": Targets()}
    workload = deployment.workload.model_copy(update={"kind": "generate", "validate_every": None})
    if deployment.load is not None:
        return deployment.model_copy(update={**plain, "workload": workload}), ""
    if longest > LONGEST:
        raise UsageError(
            f"the longest prompt and its answer have {longest} tokens, and a cache at most {LONGEST}; lower "
            "--max-new-tokens, or that prompt's max_new_tokens"
        )
    dropped = list(_dropped(deployment))
    batch = _caches(deployment.parallel.pp_degree, num_prompts, longest)
    parallel = deployment.parallel.model_copy(
        update={"dp_degree": 1, "sequence_parallel": False, "shard_optimizer": False}
    )
    found = deployment.model_copy(
        update={
            **plain,
            "workload": workload,
            "load": Load(requests=num_prompts),
            "batch": batch,
            "parallel": parallel,
            "pipeline": _one_stage_a_rank(deployment),
        }
    )
    without = f", without {', '.join(dropped)}" if dropped else ""
    caches = f"{batch.global_batch_size} caches" if batch.global_batch_size > 1 else "a cache"
    return found, (
        f"{deployment.name} has no [load]: it answers as tp {parallel.tp_degree} x pp {parallel.pp_degree}, with "
        f"{caches} of {batch.sequence_length} tokens{without}"
    )


def _dropped(deployment: Deployment) -> list[str]:
    """What only a training has, by its place in the file."""
    parallel, pipeline = deployment.parallel, deployment.pipeline
    found = [] if parallel.dp_degree == 1 else [f"dp_degree = {parallel.dp_degree}"]
    found += ["sequence_parallel"] if parallel.sequence_parallel else []
    found += ["embedding_rows"] if pipeline.embedding_rows is not None else []
    kept = _one_stage_a_rank(deployment)
    found += [f"schedule = {pipeline.schedule!r}"] if kept.schedule != pipeline.schedule else []
    found += ["cuts"] if kept.cuts != pipeline.cuts else []
    return found


def _one_stage_a_rank(deployment: Deployment) -> Pipeline:
    """The table [pipeline] with the file's own cuts, where those are one stage for each rank in their order."""
    pipeline = deployment.pipeline
    is_line = (pipeline.virtual_stages or 1) == 1 and pipeline.schedule in ("1f1b", "gpipe", "zb_h1", "zb_h2")
    cuts = pipeline.cuts
    if not isinstance(cuts, str) and (not is_line or len(cuts) != deployment.parallel.pp_degree):
        cuts = "balanced"
    return pipeline.model_copy(
        update={
            "schedule": pipeline.schedule if is_line else "1f1b",
            "virtual_stages": None,
            "in_flight_limit": None,
            "embedding_rows": None,
            "recompute": "none",
            "cuts": cuts,
        }
    )


def _caches(pp_degree: int, num_prompts: int, longest: int) -> Batch:
    """A cache for each prompt, as far as a microbatch for every stage has room for them."""
    num_microbatches = min(pp_degree, num_prompts)
    rows = min(ROWS, -(-num_prompts // num_microbatches))
    return Batch(global_batch_size=rows * num_microbatches, microbatch_size=rows, sequence_length=longest)
