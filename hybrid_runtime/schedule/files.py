"""Action lists as files, in the form that torch.distributed.pipelining reads and writes, and their check.

    0F0,0F1,,0B0,0B1          CSV: one row per pipeline rank, one cell per action; an empty cell is an idle tick and is
    ,1F0,1B0,1F1,1B1          ignored. Compute only, or with SENDs and RECVs.

A file says nothing about itself: which rank holds a stage, and how many stages and microbatches there are, is read off
the actions.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import NamedTuple

from hybrid_runtime.errors import PlanError
from hybrid_runtime.schedule.actions import Action, ActionList, Cell, CellList, Kind, flatten, parse_cell, texts
from hybrid_runtime.schedule.check import CheckResult, check, check_compute
from hybrid_runtime.schedule.finding import Finding

MAX_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class ListFile:
    """What a file of action lists holds.

    Attributes:
        cells: per pipeline rank, everything that stands in its row.
        columns: per pipeline rank, in which cell of its row each of `lists` stands, counted from 0.
        lists: per pipeline rank, its actions without overlaps and without data-parallel actions.
        stage_to_rank: inferred.
        num_microbatches: inferred.
    """

    cells: tuple[CellList, ...]
    columns: tuple[tuple[int, ...], ...]
    lists: tuple[ActionList, ...]
    stage_to_rank: tuple[int, ...]
    num_microbatches: int

    @property
    def workload(self) -> str:
        """ "forward" where there is no backward at all, else "train"."""
        kinds = {action.kind for actions in self.lists for action in actions}
        return "train" if kinds & {Kind.B, Kind.I, Kind.W} else "forward"

    @property
    def has_messages(self) -> bool:
        """Whether the lists say themselves when to send and to receive."""
        return any(not action.kind.is_compute for actions in self.lists for action in actions)


def lists_text(lists: Sequence[Sequence[Cell]]) -> str:
    """The lists of all pipeline ranks as a file holds them; `read_lists` reads them back exactly."""
    return "".join(",".join(texts(cells)) + "\n" for cells in lists)


def save_lists(path: Path, lists: Sequence[Sequence[Cell]]) -> None:
    """Writes `lists_text`.

    Raises:
        PlanError: the file cannot be written.
    """
    try:
        path.write_text(lists_text(lists), encoding="utf-8")
    except OSError as problem:
        raise PlanError(f"{path}: cannot be written ({problem.strerror})") from None


def read_lists(path: Path) -> ListFile:
    """Reads a file of action lists.

    Raises:
        PlanError: it cannot be read or holds no lists; names the first cell that is wrong.
    """
    found = _read(path)
    if isinstance(found, CheckResult):
        raise PlanError(f"{path}: {in_file(found.findings[0])}")
    return found


def check_file(path: Path) -> CheckResult:
    """Checks a file of action lists: findings name a row (`rank`) and a cell (`position`), both counted from 0.

    The first finding is the first thing to mend; `in_file` words it with rows and cells counted from 1.

    Raises:
        PlanError: the file cannot be read.
    """
    found = _read(path)
    if isinstance(found, CheckResult):
        return found
    checker = check if found.has_messages else check_compute
    result = checker(found.lists, found.stage_to_rank, found.num_microbatches, found.workload)
    findings = tuple(
        finding._replace(position=_column(found.columns[finding.rank], finding.position)) for finding in result.findings
    )
    return replace(result, findings=findings)


def _column(columns: Sequence[int], position: int) -> int:
    """The cell of an action, or the one behind a row's last action for what is missing."""
    return columns[position] if position < len(columns) else max(columns, default=-1) + 1


def in_file(finding: Finding) -> str:
    """A finding of `check_file` in the words of the file: "row 2, cell 7, 1B0: is missing"."""
    return f"row {finding.rank + 1}, cell {finding.position + 1}, {finding.action}: {finding.message}"


class _Written(NamedTuple):
    """A cell and where it stands."""

    row: int
    column: int
    cell: Cell


def _read(path: Path) -> ListFile | CheckResult:
    """The file, or findings about cells that are no actions or name stages and microbatches that cannot be."""
    rows = _rows(path)
    findings, written = list[Finding](), list[_Written]()
    for row, cells in enumerate(rows):
        for column, text in enumerate(cells):
            if text:
                try:
                    written.append(_Written(row, column, parse_cell(text[:80])))
                except ValueError as problem:
                    findings.append(Finding(row, column, text[:40], str(problem)))
    findings += [] if findings else _gaps(written)
    return CheckResult(tuple(findings), {}, ()) if findings else _inferred(len(rows), written)


def _rows(path: Path) -> list[list[str]]:
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else problem
        raise PlanError(f"{path}: cannot be read ({reason}); name a CSV file of action lists") from None
    if len(content) > MAX_BYTES:
        raise PlanError(f"{path}: is larger than 64 MiB; that is no file of action lists")
    try:
        lines = content.decode("utf-8-sig").splitlines()
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines)]
    except (UnicodeDecodeError, csv.Error) as problem:
        raise PlanError(f"{path}: is not CSV text ({problem}); save it with one row per pipeline rank") from None
    while rows and not any(rows[-1]):
        rows.pop()
    if not rows:
        raise PlanError(f"{path}: holds no actions; write one row per pipeline rank, for example '0F0,0B0'")
    return rows


def _compute(written: Sequence[_Written]) -> list[tuple[_Written, Action]]:
    return [(item, action) for item in written for action in flatten((item.cell,)) if action.kind.is_compute]


def _gaps(written: Sequence[_Written]) -> list[Finding]:
    """The first action beyond a stage that nobody works on, or beyond a microbatch that hardly any stage works on.

    Most likely its number is wrong, and taking it at its word would make everything else look incomplete.
    """
    compute = _compute(written)
    if not compute:
        return [Finding(0, 0, "-", "no row computes anything: there is no F")]
    stages = {action.stage for _, action in compute}
    stage = next(number for number in range(len(stages) + 1) if number not in stages)
    beyond = [(item, action, "stage", stage) for item, action in compute if action.stage > stage]
    worked_on = Counter(microbatch for _, microbatch in {(a.stage, a.microbatch) for _, a in compute})
    microbatch = next(number for number in count() if 2 * worked_on[number] < len(stages))
    beyond += [(item, action, "microbatch", microbatch) for item, action in compute if action.microbatch >= microbatch]
    return [
        Finding(
            item.row, item.column, str(action), f"hardly any action, or none, is of {name} {number}: a wrong number?"
        )
        for item, action, name, number in beyond[:1]
    ]


def _inferred(num_rows: int, written: Sequence[_Written]) -> ListFile:
    compute = [action for _, action in _compute(written)]
    homes = Counter((action.stage, item.row) for item, action in _compute(written))
    num_stages = 1 + max(action.stage for action in compute)
    by_row = [[item for item in written if item.row == row] for row in range(num_rows)]
    placed = [
        [(item.column, action) for item in row for action in flatten((item.cell,)) if not action.kind.is_data_parallel]
        for row in by_row
    ]
    return ListFile(
        cells=tuple(tuple(item.cell for item in row) for row in by_row),
        columns=tuple(tuple(column for column, _ in row) for row in placed),
        lists=tuple(tuple(action for _, action in row) for row in placed),
        stage_to_rank=tuple(  # where most of a stage's actions stand: a stray one is then the one that is wrong
            max(range(num_rows), key=lambda row: homes[stage, row]) for stage in range(num_stages)
        ),
        num_microbatches=1 + max(action.microbatch for action in compute),
    )
