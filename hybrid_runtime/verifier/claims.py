"""The promises about one side alone: compute balance, memory balance, utilisation, declared shares -> claims.

Each function judges one target and returns one `Claim`; the figures come from `metrics`, the rule from `decide`, and
the reasons not to believe a clock from `trust`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.exact import decimal_text, parse_share
from hybrid_runtime.verdict import Claim, Outcome
from hybrid_runtime.verifier.decide import (
    decide_exact_range,
    decide_floor,
    decide_range,
    decide_repeated_range,
)
from hybrid_runtime.verifier.decision import Decision
from hybrid_runtime.verifier.finding import Finding, blocked, claim, figures, found, undecided
from hybrid_runtime.verifier.metrics import Metrics, four_forms, percent
from hybrid_runtime.verifier.statistics import Rows
from hybrid_runtime.verifier.terms import Terms
from hybrid_runtime.verifier.trust import Blocker, mismatch, time_blocker

# Thread CPU time of ranks that share cores rises with what their neighbours do. It is believed to a few percent only,
# unless the planted self-test of the same run showed that it resolves 1 pp.
THREAD_CPU_TRUST = Fraction(10, 100)
WITNESS_GAP = Fraction(25, 10_000)  # wall time without waits and thread CPU time must agree on every share to 0.25 pp


def promises(deployment: Deployment, metrics: Metrics, terms: Terms) -> Iterator[Claim]:
    """Every claim about the candidate alone."""
    targets, declared = deployment.targets, deployment.declared
    if targets.compute_balance_pp is not None:
        yield balance_claim(deployment, metrics, terms)
    if (limit := targets.memory_balance_pp) is not None:
        text = f"no two devices' shares of peak memory differ by more than {limit:f} pp"
        finding = memory_balance(metrics, Fraction(limit) / 100)
        shown = _range_text(declared.memory_distribution)
        yield claim("memory_balance", "alloc_peak_share_range", ("<=", limit, "pp"), text, finding, shown)
    if (theta := targets.utilisation_percent) is not None:
        text = f"every device computes for at least {theta:f} % of the step (communication and waits excluded)"
        finding = utilisation(deployment, metrics, Fraction(theta) / 100, terms)
        yield claim("utilisation", "compute_busy_min", (">=", theta, "%"), text, finding, declared.utilisation)
    yield from declared_shares(deployment, metrics)


def balance_claim(deployment: Deployment, metrics: Metrics, terms: Terms, phase: str = "") -> Claim:
    """Compute balance, which is promised; of all compute, or of one phase of serving, whose actions `metrics` hold."""
    targets = deployment.targets
    limit, metric = targets.compute_balance_pp, targets.compute_balance_metric
    assert limit is not None
    unit = "%" if metric.endswith("rel_spread") else "pp"
    what = f"compute for {phase}s" if phase else "compute"
    text = f"no two devices' {what} differs by more than {limit:f} {unit} ({metric})"
    finding = compute_balance(deployment, metrics, Fraction(limit) / 100, terms)
    if phase:
        return claim(f"compute_balance_{phase}", f"{metric}_{phase}", ("<=", limit, unit), text, finding)
    shown = _range_text(deployment.declared.computation_distribution)
    return claim("compute_balance", metric, ("<=", limit, unit), text, finding, shown)


def compute_balance(deployment: Deployment, metrics: Metrics, limit: Fraction, terms: Terms) -> Finding:
    """Whether no device computes more than `limit` above another, in time or in counted work.

    `limit` is a share of the total for the `_range` metrics, and of the mean for `_rel_spread` (N times the range).
    """
    devices, metric = len(metrics.devices), deployment.targets.compute_balance_metric
    if devices < 2:
        return Finding(Outcome.NOT_APPLICABLE, f"one device ({metrics.devices[0]}) has nothing to be balanced with")
    scale = devices if metric.endswith("rel_spread") else 1
    if metric.startswith("work"):
        amounts = metrics.work_flops
        if not sum(amounts):
            return undecided("not_measured", "no FLOPs were counted")
        decision, method = decide_exact_range(amounts, limit / scale), "FLOPs counted on the modules"
        measured = figures(decision, metrics, method, "deterministic", 100 * scale)
        return found(decision, measured, _pair_text(metrics, amounts, decision))
    table = metrics.compute_ns
    if not table or not all(map(sum, table)):
        return undecided("not_measured", f"no compute times ({metrics.clock}) were recorded")
    decision = _time_balance(deployment, metrics, table, limit / scale, terms)
    method = _method("pairwise t", decision, metrics)
    measured = figures(decision, metrics, method, scale=100 * scale)
    return found(decision, measured, _pair_text(metrics, _totals(table), decision))


def _time_balance(deployment: Deployment, metrics: Metrics, table: Rows, delta: Fraction, terms: Terms) -> Decision:
    """The range rule, then everything that may forbid to believe the clock."""
    shared = metrics.clock == "thread_cpu"
    trusted_to = THREAD_CPU_TRUST if shared and not terms.clock_resolves else Fraction()
    batch_steps = deployment.measurement.batch_steps
    decision = decide_range(table, delta, batch_steps, trusted_to=trusted_to, alpha=terms.alpha)
    blocker = mismatch(deployment, metrics) if shared else time_blocker(deployment, [metrics], terms.driver)
    threads = max(rank.header.host.threads_per_rank for rank in metrics.side.ranks)
    if blocker is None and shared and threads > 1:
        note = f"ranks of {threads} threads share cores, and a rank's thread clock does not see its other threads"
        blocker = Blocker("oversubscribed", note)
    blocker = blocker or terms.balance
    if blocker or decision.outcome is Outcome.INCONCLUSIVE:
        return blocked(decision, blocker)
    apart = _instruments_apart(metrics, threads)
    gross = decision.outcome is Outcome.FAIL and decision.lower > 2 * delta
    if apart > max(WITNESS_GAP, delta / 4) and not gross:
        note = f"wall time without waits and thread CPU time disagree by {percent(apart, 1)} pp on a device's share"
        return decision.because("instrument_disagreement", note)
    return decision


def _instruments_apart(metrics: Metrics, threads: int) -> Fraction:
    """Largest difference between a device's share by wall time and by thread CPU time; 0 where there is one clock."""
    wall, cpu = metrics.compute_on("wall"), metrics.compute_on("thread_cpu")
    if metrics.hardware != "cpu" or threads > 1 or not wall or not cpu:
        return Fraction()
    by_wall, by_cpu = _totals(wall), _totals(cpu)
    if not sum(by_cpu):
        return Fraction()
    pairs = zip(by_wall, by_cpu, strict=True)
    return max(abs(Fraction(a, sum(by_wall)) - Fraction(b, sum(by_cpu))) for a, b in pairs)


