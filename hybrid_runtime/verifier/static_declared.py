"""Static checks of figures that somebody wrote down: shares, speed figures and counts. Exact fractions only.

A declared figure is compared with its limit, with the other figures and with the plan; it never becomes a measurement.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

from hybrid_runtime.exact import Share, decimal_text, parse_share
from hybrid_runtime.verdict import Outcome, StaticCheck
from hybrid_runtime.verifier.static_rows import Facts, row, undecided


def balance_rows(facts: Facts) -> Iterator[StaticCheck]:
    """Computation, then memory: the range of the declared shares; then whether the plan has the declared shares."""
    targets, declared = facts.deployment.targets, facts.deployment.declared
    compute_limit, metric = targets.compute_balance_pp, targets.compute_balance_metric
    limit = None if compute_limit is None else Fraction(compute_limit) / 100
    if declared.computation_distribution is not None:
        yield declared_range(facts, metric, declared.computation_distribution, limit, "targets.compute_balance_pp")
        yield from declared_computation(facts, _parsed(declared.computation_distribution))
    elif limit is not None and metric.startswith("work"):
        yield from planned_work(facts, metric, limit)
    if declared.memory_distribution is not None:
        memory_limit = targets.memory_balance_pp
        limit = None if memory_limit is None else Fraction(memory_limit) / 100
        name = "alloc_peak_share_range"
        yield declared_range(facts, name, declared.memory_distribution, limit, "targets.memory_balance_pp")


def declared_range(
    facts: Facts, metric: str, texts: Mapping[str, str], limit: Fraction | None, limit_key: str
) -> StaticCheck:
    """Largest gap between declared shares against its limit; exactly the limit passes, whatever the spelling."""
    shares, devices = _parsed(texts), facts.deployment.hardware.devices
    gap, unit = _gap([share.value for share in shares.values()], metric)
    if limit is None:
        detail = f"the shares differ by {_percent(gap)} {unit}; no limit is given, add {limit_key}"
        return undecided(metric, "declared shares are balanced", "not_given", detail)
    requirement = f"declared shares differ by at most {_percent(limit)} {unit}"
    problems = []
    if devices is not None and len(shares) != devices:
        problems.append(f"{len(shares)} shares are declared for {devices} devices")
    if gap > limit:
        problems.append(f"{_listed(texts)} differ by {_percent(gap)} {unit}")
    return row(
        metric, requirement, problems, f"{_listed(texts)} differ by exactly {_percent(gap)} {unit}; {_admits(shares)}"
    )


def _gap(values: Sequence[Fraction], metric: str) -> tuple[Fraction, str]:
    """The figure of a metric as a fraction of 1, and its unit: a range in pp, or a spread relative to the mean in %."""
    gap = max(values) - min(values)
    return (len(values) * gap, "%") if metric.endswith("rel_spread") else (gap, "pp")


def _admits(shares: Mapping[str, Share]) -> str:
    """Which true gaps the rounding of the declared shares leaves possible: why this is no measurement."""
    low = max(share.value - share.half_unit for share in shares.values())
    low -= min(share.value + share.half_unit for share in shares.values())
    high = max(share.value + share.half_unit for share in shares.values())
    high -= min(share.value - share.half_unit for share in shares.values())
    admitted = f"{_percent(max(low, Fraction()))} to {_percent(high)} pp"
    return f"their rounding admits a true gap of {admitted}; nothing is measured"


def declared_computation(facts: Facts, shares: Mapping[str, Share]) -> Iterator[StaticCheck]:
    """Every declared share is the share of FLOPs that the cut gives this device, within the declared rounding."""
    requirement = "declared computation shares are those of the plan's FLOPs"
    true_shares = work_shares(facts)
    ranks = facts.deployment.mesh.world_size
    if facts.deployment.model is None or (facts.deployment.hardware.oversubscribe and len(shares) != ranks):
        return  # there is no plan to compare with, or none that says which ranks share a device
    if len(shares) != ranks:
        yield _not_plan(requirement, f"{len(shares)} shares are declared, and the plan has {ranks} ranks")
        return
    if not true_shares:
        detail = "the shares of the plan are not known: they need valid cuts, a [batch] and counted units"
        yield undecided("declared_computation", requirement, "not_given", detail)
        return
    pairs = [(device, share, true) for (device, share), true in zip(shares.items(), true_shares)]
    wrong = [
        f"{device} is declared as {share.text} and has {_percent(true)} %"
        for device, share, true in pairs
        if abs(share.value - true) > share.half_unit
    ]
    passed = row("declared_computation", requirement, [], "within the rounding of every share")
    yield _not_plan(requirement, "; ".join(wrong)) if wrong else passed


def _not_plan(requirement: str, detail: str) -> StaticCheck:
    name, outcome = "declared_computation", Outcome.FAIL
    return StaticCheck(id=name, requirement=requirement, outcome=outcome, reason="declaration_not_plan", detail=detail)


def planned_work(facts: Facts, metric: str, limit: Fraction) -> Iterator[StaticCheck]:
    """The gap between the devices' shares of FLOPs as cut, counted by closed form."""
    shares = work_shares(facts)
    if shares:
        gap, unit = _gap(shares, metric)
        different = ", ".join(f"{_percent(share)} %" for share in dict.fromkeys(shares))
        text = f"the cut gives {different}: {_percent(gap)} {unit} apart"
        requirement = f"planned work differs by at most {_percent(limit)} {unit}"
        yield row(metric, requirement, [text] if gap > limit else [], text)


