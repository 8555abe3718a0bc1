"""Two runs side by side, as a page and in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from hybrid_runtime.report import cells
from hybrid_runtime.report.page.distributions import distributions
from hybrid_runtime.report.page.render import page
from hybrid_runtime.report.pairs import (
    ABSENT,
    DEVICE_HEADINGS,
    Judged,
    check_pairs,
    claim_pairs,
    device_pairs,
    notice,
    provenance_pairs,
    self_check_pairs,
    side_pairs,
    stage_pairs,
)
from hybrid_runtime.report.plain_table import plain_table
from hybrid_runtime.report.run_data import Run
from hybrid_runtime.report.terminal import STYLES


def compare_page(first: Run, second: Run) -> str:
    """The page that puts two runs side by side."""
    figures = [figure for figure in (distributions(first, second),) if figure is not None]
    verdicts = first.verdict, second.verdict
    return page(
        "compare.html.j2",
        figures,
        verdicts=verdicts,
        names=_names(first, second),
        notice=notice(*verdicts),
        judged={
            "Claims": claim_pairs(*verdicts),
            "Self-tests": self_check_pairs(*verdicts),
            "Checks of the file whose outcome differs": check_pairs(*verdicts),
        },
        device_headings=DEVICE_HEADINGS,
        devices=device_pairs(*verdicts),
        sides=[*side_pairs(*verdicts), *stage_pairs(first.plan, second.plan)],
        provenance=provenance_pairs(*verdicts),
    )


def compare_tables(first: Run, second: Run) -> RenderableType:
    """The same for a terminal: verdicts, claims, self-tests and what ran."""
    verdicts, names = (first.verdict, second.verdict), _names(first, second)
    parts: list[RenderableType] = []
    for name, verdict in zip(names, verdicts):
        words = cells.overall_text(verdict.verdict, verdict.name, verdict.counts, verdict.exit_code)
        parts.append(Text.assemble(f"{name}: ", (words, STYLES[verdict.verdict])))
    parts.append(Text(notice(*verdicts)))
    for title, rows in (("claims", claim_pairs(*verdicts)), ("self-tests", self_check_pairs(*verdicts))):
        if rows:
            parts.append(_judged_table(title, rows, names))
    sides = plain_table("what ran", "", *names)
    for pair in (*side_pairs(*verdicts), *stage_pairs(first.plan, second.plan)):
        sides.add_row(Text(pair.what, style="dim"), *(Text(value, overflow="fold") for value in pair.values))
    return Group(*parts, sides, Text())


def _names(first: Run, second: Run) -> tuple[str, str]:
    """The runs by their folders, as short as tells them apart."""
    short, whole = ([cells.printable(text) for text in texts] for texts in (
        (first.folder.resolve().name, second.folder.resolve().name), (str(first.folder), str(second.folder))
    ))  # fmt: skip
    one, other = short if short[0] != short[1] else whole
    return one, other


def _judged_table(title: str, rows: Sequence[Judged], names: Sequence[str]) -> RenderableType:
    drawn = plain_table(title, "", *names)
    for row in rows:
        both = [
            Text.assemble((outcome, STYLES[outcome]), f" {found}") if outcome else Text(ABSENT)
            for outcome, found in zip(row.outcomes, row.found)
        ]
        drawn.add_row(Text(row.text, overflow="fold"), *both)
    return drawn
