"""A rehearsal's verdict in a terminal: claims with WOULD PASS or WOULD FAIL, ranks, memory, where the step goes.

    claims
    WOULD PASS  compute balance      ≤ 1 pp   0.31 pp [0.22, 0.41]   rehearsed
                why, over the whole width

Every figure has its label: rehearsed, modelled or declared. Nothing here is measured: the deployment did not run.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hybrid_runtime.report.cells import bytes_text, duration_text, printable, ranges_text
from hybrid_runtime.report.plain_table import plain_table
from hybrid_runtime.report.terminal import ShareBar
from hybrid_runtime.would import RankRow, RehearsalVerdict, Would, WouldClaim

STYLES: dict[Would, str] = {"WOULD PASS": "green", "WOULD FAIL": "red", "UNDECIDED": "yellow"}
_OPS = {"<=": "≤", ">=": "≥"}
_CLOCKS = {"thread_cpu": "thread CPU time", "cuda_event": "CUDA events"}


def rehearsal_tables(verdict: RehearsalVerdict) -> RenderableType:
    """Everything that a rehearsal says, the overall line last."""
    parts: list[RenderableType] = [Text(_what(verdict), style="bold"), Text(f"company: {printable(verdict.company)}")]
    if verdict.claims:
        parts.append(_claims(verdict.claims))
    parts += [_compute(verdict), _memory(verdict), _actions(verdict), _step(verdict)]
    parts.append(Text(f"\ncommunication, modelled: {printable(verdict.network)}"))
    if verdict.baseline_ns is not None:
        text = f"baseline {verdict.baseline}: a step of {duration_text(verdict.baseline_ns / 1e9)}, modelled"
        parts.append(Text(text))
    parts += [Text(f"note: {printable(note)}", style="yellow") for note in verdict.notes]
    parts.append(Text(f"\n{overall_text(verdict)}", style="bold"))
    return Group(*parts)


def overall_text(verdict: RehearsalVerdict) -> str:
    """The last line: how many targets would hold."""
    counts = {word: sum(claim.outcome == word for claim in verdict.claims) for word in STYLES}
    said = ", ".join(f"{number} {word}" for word, number in counts.items() if number) or "no targets"
    return f"{printable(verdict.name)}, rehearsed: {said}"


def _what(verdict: RehearsalVerdict) -> str:
    return (
        f"{printable(verdict.name)}: {verdict.mesh}, {printable(verdict.schedule)}, {verdict.num_microbatches} "
        f"microbatches, every pipeline rank alone on {printable(verdict.device)}: {verdict.steps} steps, "
        f"{_CLOCKS[verdict.clock]}"
    )


def _claims(claims: Sequence[WouldClaim]) -> RenderableType:
    """One line per claim, in columns that are the same in every line, and below it what set the figure."""
    rows = [(claim.outcome, printable(claim.text), _required(claim), _figure(claim), claim.label) for claim in claims]
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    parts: list[RenderableType] = [Text("\nclaims", style="bold")]
    for claim, (outcome, text, *figures) in zip(claims, rows, strict=True):
        line = Table.grid(padding=(0, 2, 0, 0), expand=True)
        for number, width in enumerate(widths):
            if number == 1:  # the claim alone shrinks and wraps
                line.add_column(ratio=1, overflow="fold")
            else:
                line.add_column(width=width, no_wrap=True)
        line.add_row(Text(outcome, style=STYLES[claim.outcome]), Text(text, style="bold"), *map(Text, figures))
        parts += [line, Padding(Text(printable(claim.detail)), (0, 0, 0, widths[0] + 2))]
    return Group(*parts)


def _required(claim: WouldClaim) -> str:
    return f"{_OPS[claim.op]} {claim.threshold} {claim.unit}"


def _figure(claim: WouldClaim) -> str:
    if claim.figure is None:
        return "n/a"
    ends = "" if claim.lower in (None, claim.figure) else f" [{claim.lower}, {claim.upper}]"
    return f"{claim.figure} {claim.unit}{ends}"


def _compute(verdict: RehearsalVerdict) -> RenderableType:
    """Shares are of the pipeline: its ranks together are 100 %."""
    headings = ("pp rank", "ranks", "stages", "compute share", "FLOP share", "compute a step", "busy (modelled)")
    table = plain_table("ranks: compute, rehearsed; all pipeline ranks together are 100 %", *headings)
    for column in table.columns[3:]:
        column.justify = "right"
    largest = max(row.compute_ns for row in verdict.ranks) or 1
    for row in verdict.ranks:
        bar = ShareBar(row.compute_ns / largest, f"{row.compute_share} %")
        figures = f"{row.flop_share} %", duration_text(row.compute_ns / 1e9), f"{row.busy} %"
        table.add_row(*map(Text, _names(row)), bar, *map(Text, figures))
    return table


def _memory(verdict: RehearsalVerdict) -> RenderableType:
    parts = list(verdict.ranks[0].memory_parts)
    table = plain_table(
        f"ranks: peak memory of each device, rehearsed ({verdict.memory_label}); all pipeline ranks together are 100 %",
        "pp rank",
        "share",
        "peak",
        *parts,
        gap=1,
    )
    for column in table.columns[1:]:
        column.justify = "right"
    largest = max(row.memory_bytes for row in verdict.ranks) or 1
    for row in verdict.ranks:
        bar = ShareBar(row.memory_bytes / largest, f"{row.memory_share} %")
        figures = (bytes_text(row.memory_bytes), *(bytes_text(row.memory_parts[part]) for part in parts))
        table.add_row(Text(str(row.pp_rank)), bar, *map(Text, figures))
    return table


def _actions(verdict: RehearsalVerdict) -> RenderableType:
    table = plain_table("actions: compute of one, rehearsed", "stage", "kind", "median", "p10", "p90", "spread")
    for column in table.columns[2:]:
        column.justify = "right"
    for row in verdict.ranks:
        for key, (low, middle, high) in sorted(row.actions.items()):
            spread = f"{100 * (high - low) / middle:.1f} %" if middle else "n/a"
            kind = key.lstrip("0123456789")
            times = (duration_text(time / 1e9) for time in (middle, low, high))
            table.add_row(*map(Text, (key.removesuffix(kind), kind, *times, spread)))
    return table


def _step(verdict: RehearsalVerdict) -> RenderableType:
    """Where the modelled step of every rank goes; the parts of a rank add up to it."""
    names = {
        "forward_ns": "F",
        "backward_ns": "B and I",
        "weight_grad_ns": "W",
        "optimizer_ns": "optimizer",
        "overhead_ns": "overhead",
        "tensor_parallel_ns": "tp",
        "data_parallel_ns": "dp",
        "idle_ns": "idle",
    }
    time = verdict.predicted.step_time
    ends = (
        f"{duration_text(time.p50_ns / 1e9)} [{duration_text(time.p10_ns / 1e9)}, {duration_text(time.p90_ns / 1e9)}]"
    )
    shown = [name for name in names if any(getattr(rank.time, name) for rank in verdict.predicted.ranks)]
    table = plain_table(f"step: {ends}, modelled; its parts", "pp rank", *(names[name] for name in shown))
    for column in table.columns[1:]:
        column.justify = "right"
    for rank in verdict.predicted.ranks:
        figures = (duration_text(getattr(rank.time, name) / 1e9) for name in shown)
        table.add_row(Text(str(rank.pp_rank)), *map(Text, figures))
    return table


def _names(row: RankRow) -> tuple[str, str, str]:
    return str(row.pp_rank), ranges_text(row.ranks), ranges_text(row.stages)
