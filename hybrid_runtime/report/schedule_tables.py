"""Comparison of schedules and simulated plans as tables and as values for JSON. Everything here is modelled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hybrid_runtime.exact import decimal_text
from hybrid_runtime.planner.simulate import Simulated
from hybrid_runtime.report.cells import duration_text, printable
from hybrid_runtime.report.schedule_facts import Case, Row, figures, num_messages
from hybrid_runtime.schedule.account import RankTime
from hybrid_runtime.schedule.replayed import Replay
from hybrid_runtime.schedule.step_costs import Time

_HEADINGS = ("schedule", "bubble %", "span bubble %", "busy %", "peak", "equal", "messages")
_RANK_HEADINGS = ("rank", "busy", "busy %", "warm-up", "waiting", "cool-down", "peak in flight")


def comparison_table(case: Case, rows: Sequence[Row]) -> RenderableType:
    """One line per schedule; those that do not accept the case stand below, each with its reason."""
    table = _table(*_HEADINGS)
    for row in rows:
        if row.step is not None:
            table.add_row(printable(row.name), *_figures(row.step))
    notes = [f"{row.name}: {row.problem}" for row in rows if row.step is None]
    bounds = [row for row in rows if row.bound_bubble is not None]
    notes += [
        f"{row.name}: no order of its placement has a bubble below {_percent(row.bound_bubble)} %" for row in bounds
    ]
    return Group(
        Text(f"modelled: {_case_text(case)}"),
        table,
        *(Text(printable(note)) for note in notes),
        Text(
            "peak: most microbatches of its whole share that any rank holds; messages: activations and gradients "
            "between ranks in a step; span bubble: if steps follow without a barrier",
            style="dim",
        ),
    )


def comparison_values(case: Case, rows: Sequence[Row]) -> dict[str, Any]:
    """The same for JSON; shares are 0 to 1, exact figures are decimal text."""
    return {
        "evidence": "modelled",
        "pp_degree": case.pp_degree,
        "num_microbatches": case.num_microbatches,
        "costs": {name: str(getattr(case, name)) for name in ("forward", "input_grad", "weight_grad", "hop")},
        "schedules": [{"name": row.name} | _values(row) for row in rows],
    }


def simulation_table(simulated: Simulated) -> RenderableType:
    """Step time, where every rank's time goes, and what the critical path consists of."""
    plan, step = simulated.plan, simulated.step
    table = _table(*_RANK_HEADINGS)
    for rank, (times, busy) in enumerate(zip(simulated.rank_times, step.busy)):
        parts = (_time(part, simulated.unit) for part in (times.warm_up, _waiting(times), times.cool_down))
        share = _percent(_share(busy, step.makespan))
        table.add_row(str(rank), _time(busy, simulated.unit), share, *parts, str(simulated.peak_in_flight[rank]))
    path = ", ".join(f"{kind} {share} %" for kind, share in _path_shares(simulated).items())
    return Group(
        Text(
            f"modelled from FLOPs, free communication: {printable(plan.name)}, {printable(plan.schedule)}, "
            f"{plan.mesh}, {plan.num_microbatches} microbatches"
        ),
        Text(
            f"step time {_time(step.makespan, simulated.unit)}{_unit_text(simulated)}, bubble {_percent(step.bubble)} %"
        ),
        table,
        Text(f"critical path: {path or 'nothing costs time'}"),
    )


def simulation_values(simulated: Simulated) -> dict[str, Any]:
    """The same for JSON; times as exact text in `unit`."""
    step = simulated.step
    return {
        "evidence": "modelled",
        "name": simulated.plan.name,
        "schedule": simulated.plan.schedule,
        "unit": simulated.unit,
        "step_time": _exact(step.makespan),
        "bubble": float(step.bubble),
        "ranks": [
            {
                "busy": _exact(busy),
                "idle": _exact(step.makespan - busy),
                "warm_up": _exact(times.warm_up),
                "waiting": {str(source): _exact(time) for source, time in times.waiting.items()},
                "cool_down": _exact(times.cool_down),
                "peak_in_flight": peak,
            }
            for times, busy, peak in zip(simulated.rank_times, step.busy, simulated.peak_in_flight)
        ],
        "critical_path": {
            "by_kind": {kind: _exact(time) for kind, time in simulated.critical_path.by_kind.items()},
            "by_rank": {str(rank): _exact(time) for rank, time in simulated.critical_path.by_rank.items()},
        },
    }


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="underline dim")
    table.add_column(headings[0], no_wrap=True)
    for heading in headings[1:]:
        table.add_column(heading, justify="right")
    return table


def _case_text(case: Case) -> str:
    return (
        f"{case.pp_degree} pipeline ranks, {case.num_microbatches} microbatches, F : I : W = "
        f"{decimal_text(case.forward)} : {decimal_text(case.input_grad)} : {decimal_text(case.weight_grad)}, "
        f"hop {decimal_text(case.hop)}"
    )


def _figures(step: Replay) -> tuple[str, ...]:
    peaks = figures(step).peaks
    return (
        _percent(step.bubble),
        _percent(step.span_bubble),
        _percent(1 - step.bubble),
        decimal_text(max(peaks), 2),
        "yes" if len(set(peaks)) == 1 else f"no, from {decimal_text(min(peaks), 2)}",
        str(num_messages(step)),
    )


def _values(row: Row) -> dict[str, Any]:
    if row.step is None:
        return {"problem": row.problem}
    found = figures(row.step)
    values: dict[str, Any] = {
        "makespan": float(found.makespan),
        "bubble": float(found.bubble),
        "span_bubble": float(row.step.span_bubble),
        "utilisation": float(1 - found.bubble),
        "peak_microbatches": [float(peak) for peak in found.peaks],
        "equal_peaks": len(set(found.peaks)) == 1,
        "messages": num_messages(row.step),
    }
    return values if row.bound_bubble is None else values | {"bound_bubble": float(row.bound_bubble)}


def _path_shares(simulated: Simulated) -> Mapping[str, str]:
    whole = simulated.step.makespan
    return {kind: _percent(_share(time, whole)) for kind, time in simulated.critical_path.by_kind.items()}


def _waiting(times: RankTime) -> Time:
    return sum(times.waiting.values(), start=0)


def _share(part: Time, whole: Time) -> Fraction:
    return Fraction(part) / whole if whole else Fraction(0)


def _percent(share: Fraction | None) -> str:
    return decimal_text(100 * (share or Fraction(0)), 2)


def _exact(time: Time) -> str:
    return str(Fraction(time))


def _unit_text(simulated: Simulated) -> str:
    """What the times are in, where they do not say it themselves."""
    words = {"s": "", "FLOP": " FLOPs of one rank", "forward": " forwards of a stage"}
    return words[simulated.unit]


def _time(time: Time, unit: str) -> str:
    """A duration in seconds as people write it, or a number of the table's unit."""
    if unit == "s":
        return duration_text(float(time))
    return f"{float(time):.4g}"
