"""The words of a verdict: every figure as the text that terminal and Markdown show. Nothing here draws or decides."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from hybrid_runtime.verdict import Claim, DeviceRow, Outcome, Side, StaticCheck, Verdict
from hybrid_runtime.verdict_measured import Measured

OUTCOME_WORDS = {
    Outcome.PASS: "passed",
    Outcome.FAIL: "failed",
    Outcome.INCONCLUSIVE: "inconclusive",
    Outcome.NOT_APPLICABLE: "not applicable",
    Outcome.ERROR: "ended in an error",
}
HARDWARE_WORDS = {"cuda": "CUDA", "cpu": "CPU, own cores", "cpu-oversubscribed": "CPU, shared cores"}
CLAIM_HEADINGS = ("verdict", "claim", "required", "measured [interval]", "hardware")
COMPUTE_HEADINGS = ("device", "ranks", "stages", "compute share", "FLOP share", "compute", "busy", "wait")
UNKNOWN = "n/a"
_OPS = {"<=": "≤", ">=": "≥"}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Text without control characters: a name from a file must not move the cursor or turn the writing direction."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def bytes_text(size_bytes: int) -> str:
    """12 595 200 -> "12.0 MiB"."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def duration_text(duration_s: float) -> str:
    """0.0834 -> "83.4 ms"."""
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
        if abs(duration_s) * factor >= 1 or unit == "µs":
            return f"{duration_s * factor:.3g} {unit}" if abs(duration_s) < 100 else f"{duration_s:.0f} s"
    raise AssertionError("the last unit always returns")


def rate_text(per_s: float) -> str:
    """12345.6 -> "12 346": tokens per second, thousands apart."""
    return f"{per_s:,.0f}".replace(",", " ") if per_s >= 100 else f"{per_s:.3g}"


def override_lines(overrides: Mapping[str, str]) -> list[str]:
    """Options that changed the exit code: the reader must see that it is not the verdict's own."""
    return [f"{name} counts as {value} in the exit code (--{name}={value})" for name, value in overrides.items()]


def ranges_text(numbers: Sequence[int]) -> str:
    """(0, 1, 2, 5) -> "0-2, 5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs) or "-"


def with_unit(number: str, unit: str) -> str:
    return f"{number} {unit}".rstrip() if number != UNKNOWN else UNKNOWN


def measured_text(measured: Measured | None, unit: str) -> str:
    """ "0.42 pp [0.12, 0.71]", "not measured", or that a figure is exact, or of too few samples for an interval."""
    if measured is None:
        return "not measured"
    if measured.lower == measured.upper == measured.point:
        how = "no interval" if measured.evidence == "measured" else "exact"
        return f"{with_unit(measured.point, unit)} ({how})"
    return f"{with_unit(measured.point, unit)} [{measured.lower}, {measured.upper}]"


def claim_cells(claim: Claim) -> tuple[str, ...]:
    """One claim under CLAIM_HEADINGS."""
    measured = claim.measured
    return (
        claim.outcome.value,
        printable(claim.text),
        printable(f"{_OPS[claim.op]} {with_unit(claim.threshold, claim.unit)}"),
        measured_text(measured, claim.unit),
        HARDWARE_WORDS[measured.hardware] if measured else "-",
    )


def claim_why(claim: Claim) -> str:
    """Why the verdict is what it is: the reason's code, and in words what set the figure."""
    return printable(f"{claim.reason}: {claim.detail}" if claim.reason else claim.detail)


def claim_how(claim: Claim) -> str:
    """Which metric was measured how, on what, and what somebody had declared; "" if there is nothing to say."""
    parts = []
    if claim.measured:
        where = HARDWARE_WORDS[claim.measured.hardware]
        parts.append(f"{claim.metric}, {claim.measured.evidence} on {where}: {claim.measured.method}")
    if claim.declared is not None:
        parts.append(f"declared: {claim.declared}")
    return printable("; ".join(parts))


def check_cells(check: StaticCheck) -> tuple[str, str, str]:
    """One static check: outcome, requirement, what was found."""
    detail = f"{check.reason}: {check.detail}" if check.reason else check.detail
    return check.outcome.value, printable(check.requirement), printable(detail)


def compute_cells(row: DeviceRow) -> tuple[str, ...]:
    """One device under COMPUTE_HEADINGS."""
    return (
        printable(row.device),
        ranges_text(row.ranks),
        ranges_text(row.stages),
        with_unit(row.time_share, "%"),
        with_unit(row.work_share, "%"),
        duration_text(row.compute_ns / 1e9),
        with_unit(row.busy, "%"),
        duration_text(row.wait_ns / 1e9),
    )


def memory_headings(rows: Sequence[DeviceRow]) -> tuple[str, ...]:
    """Headings of the memory table: every part that any device reports."""
    return (
        "ranks",
        "memory share",
        "peak",
        *(printable(part.removesuffix("_peak").replace("_", " ")) for part in _parts(rows)),
    )


