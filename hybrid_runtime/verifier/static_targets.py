"""Static checks of promised speed: is there something to compare with, and does the schedule allow the utilisation?"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.errors import PlanError
from hybrid_runtime.exact import decimal_text, parse_bytes, parse_share
from hybrid_runtime.planner.baseline import baseline_deployment
from hybrid_runtime.schedule.choose import accept, busy_at_best, is_file, is_searched
from hybrid_runtime.schedule.ideal import least_microbatches
from hybrid_runtime.verdict import Outcome, StaticCheck
from hybrid_runtime.verifier.static_devices import least_device_bytes
from hybrid_runtime.verifier.static_plan import batch_divisible, items_under_way, stage_cover, tp_rows
from hybrid_runtime.verifier.static_rows import Facts, amount, row, undecided
from hybrid_runtime.verifier.static_serving import rank_cache_bytes


def speed_rows(facts: Facts) -> Iterator[StaticCheck]:
    """Latency and throughput. With a baseline they are measured and have no row here; without one nothing can be."""
    targets, declared = facts.deployment.targets, facts.deployment.declared
    if facts.deployment.baseline is not None:
        return
    for name, words, target, figure in (
        ("latency_reduction", "less latency", targets.latency_reduction_percent, declared.latency_reduction),
        ("throughput_gain", "more throughput", targets.throughput_gain_percent, declared.throughput_gain),
    ):
        promised = [f"at least {target:f} % {words}"] if target is not None else []
        reported = [f"{figure} reported"] if figure is not None else []
        requirement = ", ".join(promised + reported)
        advice = "compared with what? Add [baseline] with kind, for example single"
        if figure is not None:
            detail = f"no measurement stands behind {figure}; {advice}"
            yield undecided(name, requirement, "not_measured", detail)
        elif target is not None:
            yield undecided(name, requirement, "not_given", advice)


def stated_utilisation(deployment: Deployment) -> Fraction | None:
    """The highest compute-busy share that the file promises or reports."""
    targets, declared = deployment.targets, deployment.declared
    stated = [] if targets.utilisation_percent is None else [Fraction(targets.utilisation_percent) / 100]
    stated += [] if declared.utilisation is None else [parse_share(declared.utilisation).value]
    return max(stated, default=None)


def utilisation_row(facts: Facts) -> Iterator[StaticCheck]:
    """The schedule's own idle time leaves room for the utilisation, on equal stages with free communication."""
    deployment = facts.deployment
    busy = stated_utilisation(deployment)
    if busy is None:
        return
    if deployment.serves:
        yield _serving_utilisation(facts, busy)
        return
    name, ranks, workload = deployment.pipeline.schedule, deployment.mesh.pp_degree, deployment.workload.passes
    per_rank = deployment.pipeline.virtual_stages
    requirement = f"every device computes for {_percent(busy)} % of a step"
    try:
        needs = f"{name} has lists for one number of microbatches only"
        if is_searched(name):
            needs = "more microbatches allow more"
        elif not is_file(name):
            needed = least_microbatches(name, ranks, busy, workload, per_rank)
            needs = f"{name} on {ranks} pipeline ranks needs at least {needed} microbatches for it"
        if not facts.num_microbatches:
            yield undecided("compute_busy_min", requirement, "not_given", f"{needs}; none are given, add [batch]")
            return
        bound = busy_at_best(name, ranks, facts.num_microbatches, workload, per_rank)
    except PlanError as problem:
        yield row("compute_busy_min", requirement, [str(problem)], "")
        return
    allows = f"{facts.num_microbatches} microbatches allow at most {_percent(bound)} %"
    if busy <= bound and deployment.declared.utilisation is not None:
        detail = f"{allows}; no measurement stands behind {deployment.declared.utilisation}"
        yield undecided("compute_busy_min", requirement, "not_measured", detail)
        return
    problems = [f"{allows}; {needs}"] if busy > bound else []
    yield row("compute_busy_min", requirement, problems, f"reachable: {allows}")


def _serving_utilisation(facts: Facts, busy: Fraction) -> StaticCheck:
    """As many pipeline ranks work at a time as there are items under way."""
    deployment = facts.deployment
    requirement, ranks = f"every device computes for {_percent(busy)} % of a round", deployment.mesh.pp_degree
    if deployment.batch is None:
        return undecided(
            "compute_busy_min", requirement, "not_given", "nothing is known of what is under way: add [batch]"
        )
    items = items_under_way(deployment)
    bound = min(Fraction(1), Fraction(items, ranks))
    allows = f"{amount(items, 'item')} under way on {amount(ranks, 'pipeline rank')} allow at most {_percent(bound)} %"
    problems = (
        [f"{allows}; lower microbatch_size, or raise items_in_flight or global_batch_size"] if busy > bound else []
    )
    return row("compute_busy_min", requirement, problems, f"reachable: {allows}")


def baseline_row(facts: Facts) -> Iterator[StaticCheck]:
    """The baseline can be built and may fit; one that cannot makes every comparison undecidable."""
    deployment = facts.deployment
    if deployment.baseline is None:
        return
    requirement = f"baseline {deployment.baseline.kind}"
    if deployment.batch is None:
        yield undecided("baseline", requirement, "not_given", "its steps need sizes: add [batch]")
        return
    try:
        other = baseline_deployment(deployment)
    except PlanError as problem:
        yield undecided("baseline", requirement, "baseline_infeasible", str(problem))
        return
    problems = _infeasible(Facts(other, facts.shape, facts.costs), deployment.hardware.memory_per_device)
    if problems:
        yield undecided("baseline", requirement, "baseline_infeasible", f"{other.mesh}: {'; '.join(problems)}")
        return
    detail = f"{other.mesh}, {other.pipeline.schedule}, {amount(other.num_microbatches, 'microbatch', 'microbatches')}"
    if other.serves:
        detail = f"{detail}, at most {amount(items_under_way(other), 'item')} under way"
    yield row("baseline", requirement, [], detail)


def _infeasible(facts: Facts, memory: str | None) -> list[str]:
    rows = [batch_divisible(facts), stage_cover(facts)]
    rows += tp_rows(facts, facts.shape) if facts.shape is not None else []
    problems = [check.detail for check in rows if check.outcome is Outcome.FAIL]
    problems += _unaccepted(facts.deployment)
    needed = least_device_bytes(facts)
    if facts.deployment.serves:
        needed = None if needed is None else needed + max(rank_cache_bytes(facts), default=0)
    if memory is not None and needed is not None and needed > parse_bytes(memory):
        problems.append(f"its states alone need {decimal_text(Fraction(needed, 10**9), 3)} GB of {memory} per device")
    return problems


def _unaccepted(deployment: Deployment) -> list[str]:
    """Why the schedule does not accept the microbatches; nothing where there are none."""
    pipeline, ranks = deployment.pipeline, deployment.mesh.pp_degree
    try:
        if deployment.num_microbatches:
            numbers = deployment.num_microbatches, deployment.workload.passes, pipeline.virtual_stages
            accept(pipeline.schedule, ranks, *numbers)
    except PlanError as problem:
        return [str(problem)]
    return []


def _percent(value: Fraction) -> str:
    return decimal_text(value * 100, 2)
