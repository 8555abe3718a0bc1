"""What a report draws: the verdict of a run, its plan, and the records of both sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hybrid_runtime.nvml_records import NvmlRecords, read_nvml
from hybrid_runtime.plan import Plan, read_plan
from hybrid_runtime.prediction_history import Bias, history_file, read_bias, shown_first
from hybrid_runtime.records import TRACE, RankRecords, read_side
from hybrid_runtime.run_folder import RunFolder
from hybrid_runtime.serving.request_records import RequestRecord, read_requests
from hybrid_runtime.verdict import Verdict


class Window(NamedTuple):
    """One step of a side: from the first rank's start to the last rank's end, in ns on the clock of all hosts."""

    step: int
    block: int
    phase: str
    purpose: str
    start_ns: int
    end_ns: int

    @property
    def duration_ns(self) -> int:
        return self.end_ns - self.start_ns


@dataclass(frozen=True)
class Run:
    """A judged run as its folder holds it; `baseline` is empty where none ran, `driver` without NVML, requests where
    none are served.

    Attributes:
        history: how predictions came out over the runs beside this one.
    """

    folder: Path
    verdict: Verdict
    plan: Plan
    ranks: Sequence[RankRecords]
    baseline: Sequence[RankRecords] = ()
    driver: Sequence[NvmlRecords] = ()
    history: Sequence[Bias] = ()
    requests: Sequence[RequestRecord] = ()
    baseline_requests: Sequence[RequestRecord] = ()


def read_run(folder: Path, verdict: Verdict) -> Run:
    """Reads what a verdict was judged from.

    Raises:
        RecordsError: as `read_side` and `read_nvml`.
        PlanError: as `read_plan`.
    """
    files = RunFolder(folder)
    ran = files.baseline.records.is_dir() and not files.baseline.infeasible.is_file()
    return Run(
        folder=folder,
        verdict=verdict,
        plan=read_plan(files.plan),
        ranks=read_side(folder),
        baseline=read_side(files.baseline.path) if ran else (),
        driver=[read_nvml(path) for path in sorted(files.records.glob("nvml-*.jsonl"))],
        history=shown_first(read_bias(history_file(files))),
        requests=_requests(files),
        baseline_requests=_requests(files.baseline) if ran else (),
    )


def _requests(side: RunFolder) -> Sequence[RequestRecord]:
    return read_requests(side.requests) if side.requests.exists() else ()


def windows(ranks: Sequence[RankRecords]) -> list[Window]:
    """Every step that all ranks of a side have, warm-up included."""
    offsets = [rank.header.clock_offset_ns for rank in ranks]
    return [
        Window(
            step=row[0].step,
            block=row[0].block,
            phase=row[0].phase,
            purpose=row[0].purpose,
            start_ns=min(step.start_ns + offset for step, offset in zip(row, offsets)),
            end_ns=max(step.end_ns + offset for step, offset in zip(row, offsets)),
        )
        for row in zip(*(rank.steps for rank in ranks))
    ]


def measured_windows(ranks: Sequence[RankRecords], purpose: str = TRACE) -> list[Window]:
    """The steps that are judged for a purpose."""
    return [one for one in windows(ranks) if one.phase == "measure" and one.purpose == purpose]


def chosen_steps(ranks: Sequence[RankRecords]) -> dict[int, str]:
    """The steps worth a picture, by number, and what is special about each: median, slowest, fastest, first measured.

    The median is that of an odd count, or the faster of the middle two. Only steps whose spans were recorded.
    """
    measured = measured_windows(ranks)
    ordered = sorted(measured, key=lambda window: window.duration_ns)
    if not measured:
        return {}
    wanted = {
        "median": ordered[(len(ordered) - 1) // 2],
        "slowest": ordered[-1],
        "fastest": ordered[0],
        "first measured": measured[0],
    }
    chosen: dict[int, str] = {}
    for words, window in wanted.items():
        chosen[window.step] = f"{chosen[window.step]}, {words}" if window.step in chosen else words
    return chosen
