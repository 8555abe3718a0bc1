"""Static checks: what the deployment file alone decides, row by row, before any process starts.

    device_count .. rank_device_map     static_devices    what is asked of the machine
    model_shape .. schedule             static_plan       whether the plan is possible
    requests_fit .. enough_requests     static_serving    whether requests and caches fit, where any are served
    latency_reduction .. baseline       static_targets    whether the promises can be judged at all
    *_share_range, declared_computation static_declared   declared shares against limits and against the plan
    claim_count, coherence              static_declared   declared figures against each other

A row appears only where the file says something that it can judge. PASS means "the file does not contradict itself
here", never "measured": what needs a run is INCONCLUSIVE(not_measured) until a run has judged it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.errors import UsageError
from hybrid_runtime.plan import UnitCost
from hybrid_runtime.planner.costs import unit_costs
from hybrid_runtime.verdict import Outcome, StaticCheck
from hybrid_runtime.verifier.static_declared import balance_rows, claim_count, coherence
from hybrid_runtime.verifier.static_devices import device_rows
from hybrid_runtime.verifier.static_plan import batch_divisible, model_shape, plan_rows, tp_rows
from hybrid_runtime.verifier.static_rows import Facts
from hybrid_runtime.verifier.static_serving import serving_rows
from hybrid_runtime.verifier.static_targets import baseline_row, speed_rows, stated_utilisation, utilisation_row


def static_checks(deployment: Deployment, units: Sequence[UnitCost] = ()) -> tuple[StaticCheck, ...]:
    """All rows, in the order of the table above.

    Args:
        units: of a user's own model, once they are known (a plan has them); a Llama-family model needs none.

    Raises:
        UsageError: the model names a Hugging Face config that cannot be used.
    """
    facts = _facts(deployment, units)
    return (
        *device_rows(facts),
        *plan_rows(facts),
        *speed_rows(facts),
        *serving_rows(facts),
        *utilisation_row(facts),
        *baseline_row(facts),
        *balance_rows(facts),
        *claim_count(facts, stated_requirements(deployment)),
        *coherence(facts),
    )


def refuse_unfit(deployment: Deployment, varied: Collection[str]) -> None:
    """Said before anything is planned, calibrated or rehearsed: sizes that no search can mend.

    Args:
        varied: what a search or a given plan decides instead of the file, as `search.vary` names it.

    Raises:
        UsageError: the first of the checks' rows about them that fails, in its own words.
    """
    if deployment.shape is None:
        return
    facts = _facts(deployment, ())
    rows = [model_shape(deployment.shape)]
    rows += [] if "tp_degree" in varied else tp_rows(facts, deployment.shape)
    fixed_batch = deployment.batch is not None and not {"dp_degree", "microbatch_size"} & set(varied)
    rows += [batch_divisible(facts)] if fixed_batch else []
    wrong = [found for found in rows if found.outcome is Outcome.FAIL]
    if wrong:
        raise UsageError(f"{deployment.name}: check {wrong[0].id} fails: {wrong[0].detail}")


def stated_requirements(deployment: Deployment) -> tuple[str, ...]:
    """The separate requirements that a file states, by metric id. A heading over several of them is not one of them."""
    hardware, targets, declared = deployment.hardware, deployment.targets, deployment.declared
    computation = (targets.compute_balance_pp, declared.computation_distribution)
    stated = {
        "device_count": hardware.devices is not None,
        "device_memory_bytes": hardware.memory_per_device is not None,
        "link_present": hardware.interconnect is not None,
        "parallel_axes": declared.strategy is not None,
        "world_size_product": deployment.mesh.world_size > 1,
        "rank_device_map": declared.device_assignment is not None,
        "stage_cover": declared.num_parts is not None or not isinstance(deployment.pipeline.cuts, str),
        "latency_reduction": _any(targets.latency_reduction_percent, declared.latency_reduction),
        "throughput_gain": _any(targets.throughput_gain_percent, declared.throughput_gain),
        "compute_busy_min": stated_utilisation(deployment) is not None,
        targets.compute_balance_metric: _any(*computation),
        **dict.fromkeys(stated_limits(deployment), True),
        "alloc_peak_share_range": _any(targets.memory_balance_pp, declared.memory_distribution),
    }
    return tuple(name for name, is_stated in stated.items() if is_stated)


def stated_limits(deployment: Deployment) -> list[str]:
    """The limits of latencies, by metric id."""
    limits = deployment.targets.latency_limits
    return [f"{kind}_{name}_s" for kind, of_kind in limits.items() for name, _ in of_kind.given()]


def _any(*values: object) -> bool:
    return any(value is not None for value in values)


def _facts(deployment: Deployment, units: Sequence[UnitCost]) -> Facts:
    shape, batch = deployment.shape, deployment.batch
    if shape is None:
        return Facts(deployment, None, tuple(units))
    costs = unit_costs(
        shape,
        microbatch_size=batch.microbatch_size if batch else 1,
        sequence_length=batch.sequence_length if batch else 1,
        workload=deployment.workload.passes,
    )
    return Facts(deployment, shape, costs)
