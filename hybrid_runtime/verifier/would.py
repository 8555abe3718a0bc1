"""Judges a rehearsal folder: shares of compute and memory as rehearsed, everything about speed as modelled.

The rules are the verifier's own (`decide.py`). Tensor-parallel ranks of a stage and replicas are alike, so the shares
of pipeline ranks are those of devices times tp x dp, and so is the limit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction

from hybrid_runtime.calibration import Calibration, refuse_other_machine
from hybrid_runtime.deployment import Deployment, load_deployment
from hybrid_runtime.errors import RecordsError
from hybrid_runtime.exact import decimal_text
from hybrid_runtime.plan import Plan, read_plan
from hybrid_runtime.planner.network import Network, network_of
from hybrid_runtime.planner.rehearsed import busy_ns, predicted_step
from hybrid_runtime.predicted import Label, PredictedStep
from hybrid_runtime.rehearsal import FILE, Rehearsal, RehearsedRank, read_rehearsal
from hybrid_runtime.run_folder import RunFolder
from hybrid_runtime.verdict import Outcome
from hybrid_runtime.verifier.decide import decide_exact_range, decide_range, decide_repeated_range
from hybrid_runtime.verifier.decision import Decision
from hybrid_runtime.verifier.metrics import four_forms, percent
from hybrid_runtime.would import RankRow, RehearsalVerdict, Would, WouldClaim

_WORDS: dict[Outcome, Would] = {Outcome.PASS: "WOULD PASS", Outcome.FAIL: "WOULD FAIL"}


def judge_rehearsal(folder: RunFolder, calibration: Calibration | None = None) -> RehearsalVerdict:
    """What a rehearsal folder says; the same folder and calibration always say the same.

    Raises:
        RecordsError: the folder is damaged, or its files do not belong together.
        UsageError: the calibration was taken on another machine.
    """
    deployment, plan, rehearsal = read_folder(folder)
    if calibration is not None:
        refuse_other_machine(calibration, rehearsal.fingerprint)
    network = network_of(calibration, deployment.hardware)
    predicted = predicted_step(rehearsal, plan, network)
    baseline, why_not = _baseline(folder, network)
    claims = [*_balance(deployment, plan, rehearsal), *_speed(deployment, plan, predicted, baseline, why_not)]
    notes = [*rehearsal.notes, *network.missing(), *_unlike_shards(rehearsal)]
    notes += [why_not] if why_not and folder.baseline.path.is_dir() else []
    return RehearsalVerdict(
        name=deployment.name,
        mesh=str(plan.mesh),
        schedule=plan.schedule,
        num_microbatches=plan.num_microbatches,
        device=rehearsal.device,
        clock=rehearsal.clock,
        steps=min(len(rank.steps) for rank in rehearsal.ranks),
        company=str(rehearsal.company),
        network=network.source,
        memory_label="byte ledger" if rehearsal.clock == "thread_cpu" else "allocator's peak",
        claims=tuple(claims),
        ranks=tuple(_rows(plan, rehearsal, predicted)),
        predicted=predicted,
        baseline=None if deployment.baseline is None else deployment.baseline.kind,
        baseline_ns=None if baseline is None else baseline.step_time.p50_ns,
        notes=tuple(notes),
    )


def read_folder(folder: RunFolder) -> tuple[Deployment, Plan, Rehearsal]:
    """The three files of a rehearsal.

    Raises:
        RecordsError: one is missing, or the rehearsal is of another plan.
    """
    rehearsal, plan = read_rehearsal(folder.path / FILE), read_plan(folder.plan)
    if rehearsal.plan_fingerprint != plan.fingerprint:
        raise RecordsError(f"{folder.path}: {FILE} was made for another plan than plan.json; rehearse again")
    if [rank.pp_rank for rank in rehearsal.ranks] != list(range(plan.pp_degree)):
        raise RecordsError(f"{folder.path}: {FILE} does not hold every pipeline rank of plan.json; rehearse again")
    return load_deployment(folder.deployment), plan, rehearsal


def _baseline(folder: RunFolder, network: Network) -> tuple[PredictedStep | None, str]:
    """The baseline's prediction, or why there is none."""
    other = folder.baseline
    if other.infeasible.is_file():
        return None, f"the baseline cannot be rehearsed: {other.infeasible.read_text(encoding='utf-8').strip()}"
    if not (other.path / FILE).is_file():
        return None, "no baseline was rehearsed"
    _, plan, rehearsal = read_folder(other)
    return predicted_step(rehearsal, plan, network), ""