def work_shares(facts: Facts) -> list[Fraction]:
    """Share of all FLOPs per rank, in rank order; empty where the plan's FLOPs are not known."""
    flops, mesh = facts.per_rank(facts.stage_flops), facts.deployment.mesh
    if not flops or mesh.world_size > 4096:
        return []
    whole = sum(flops) * mesh.tp_degree * mesh.dp_degree
    return [Fraction(flops[place.pp], whole) for place in mesh.places()]


def coherence(facts: Facts) -> Iterator[StaticCheck]:
    """At one load the same work per step means (1 - r)(1 + q) = 1; what the rounding of r and q admits must hold 1.

    Little's law for a closed loop: throughput is load divided by latency. Targets ("at least") are exempt.
    """
    declared = facts.deployment.declared
    if declared.latency_reduction is None or declared.throughput_gain is None:
        return
    r, q = parse_share(declared.latency_reduction), parse_share(declared.throughput_gain)
    low = (1 - r.value - r.half_unit) * (1 + q.value - q.half_unit)
    high = (1 - r.value + r.half_unit) * (1 + q.value + q.half_unit)
    product = (1 - r.value) * (1 + q.value)
    admitted = f"{decimal_text(low, 6)} to {decimal_text(high, 6)}"
    text = f"(1 - {r.text})(1 + {q.text}) = {decimal_text(product, 6)}, by their rounding {admitted}"
    implied = f"{r.text} less latency means {_percent(1 / (1 - r.value) - 1)} % more throughput"
    problems = [] if low <= 1 <= high else [f"{text}, but one load needs 1; {implied}"]
    requirement = f"{r.text} less latency and {q.text} more throughput at one load"
    yield row("coherence", requirement, problems, f"{text}, which holds 1")


def claim_count(facts: Facts, stated: Sequence[str]) -> Iterator[StaticCheck]:
    """Passed and failed add up to the total, and the total is the number of separate requirements in the file.

    Args:
        stated: the requirements that the file states, by metric id.
    """
    counts = facts.deployment.declared.requirements
    if counts is None:
        return
    problems = []
    if counts.passed + counts.failed != counts.total:
        problems.append(f"{counts.passed} + {counts.failed} = {counts.passed + counts.failed}, not {counts.total}")
    if counts.total != len(stated):
        problems.append(
            f"the file states {len(stated)} separate requirements ({', '.join(stated)}), not {counts.total}; a heading "
            "over several of them is not one more"
        )
    requirement = f"{counts.passed} passed and {counts.failed} failed of {counts.total} requirements"
    yield row("claim_count", requirement, problems, f"the file states these {len(stated)} requirements")


def _parsed(texts: Mapping[str, str]) -> dict[str, Share]:
    return {device: parse_share(text) for device, text in texts.items()}


def _percent(value: Fraction) -> str:
    """In percent: in full where the decimals end (declared figures), else to four places."""
    ends = (value * 10**32).denominator == 1
    return decimal_text(value * 100, 30 if ends else 4)


def _listed(texts: Mapping[str, str]) -> str:
    shown = [f"{device} {text}" for device, text in list(texts.items())[:8]]
    return ", ".join(shown) + (", ..." if len(texts) > 8 else "")
