"""A verdict in a terminal, 80 to 200 columns wide; in a file or pipe the same as plain text.

    claims
    verdict  claim                     required  measured [interval]   hardware
    PASS     compute balance           ≤ 1 pp    0.42 pp [0.12, 0.71]  CPU, own cores
             why, over the whole width, wrapped, never cut

Everything from a file is drawn as `Text`, which rich never reads as markup.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hybrid_runtime.report import cells, method_cells, served_cells
from hybrid_runtime.report.plain_table import HEADING, plain_table
from hybrid_runtime.report.prediction_cells import claim_modelled
from hybrid_runtime.report.prediction_tables import prediction_parts
from hybrid_runtime.verdict import Claim, DeviceRow, Outcome, Side, StaticCheck, Verdict, count, overall

STYLES = {
    Outcome.PASS: "bold green",
    Outcome.FAIL: "bold red",
    Outcome.INCONCLUSIVE: "bold yellow",
    Outcome.NOT_APPLICABLE: "dim",
    Outcome.ERROR: "bold white on red",
}
MAX_WIDTH = 200
_BAR_CELLS = 10
_ROOM_FOR_HARDWARE = 100  # columns; narrower leaves the column out


def print_verdict(verdict: Verdict, console: Console) -> None:
    """Prints everything that a verdict says, the overall line last."""
    print_plainly(verdict_tables(verdict), console)


def print_checks(name: str, checks: Sequence[StaticCheck], console: Console) -> None:
    """Prints what the file alone says, the overall line last; a plan that fails is not to be run, and that is said."""
    outcome, code = overall(check.outcome for check in checks)
    parts = [check_table(name, checks), _overall(outcome, name, count(check.outcome for check in checks), code)]
    if outcome is Outcome.FAIL:
        parts.append(Text("This plan must not be run: mend what failed, the rows say how.", style=STYLES[outcome]))
    print_plainly(Group(*parts), console)


def print_plainly(renderable: RenderableType, console: Console) -> None:
    """Prints; outside a terminal without the blanks that tables leave at the ends of lines."""
    width = min(console.width, MAX_WIDTH)
    if console.is_terminal:
        console.print(renderable, width=width)
        return
    with console.capture() as captured:
        console.print(renderable, width=width)
    text = "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())
    console.file.write(text.encode(console.encoding, "replace").decode(console.encoding))


def verdict_tables(verdict: Verdict) -> RenderableType:
    """Static checks, claims, devices, sides, warnings and the overall line."""
    parts: list[RenderableType] = []
    if verdict.static_checks:
        parts.append(check_table(verdict.name, verdict.static_checks))
    if verdict.claims:
        parts.append(claims_table(verdict.claims))
    if verdict.devices:
        parts += [device_table(verdict.devices), memory_table(verdict.devices)]
        parts += [Text(f"NVML, {line}") for line in cells.nvml_lines(verdict.devices)]
    parts += _served(verdict)
    if verdict.sides:
        parts.append(sides_table(verdict.sides))
    parts += prediction_parts(verdict)
    parts += _method_lines(verdict)
    parts += [Text()] if verdict.warnings else []
    parts += [Text(f"warning: {cells.printable(warning)}", style="yellow") for warning in verdict.warnings]
    parts += [Text(f"override: {line}", style="yellow") for line in cells.override_lines(verdict.overrides)]
    parts.append(_overall(verdict.verdict, verdict.name, verdict.counts, verdict.exit_code))
    return Group(*parts)


def _served(verdict: Verdict) -> list[RenderableType]:
    """Where requests are served: latencies of both sides, and what devices did for prefills and decodes."""
    parts: list[RenderableType] = []
    latencies, phases = list(served_cells.latency_rows(verdict.served)), served_cells.phase_rows(verdict.served)
    if latencies:
        table = plain_table("requests: latency", *served_cells.LATENCY_HEADINGS)
        for row in latencies:
            table.add_row(*map(Text, row))
        parts += [table, *(Text(line) for line in served_cells.served_sentences(verdict.served))]
    if phases:
        table = plain_table("requests: prefill and decode per device", *served_cells.PHASE_HEADINGS)
        for row in phases:
            table.add_row(*map(Text, row))
        parts += [table, Text(served_cells.PHASE_NOTE, style="dim")]
    return parts


def _method_lines(verdict: Verdict) -> list[Text]:
    """How the verdict was reached, a line per self-test, look, outlying side and baseline that decides nothing."""
    lines = []
    for check in verdict.self_test:
        outcome, text, figure, found = method_cells.self_check_cells(check)
        shown = "" if figure == "-" else f" {figure}"
        lines.append(Text.assemble("self-test ", (outcome, STYLES[check.outcome]), f" {text}:{shown} {found}"))
    if verdict.sampling:
        lines.append(Text(f"sampling: {method_cells.sampling_text(verdict.sampling)}"))
    lines += [Text(f"outliers, {method_cells.outliers_text(row)}") for row in verdict.outliers if row.steps]
    for row in verdict.other_baselines:
        kind, mesh, matched, latency, throughput, detail = method_cells.other_baseline_cells(row)
        resources = "as many devices" if matched == "yes" else "other number of devices"
        figures = f"latency reduction {latency}, throughput gain {throughput}"
        lines.append(Text(f"baseline {kind} ({mesh}, {resources}; decides nothing): {figures}; {detail}"))
    return [Text(), *lines] if lines else []


def _overall(outcome: Outcome, name: str, counts: dict[str, int], exit_code: int) -> Text:
    return Text(f"\n{cells.overall_text(outcome, name, counts, exit_code)}", style=STYLES[outcome])


def check_table(name: str, checks: Sequence[StaticCheck]) -> RenderableType:
    """What the file alone says of the deployment `name`: outcome, requirement, what was found."""
    table = plain_table(f"{cells.printable(name)}: checks before any process starts", "verdict", "requirement", "found")
    table.columns[1].ratio, table.columns[2].ratio = 2, 5
    for check in checks:
        outcome, *texts = cells.check_cells(check)
        table.add_row(Text(outcome, style=STYLES[check.outcome], no_wrap=True), *map(_wrapped, texts))
    table.expand = True
    return table


def claims_table(claims: Sequence[Claim]) -> RenderableType:
    """What was promised and measured; the reason stands under each row, over the whole width."""
    return _Claims(claims)


class _Claims:
    def __init__(self, claims: Sequence[Claim]) -> None:
        self._claims = claims

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # On a narrow terminal the hardware column is left out: the line that says how it was measured names it too.
        last = None if options.max_width >= _ROOM_FOR_HARDWARE else -1
        rows = [row[:last] for row in (cells.CLAIM_HEADINGS, *map(cells.claim_cells, self._claims))]
        widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
        yield Text("\nclaims", style="bold")
        yield _fixed_line([Text(text, style=HEADING) for text in rows[0]], widths)
        for claim, (outcome, text, *figures) in zip(self._claims, rows[1:], strict=True):
            yield _fixed_line(
                [Text(outcome, style=STYLES[claim.outcome]), Text(text, style="bold"), *map(Text, figures)], widths
            )
            lines = ((cells.claim_why(claim), ""), (cells.claim_how(claim), "dim"), (claim_modelled(claim), "cyan"))
            for words, style in lines:
                if words:
                    yield Padding(Text(words, style=style, overflow="fold"), (0, 0, 0, widths[0] + 2))


def _fixed_line(texts: Sequence[Text], widths: Sequence[int]) -> RenderableType:
    """One line of columns that are the same in every line; only the claim, the second, shrinks and wraps."""
    line = Table.grid(padding=(0, 2, 0, 0), expand=True)
    for column, width in enumerate(widths):
        if column == 1:
            line.add_column(ratio=1, overflow="fold")
        else:
            line.add_column(width=width, no_wrap=True)
    line.add_row(*texts)
    return line


def device_table(rows: Sequence[DeviceRow]) -> RenderableType:
    """Each physical device's compute: share (as a bar, the largest full), busy part of the window, waits."""
    table = plain_table("devices: compute in the measured steps", *cells.COMPUTE_HEADINGS)
    largest = max((_number(row.time_share) for row in rows), default=0.0)
    for column in table.columns[3:]:
        column.justify = "right"
    for row in rows:
        device, ranks, stages, share, *figures = cells.compute_cells(row)
        bar = ShareBar(_number(row.time_share) / largest if largest else 0.0, share)
        table.add_row(Text(device, overflow="fold"), Text(ranks), Text(stages), bar, *map(Text, figures))
    return table