def _balance(deployment: Deployment, plan: Plan, rehearsal: Rehearsal) -> Iterator[WouldClaim]:
    targets, alike = deployment.targets, plan.tp_degree * plan.dp_degree
    if (limit := targets.compute_balance_pp) is not None:
        metric = targets.compute_balance_metric
        relative, work = metric.endswith("rel_spread"), metric.startswith("work")
        scale = Fraction(plan.pp_degree * alike if relative else 1)
        unit = "%" if relative else "pp"
        share = Fraction(limit) / 100 / scale * alike
        if work:
            amounts, label = [rank.flops for rank in rehearsal.ranks], "FLOPs counted on the modules"
            decision = decide_exact_range(amounts, share) if sum(amounts) else None
        else:
            steps = [[step.compute_ns for step in row] for row in zip(*(rank.steps for rank in rehearsal.ranks))]
            amounts, label = [sum(column) for column in zip(*steps)], f"{len(steps)} steps of each rank alone"
            decision = decide_range(steps, share, 1)
        text = f"no two devices' compute differs by more than {limit:f} {unit} ({metric})"
        yield _range_claim("compute_balance", text, limit, unit, decision, amounts, scale / alike, label, alike)
    if (limit := targets.memory_balance_pp) is not None:
        columns = [_peaks(rank) for rank in rehearsal.ranks]
        repeats = [list(row) for row in zip(*columns)]
        decision = decide_repeated_range(repeats, Fraction(limit) / 100 * alike)
        text = f"no two devices' shares of peak memory differ by more than {limit:f} pp"
        most = [max(column) for column in columns]
        how = f"{len(repeats)} turns of each rank alone"
        yield _range_claim("memory_balance", text, limit, "pp", decision, most, Fraction(1, alike), how, alike)


def _range_claim(
    name: str,
    text: str,
    limit: object,
    unit: str,
    decision: Decision | None,
    amounts: Sequence[int],
    scale: Fraction,
    how: str,
    alike: int,
) -> WouldClaim:
    """Of devices, of which `alike` share what a pipeline rank's amount stands for."""
    if len(amounts) < 2:
        return _undecided(
            name, text, "<=", limit, unit, "rehearsed", "one pipeline rank has nothing to be balanced with"
        )
    if decision is None:
        return _undecided(name, text, "<=", limit, unit, "rehearsed", "no FLOPs were counted")
    high, low = amounts.index(max(amounts)), amounts.index(min(amounts))
    each = [amount for amount in amounts for _ in range(alike)]  # as the verifier counts a run's devices
    words = "every device of pp rank" if alike > 1 else "pp rank"
    shares = ", ".join(f"{words} {rank} holds {percent(amounts[rank], sum(each))} %" for rank in (high, low))
    why = f"{decision.reason}: {decision.note}; " if decision.reason else ""
    return WouldClaim(
        id=name,
        text=text,
        op="<=",
        threshold=f"{limit:f}",
        unit=unit,
        figure=decimal_text(decision.point * 100 * scale),
        lower=decimal_text(max(decision.lower, Fraction()) * 100 * scale),
        upper=decimal_text(decision.upper * 100 * scale),
        outcome=_WORDS.get(decision.outcome, "UNDECIDED"),
        label="rehearsed",
        detail=f"{why}{shares}: {four_forms(each)}; {how}",
    )


def _undecided(name: str, text: str, op: str, limit: object, unit: str, label: Label, detail: str) -> WouldClaim:
    values = {"id": name, "text": text, "op": op, "threshold": f"{limit:f}", "unit": unit, "figure": None}
    return WouldClaim.model_validate(values | {"outcome": "UNDECIDED", "label": label, "detail": detail})