def memory_cells(row: DeviceRow, rows: Sequence[DeviceRow]) -> tuple[str, ...]:
    """One device under `memory_headings(rows)`."""
    parts = (bytes_text(row.memory_parts[part]) if part in row.memory_parts else UNKNOWN for part in _parts(rows))
    peak = UNKNOWN if row.memory_bytes is None else bytes_text(row.memory_bytes)
    share = UNKNOWN if row.memory_share is None else with_unit(row.memory_share, "%")
    return (ranges_text(row.ranks), share, peak, *parts)


def _parts(rows: Sequence[DeviceRow]) -> list[str]:
    return list(dict.fromkeys(part for row in rows for part in row.memory_parts))


def nvml_lines(rows: Sequence[DeviceRow]) -> list[str]:
    """What the driver said, one line per group of devices that it said the same of."""
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for row in rows:
        groups.setdefault(tuple(row.nvml.items()), []).append(row.device)
    lines = []
    for readings, devices in groups.items():
        said = ", ".join(f"{name} {value}" for name, value in readings)
        where = "all devices" if len(groups) == 1 and len(rows) > 1 else ", ".join(devices)
        if said:
            lines.append(printable(f"{where}: {said}"))
    return lines


def side_rows(sides: Sequence[Side]) -> list[tuple[str, ...]]:
    """Each row is (what, one text per side), so that candidate and baseline stand next to each other."""
    return [
        ("", *(side.role if side.role == "candidate" else printable(f"baseline: {side.kind}") for side in sides)),
        ("mesh", *(printable(side.mesh) for side in sides)),
        ("ranks", *(str(side.world_size) for side in sides)),
        ("schedule", *(printable(f"{side.schedule}, {_microbatches(side)}") for side in sides)),
        ("hardware", *(HARDWARE_WORDS[side.hardware] for side in sides)),
        ("steps", *(f"{side.steps_measured} measured after {side.steps_warmup} warm-up" for side in sides)),
        ("step time (median)", *(_figure(side.step_time_s, duration_text) for side in sides)),
        ("tokens/s", *(_figure(side.tokens_per_s, rate_text) for side in sides)),
        ("MFU", *(_utilisation(side) for side in sides)),
        ("loss, first to last", *(_losses(side) for side in sides)),
    ]


def _microbatches(side: Side) -> str:
    return f"{side.num_microbatches} microbatch" + ("es" if side.num_microbatches != 1 else "")


def _figure(text: str, shown: Callable[[float], str]) -> str:
    """A decimal text through a formatter; what is not a number ("n/a: ...") is shown as it is."""
    try:
        number = float(text)
    except ValueError:
        return printable(text)
    return shown(number)


def _utilisation(side: Side) -> str:
    """Model FLOPs utilisation; against a peak that somebody declared, it says so."""
    declared = " (declared peak)" if side.mfu_peak.startswith("declared") else ""
    return _figure(side.mfu, lambda percent: f"{percent:.2f} %{declared}")


def _losses(side: Side) -> str:
    if side.first_loss is None or side.last_loss is None:
        return UNKNOWN
    return " to ".join(_figure(loss, "{:.4f}".format) for loss in (side.first_loss, side.last_loss))


def counts_text(counts: dict[str, int]) -> str:
    """ "3 passed, 1 failed, 2 inconclusive of 6 requirements", zero counts left out."""
    words = [f"{counts[outcome]} {word}" for outcome, word in OUTCOME_WORDS.items() if counts.get(outcome)]
    total = counts.get("total", 0)
    return f"{', '.join(words) or 'none judged'} of {total} requirement" + ("s" if total != 1 else "")


def verdict_sentence(verdict: Verdict) -> str:
    """The verdict in one sentence that names what was broken, or what could not be decided."""
    total, name = verdict.counts.get("total", 0), printable(verdict.name)
    if verdict.verdict is Outcome.PASS:
        return f"{name} keeps what it promises: every requirement that could be judged passed."
    if verdict.verdict is Outcome.NOT_APPLICABLE:
        return f"{name} promises nothing that could be judged."
    rows = [(row.outcome, row.text) for row in verdict.claims]
    rows += [(row.outcome, row.requirement) for row in verdict.static_checks]
    texts = [printable(text) for outcome, text in rows if outcome is verdict.verdict]
    listed = "; ".join(texts[:3]) + (f"; and {len(texts) - 3} more" if len(texts) > 3 else "")
    if verdict.verdict is Outcome.FAIL:
        return f"{name} does not keep {len(texts)} of {total} requirements: {listed}."
    if verdict.verdict is Outcome.INCONCLUSIVE:
        return f"Nothing failed, but {len(texts)} of {total} requirements of {name} could not be decided: {listed}."
    return f"{name} could not be judged: {listed or 'an error ended it'}."


def overall_text(outcome: Outcome, name: str, counts: dict[str, int], exit_code: int) -> str:
    """The last line that a person reads: outcome, name, counts and exit code."""
    return f"{outcome}: {printable(name)}: {counts_text(counts)} (exit code {exit_code})"