def memory_table(rows: Sequence[DeviceRow]) -> RenderableType:
    """Each physical device's memory by part: peaks of the parts, which need not fall together."""
    table = plain_table("devices: peak memory", *cells.memory_headings(rows), gap=1)
    largest = max((row.memory_bytes or 0 for row in rows), default=0)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        ranks, share, *figures = cells.memory_cells(row, rows)
        bar = ShareBar((row.memory_bytes or 0) / largest if largest else 0.0, share)
        table.add_row(Text(ranks), bar, *map(Text, figures))
    return table


def sides_table(sides: Sequence[Side]) -> RenderableType:
    """Candidate and baseline next to each other."""
    (_, *names), *rows = cells.side_rows(sides)
    table = plain_table("what ran", "", *names)
    for what, *texts in rows:
        table.add_row(Text(what, style="dim"), *map(_wrapped, texts))
    return table


class ShareBar:
    """A share as a bar and a figure: "████████▌  33.3 %"; without block characters "########-"."""

    def __init__(self, filled: float, text: str) -> None:
        self._filled = min(max(filled, 0.0), 1.0)
        self._text = text
        self._figure_width = max(len("33.33 %"), cell_len(text))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = max(0, min(_BAR_CELLS, options.max_width - 1 - self._figure_width))
        full, rest = divmod(round(self._filled * room * 8), 8)
        if console.is_terminal and not options.ascii_only:
            bar = "█" * full + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[rest]
        else:
            bar = "#" * full + ("-" if rest >= 4 else "")
        yield Text.assemble((f"{bar:<{room}}", "cyan"), f" {self._text:>{self._figure_width}}", no_wrap=True)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """The figure is never cut; a narrow terminal shortens the bar."""
        return Measurement(1 + self._figure_width, _BAR_CELLS + 1 + self._figure_width)


def _wrapped(text: str) -> Text:
    return Text(text, overflow="fold")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