def _speed(
    deployment: Deployment, plan: Plan, predicted: PredictedStep, baseline: PredictedStep | None, why_not: str
) -> Iterator[WouldClaim]:
    targets, step_ns = deployment.targets, predicted.step_time.p50_ns
    if (theta := targets.utilisation_percent) is not None:
        busy = [Fraction(rank.time.compute_ns + rank.time.optimizer_ns, step_ns) for rank in predicted.ranks]
        worst = busy.index(min(busy))
        text = f"every device computes for at least {theta:f} % of the step (communication and waits excluded)"
        detail = f"least busy is pp rank {worst}: {_where(predicted, worst)}"
        yield _point_claim("utilisation", text, theta, min(busy) * 100, "%", detail)
    against = f"the baseline's ({deployment.baseline.kind})" if deployment.baseline else "a baseline's"
    for name, limit, text in (
        ("latency_reduction", targets.latency_reduction_percent, f"% less time per step than {against}"),
        ("throughput_gain", targets.throughput_gain_percent, f"% more tokens/s than {against}"),
    ):
        if limit is None:
            continue
        if baseline is None:
            yield _undecided(name, f"at least {limit:f} {text}", ">=", limit, "%", "modelled", why_not)
            continue
        other_ns = baseline.step_time.p50_ns
        gain = 1 - Fraction(step_ns, other_ns) if name == "latency_reduction" else Fraction(other_ns, step_ns) - 1
        detail = f"a step of {step_ns / 1e6:.4g} ms against {other_ns / 1e6:.4g} ms"
        yield _point_claim(name, f"at least {limit:f} {text}", limit, gain * 100, "%", detail)


def _point_claim(name: str, text: str, limit: object, figure: Fraction, unit: str, detail: str) -> WouldClaim:
    outcome: Would = "WOULD PASS" if figure >= Fraction(str(limit)) else "WOULD FAIL"
    return WouldClaim(
        id=name,
        text=text,
        op=">=",
        threshold=f"{limit:f}",
        unit=unit,
        figure=decimal_text(figure),
        outcome=outcome,
        label="modelled",
        detail=detail,
    )


def _where(predicted: PredictedStep, rank: int) -> str:
    time = predicted.ranks[rank].time
    parts = {
        "tensor-parallel collectives": time.tensor_parallel_ns,
        "data-parallel": time.data_parallel_ns,
        "overhead": time.overhead_ns,
        "bubble and messages": time.idle_ns,
    }
    whole = predicted.step_time.p50_ns
    return ", ".join(f"{name} {percent(part, whole)} %" for name, part in parts.items() if part)


def _peaks(rank: RehearsedRank) -> list[int]:
    return [memory.allocated_peak or memory.ledger_peak or 0 for memory in rank.memory]


def _rows(plan: Plan, rehearsal: Rehearsal, predicted: PredictedStep) -> Iterator[RankRow]:
    compute = [busy_ns(rank) for rank in rehearsal.ranks]
    flops = [rank.flops for rank in rehearsal.ranks]
    memory = [max(_peaks(rank)) for rank in rehearsal.ranks]
    for index, rank in enumerate(rehearsal.ranks):
        mesh, parts = plan.mesh, predicted.ranks[index].memory
        yield RankRow(
            pp_rank=rank.pp_rank,
            ranks=tuple(sorted(r for r in range(mesh.world_size) if mesh.place(r).pp == rank.pp_rank)),
            stages=rank.stages,
            compute_ns=compute[index],
            compute_share=percent(compute[index], sum(compute)),
            flop_share=percent(flops[index], sum(flops)),
            busy=percent(compute[index], predicted.step_time.p50_ns),
            memory_bytes=memory[index],
            memory_share=percent(memory[index], sum(memory)),
            memory_parts={
                name: getattr(parts, name)
                for name in ("parameters", "gradients", "optimizer", "activations", "buffers")
            },
            actions={key: _ends(rank, key) for key in rank.steps[0].actions_ns},
        )


def _ends(rank: RehearsedRank, key: str) -> tuple[int, int, int]:
    times = sorted(time for step in rank.steps for time in step.actions_ns[key])
    return times[len(times) // 10], times[len(times) // 2], times[-1 - len(times) // 10]


def _unlike_shards(rehearsal: Rehearsal) -> Iterator[str]:
    """Where another tensor-parallel shard of a stage holds other bytes than the one that stands for all."""
    for shard in rehearsal.other_shards:
        mine, its = max(_peaks(rehearsal.ranks[shard.pp_rank])), max(_peaks(shard))
        if mine != its:
            gap = percent(abs(mine - its), mine)
            yield f"shard {shard.tp_rank} of pp rank {shard.pp_rank} holds {gap} % more or fewer bytes than shard 0"
