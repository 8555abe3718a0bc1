"""How predictions came out over runs: whoever plans must see a model that errs the same way every time.

    runs/predictions.jsonl      a line per judged run whose plan predicted something, appended, never rewritten
    runs/demo-20260101-120000/

Lines are written whole by one call, so runs that end together do not mix theirs. A run that is judged again counts
once. Errors are shown and never used: a prediction is corrected by mending its model, not by a factor.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from hybrid_runtime.exact import decimal_text
from hybrid_runtime.run_folder import RunFolder
from hybrid_runtime.verdict import Verdict
from hybrid_runtime.verdict_prediction import JudgedPrediction

FILE = "predictions.jsonl"
DRIFT = Fraction(5, 100)  # a sign test at this level calls errors one-sided


class Bias(NamedTuple):
    """Signed errors of one quantity, or of one term of the time budget, over the runs on one machine.

    Attributes:
        machine: devices and host.
        source: where the plans had their costs from.
        what: a quantity ("busy"), whose error is predicted / measured - 1, median over ranks; or a term
            ("term forward"), whose error is a share of the measured time.
        median_percent: of the runs' errors, decimal text.
        optimistic, pessimistic: runs with an error below and above 0.
        one_sided: whether chance alone would hardly put so many on one side (sign test, two-sided, at DRIFT).
    """

    machine: str
    source: str
    what: str
    runs: int
    median_percent: str
    optimistic: int
    pessimistic: int
    one_sided: bool


def history_file(folder: RunFolder) -> Path:
    """The history beside a run folder; a run inside another run's folder shares that one's."""
    path = folder.path.resolve()
    inside = RunFolder(path.parent).records.is_dir()
    return (path.parent.parent if inside else path.parent) / FILE


def note_prediction(folder: RunFolder, verdict: Verdict) -> str | None:
    """Adds a judged run to the history; nothing where its plan predicted nothing. Returns why it could not be added."""
    judged = verdict.prediction
    if judged is None or judged.reason == "no_prediction":
        return None
    line = {
        "run_folder": folder.name,
        "records": _digest(verdict),
        "name": verdict.name,
        "judged_utc": datetime.now(UTC).isoformat(),
        "machine": machine_of(verdict),
        "plan_fingerprint": verdict.plan_fingerprint,
        "source": judged.source,
        "verdict": judged.verdict.value,
        "errors_percent": dict(_errors(judged)),
    }
    file = history_file(folder)
    try:
        _append(file, json.dumps(line) + "\n")
    except OSError as problem:
        return f"{file}: cannot be written ({problem.strerror}); this run is missing in the history of predictions"
    return None


def machine_of(verdict: Verdict) -> str:
    """Devices and hosts of a run, in words."""
    if verdict.provenance is None:
        return "unknown"
    devices = sorted({facts.get("name", "?") for facts in verdict.provenance.devices.values()})
    return f"{', '.join(devices)} on {', '.join(sorted(verdict.provenance.hosts))}"


def read_bias(file: Path) -> list[Bias]:
    """The bias of every quantity and term by machine; nothing where there is no history. Damaged lines are left out."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    runs = {(run["run_folder"], run["records"]): run for line in lines if (run := _parsed(line)) is not None}
    return list(_biases(runs.values()))


def _biases(runs: Iterable[dict[str, Any]]) -> Iterator[Bias]:
    errors: dict[tuple[str, str, str], list[Fraction]] = {}
    for run in runs:
        for what, percent in run["errors_percent"].items():
            errors.setdefault((run["machine"], run["source"], what), []).append(Fraction(percent))
    for (machine, source, what), found in errors.items():
        low, high = sum(error < 0 for error in found), sum(error > 0 for error in found)
        middle = decimal_text(median(found), 2)
        yield Bias(machine, source, what, len(found), middle, low, high, _one_sided(low, high))


def _one_sided(low: int, high: int) -> bool:
    """Sign test: chance of so uneven a split, or a more uneven one, of fair coins; ties say nothing."""
    tosses, fewer = low + high, min(low, high)
    chance = Fraction(2 * sum(math.comb(tosses, heads) for heads in range(fewer + 1)), 2**tosses)
    return tosses > 0 and chance <= DRIFT


def _errors(judged: JudgedPrediction) -> Iterator[tuple[str, str]]:
    for quantity in judged.quantities:
        if quantity.median_error != "n/a":
            yield quantity.id, quantity.median_error
    whole = sum(row.measured_ns for row in judged.budget)
    for row in judged.budget:
        if whole > 0 and (row.predicted_ns or row.measured_ns):
            yield f"term {row.component}", decimal_text(Fraction(100 * row.error_ns, whole), 2)


def _digest(verdict: Verdict) -> str:
    """Names the records that were judged."""
    return hashlib.sha256("".join(file.sha256 for file in verdict.raw).encode()).hexdigest()


def _append(file: Path, line: str) -> None:
    """One write at the end of the file; a line that an earlier run left cut off is ended first."""
    descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        cut = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, (b"\n" if cut else b"") + line.encode())
    finally:
        os.close(descriptor)


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        run = json.loads(line)
        for percent in run["errors_percent"].values():
            Fraction(percent)
        complete = all(isinstance(run[name], str) for name in ("run_folder", "records", "machine", "source"))
    except (ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError):
        return None
    return run if complete else None


def shown_first(biases: Sequence[Bias]) -> list[Bias]:
    """Quantities before terms, those that drift before the others."""
    return sorted(biases, key=lambda bias: (bias.machine, bias.what.startswith("term"), not bias.one_sided, bias.what))
