"""A plan as tables: what was chosen, what every rank does and holds, what it was compared with, why not the others."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hybrid_runtime.plan import Plan, recompute_text
from hybrid_runtime.predicted import PredictedBaseline, PredictedStep
from hybrid_runtime.report.cells import bytes_text, duration_text, printable
from hybrid_runtime.report.plan_words import SHOWN_REASONS, interval_text, labels_text
from hybrid_runtime.report.serving_plan_tables import serving_plan_tables

_RANKS = ("pp rank", "stages", "compute share", "compute", "collectives", "idle", "memory share", "memory", "rows")
_COMPARED = ("compared with", "mesh", "schedule", "microbatches", "step time [p10, p90]", "slower")


def plan_tables(plan: Plan, sentences: Sequence[str], why_not: Sequence[str]) -> RenderableType:
    """Everything that `hybrid-runtime plan` prints.

    Args:
        plan: with its prediction.
        sentences: notes on where figures come from and what balance is left undone.
        why_not: one line per group of layouts that were not chosen.
    """
    predicted = plan.predicted
    assert predicted is not None, "a plan that was searched has a prediction"
    if predicted.serving is not None:
        return serving_plan_tables(plan, predicted, predicted.serving, sentences, why_not)
    more = len(why_not) - SHOWN_REASONS
    return Group(
        Text(f"chosen: {_chosen(plan)}", style="bold"),
        Text(f"step time {interval_text(predicted.step_time)}, {_shares(plan, predicted)}"),
        Text(f"figures: {labels_text(predicted)}", style="dim"),
        Text(),
        _rank_table(plan, predicted),
        Text(),
        _compared_table(predicted),
        Text("other candidates", style="underline dim"),
        *_candidates(predicted),
        Text("why not the others" if why_not else "no other layout was looked at", style="underline dim"),
        *(Text(printable(line)) for line in why_not[:SHOWN_REASONS]),
        *([Text(f"and {more} more reasons")] if more > 0 else []),
        Text(),
        *(Text(printable(sentence)) for sentence in sentences),
    )


def _chosen(plan: Plan) -> str:
    return (
        f"{plan.mesh}, {printable(plan.schedule)}, {len(plan.stages)} stages, {plan.num_microbatches} microbatches of "
        f"{plan.microbatch_size}{recompute_text([stage.recompute for stage in plan.stages])}"
        f"{', optimizer sharded' if plan.shard_optimizer else ''}"
    )


def _shares(plan: Plan, predicted: PredictedStep) -> str:
    step_ns = max(1, predicted.step_time.p50_ns)
    busy = min(rank.time.compute_ns for rank in predicted.ranks)
    idle = sum(rank.time.idle_ns for rank in predicted.ranks) / (step_ns * len(predicted.ranks))
    rate = plan.tokens_per_step * 10**9 / step_ns
    bound = predicted.bound_ns / max(1, predicted.pipeline_ns)
    return (
        f"{rate:,.0f} tokens/s, least busy rank computes {100 * busy / step_ns:.1f} %, bubble {100 * idle:.1f} %, "
        f"{100 * bound:.1f} % of the pipeline's time is its lower bound"
    ).replace(",", " ", rate >= 1000)


def _rank_table(plan: Plan, predicted: PredictedStep) -> Table:
    table = _table(_RANKS)
    devices = plan.tp_degree * plan.dp_degree
    compute = sum(rank.time.compute_ns for rank in predicted.ranks) * devices
    memory = sum(rank.memory.ledger_peak for rank in predicted.ranks) * devices
    for rank in predicted.ranks:
        time = rank.time
        table.add_row(
            str(rank.pp_rank),
            ", ".join(str(stage.index) for stage in plan.stages_of(rank.pp_rank)),
            _percent(time.compute_ns, compute),
            duration_text(time.compute_ns / 1e9),
            duration_text((time.tensor_parallel_ns + time.data_parallel_ns) / 1e9),
            duration_text(time.idle_ns / 1e9),
            _percent(rank.memory.ledger_peak, memory),
            bytes_text(rank.memory.ledger_peak),
            plan.embedding_pieces[rank.pp_rank] if plan.embedding_pieces else "-",
        )
    return table


def _compared_table(predicted: PredictedStep) -> Table:
    table = _table(_COMPARED)
    for one in predicted.baselines:
        table.add_row(one.kind, one.mesh, one.schedule, str(one.num_microbatches or "-"), *_against(one))
    return table


def _candidates(predicted: PredictedStep) -> list[Text]:
    """One line each, with what a trial measured."""
    lines = []
    for other in predicted.alternatives:
        step = "-" if other.step_time_ns is None else duration_text(other.step_time_ns / 1e9)
        if other.measured_ns is not None:
            step += f" predicted, {duration_text(other.measured_ns / 1e9)} measured"
        lines.append(Text(printable(f"{step}: {other.description}: {other.why_not}")))
    return lines


def _against(one: PredictedBaseline) -> tuple[str, str]:
    if one.step_time is None:
        return "-", printable(one.why_not or "")
    return interval_text(one.step_time), f"x {one.speed_up}"


def _percent(part: int, whole: int) -> str:
    return f"{float(Fraction(100 * part, max(1, whole))):.3f} %"


def _table(headings: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="underline dim")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table