def memory_balance(metrics: Metrics, limit: Fraction) -> Finding:
    """Whether no device's peak memory is more than `limit` of the total above another's, by exact bytes."""
    repeats = metrics.memory_bytes
    if len(metrics.devices) < 2:
        return Finding(Outcome.NOT_APPLICABLE, f"one device ({metrics.devices[0]}) has nothing to be balanced with")
    if not repeats or not all(map(sum, repeats)):
        return undecided("not_measured", f"no {metrics.memory_method} was recorded on all ranks in one step")
    decision = decide_repeated_range(repeats, limit)
    method = f"{metrics.memory_method} per device, {decision.samples} repeats"
    measured = figures(decision, metrics, method, "deterministic")
    return found(decision, measured, _pair_text(metrics, metrics.memory_peaks, decision))


def utilisation(deployment: Deployment, metrics: Metrics, theta: Fraction, terms: Terms) -> Finding:
    """Whether the least busy device computes for at least `theta` of the step windows."""
    table = metrics.compute_ns
    if not table:
        return undecided("not_measured", f"no compute times ({metrics.clock}) were recorded")
    rows = [[*busy, window] for busy, window in zip(table, metrics.windows_ns, strict=True)]
    decision = decide_floor(rows, theta, deployment.measurement.batch_steps, alpha=terms.alpha)
    decision = blocked(decision, time_blocker(deployment, [metrics], terms.driver) or terms.balance)
    measured = figures(decision, metrics, _method("ratio of totals, t", decision, metrics))
    return found(decision, measured, _busy_text(metrics, decision.worst[0]))


def declared_shares(deployment: Deployment, metrics: Metrics) -> Iterator[Claim]:
    """Whether the shares that somebody wrote down are those of the modules that ran, within their own rounding.

    A declaration for another number of devices is left to the static checks.
    """
    for kind, shares, amounts, method in (
        ("computation", deployment.declared.computation_distribution, metrics.work_flops, "FLOPs of the modules"),
        ("memory", deployment.declared.memory_distribution, metrics.memory_peaks, metrics.memory_method),
    ):
        if shares and len(shares) == len(metrics.devices) and len(shares) == len(amounts) and sum(amounts):
            decision, detail = _compare_declared(shares, amounts)
            finding = found(decision, figures(decision, metrics, method, "deterministic"), detail)
            text = f"the declared {kind} shares are those of the modules that ran, within their rounding"
            yield claim(f"declared_{kind}", f"declared_{kind}_excess", ("<=", 0, "pp"), text, finding)


def _compare_declared(shares: dict[str, str], amounts: Sequence[int]) -> tuple[Decision, str]:
    """The figure is the largest |declared - counted| beyond what the declaration's rounding hides."""
    excess, texts = Fraction(), []
    for (name, text), amount in zip(shares.items(), amounts, strict=True):
        share = parse_share(text)
        excess = max(excess, abs(share.value - Fraction(amount, sum(amounts))) - share.half_unit)
        texts.append(f"{name} {text} is {percent(amount, sum(amounts))} %")
    outcome = Outcome.FAIL if excess else Outcome.PASS
    return Decision(outcome, "declaration_not_plan" if excess else None, excess, excess, excess), ", ".join(texts)


def _totals(table: Rows) -> list[int]:
    return [sum(column) for column in zip(*table, strict=True)]


def _method(rule: str, decision: Decision, metrics: Metrics) -> str:
    batches = f"{decision.samples} batches of {decision.steps_per_batch} steps"
    return f"{rule} over {batches}, {metrics.clock}, one launch"


def _pair_text(metrics: Metrics, amounts: Sequence[int], decision: Decision) -> str:
    high, low = decision.worst
    return (
        f"{metrics.devices[high]} holds {percent(amounts[high], sum(amounts))} %, "
        f"{metrics.devices[low]} {percent(amounts[low], sum(amounts))} %: {four_forms(amounts)}"
    )


def _busy_text(metrics: Metrics, device: int) -> str:
    exposed, bubble = metrics.shares_of_window(device)
    pp_rank = metrics.side.ranks[metrics.ranks_of[device][0]].header.pp
    ideals = metrics.side.plan.prediction.ideal_busy_ppm
    allows = pp_rank < len(ideals) and not metrics.side.deployment.serves
    ideal = f", the schedule allows {percent(ideals[pp_rank], 10**6)} % busy" if allows else ""
    return (
        f"least busy is {metrics.devices[device]}: bubble {percent(bubble, 1)} %, "
        f"exposed wait {percent(exposed, 1)} %{ideal}"
    )


def _range_text(shares: dict[str, str] | None) -> str | None:
    if not shares:
        return None
    values = [parse_share(text).value for text in shares.values()]
    return decimal_text((max(values) - min(values)) * 100)
