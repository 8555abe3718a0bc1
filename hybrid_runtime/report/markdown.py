"""A verdict as GitHub-flavoured Markdown: report.md, and the step summary of a CI run."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from hybrid_runtime.prediction_history import Bias
from hybrid_runtime.report import cells, method_cells, prediction_cells, served_cells
from hybrid_runtime.verdict import Claim, Outcome, SelfCheck, StaticCheck, Verdict

_SIGNS = {
    Outcome.PASS: "✅",
    Outcome.FAIL: "❌",
    Outcome.INCONCLUSIVE: "❓",
    Outcome.NOT_APPLICABLE: "➖",
    Outcome.ERROR: "💥",
}
_SPECIAL = re.compile(r"([\\`*\[\]~|#$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")


def markdown(verdict: Verdict, history: Sequence[Bias] = ()) -> str:
    """The whole verdict: in words first, then the tables, then what it rests on.

    Args:
        history: how predictions came out over runs.
    """
    sections = [
        f"# {_SIGNS[verdict.verdict]} {verdict.verdict}: {escaped(verdict.name)}",
        f"{escaped(cells.counts_text(verdict.counts))}; exit code {verdict.exit_code}.",
        *_bullets("Overrides", map(escaped, cells.override_lines(verdict.overrides))),
        _undecided(verdict),
        *_bullets("Warnings", (escaped(warning) for warning in verdict.warnings)),
        *_section("Claims", (*cells.CLAIM_HEADINGS, "why"), map(_claim_row, verdict.claims)),
        *_devices(verdict),
        *_served(verdict),
        *_sides(verdict),
        *_prediction(verdict, history),
        *_method(verdict),
        *_section(
            "Checks before any process starts",
            ("verdict", "requirement", "found"),
            map(_check_row, verdict.static_checks),
        ),
        _provenance(verdict),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def escaped(text: str) -> str:
    """Text that Markdown and HTML show as it is: no table cell, tag, link, emphasis or formula begins in it."""
    shown = _SPECIAL.sub(r"\\\1", html.escape(cells.printable(text), quote=False))
    return "<br>".join(shown.splitlines())


def _undecided(verdict: Verdict) -> str:
    """The rows that kept the verdict from being a PASS, each in one sentence."""
    checks = [
        f"- **{check.outcome}** {escaped(check.requirement)}: {escaped(cells.check_cells(check)[2])}"
        for check in verdict.static_checks
        if _is_open(check.outcome)
    ]
    claims = [
        f"- **{claim.outcome}** {escaped(claim.text)}: required {escaped(cells.claim_cells(claim)[2])}, "
        f"{_found(claim)}: {escaped(cells.claim_why(claim))}"
        for claim in verdict.claims
        if _is_open(claim.outcome)
    ]
    return "\n".join(checks + claims)


def _is_open(outcome: Outcome) -> bool:
    return outcome in (Outcome.FAIL, Outcome.INCONCLUSIVE, Outcome.ERROR)


def _found(claim: Claim) -> str:
    text = escaped(cells.measured_text(claim.measured, claim.unit))
    return text if claim.measured is None else f"measured {text}"


def _claim_row(claim: Claim) -> list[str]:
    outcome, *texts = cells.claim_cells(claim)
    words = (cells.claim_why(claim), cells.claim_how(claim), prediction_cells.claim_modelled(claim))
    why = "<br>".join(escaped(text) for text in words if text)
    return [f"{_SIGNS[claim.outcome]} {outcome}", *map(escaped, texts), why]


def _check_row(check: StaticCheck) -> list[str]:
    outcome, *texts = cells.check_cells(check)
    return [f"{_SIGNS[check.outcome]} {outcome}", *map(escaped, texts)]


def _devices(verdict: Verdict) -> list[str]:
    rows = verdict.devices
    if not rows:
        return []
    return [
        *_section(
            "Compute per device, measured steps",
            cells.COMPUTE_HEADINGS,
            map(_escaped_row, map(cells.compute_cells, rows)),
        ),
        *_section(
            "Peak memory per device",
            cells.memory_headings(rows),
            (_escaped_row(cells.memory_cells(row, rows)) for row in rows),
        ),
        *_bullets("NVML", map(escaped, cells.nvml_lines(rows))),
    ]


def _served(verdict: Verdict) -> list[str]:
    """Where requests are served: latencies of both sides, and what devices did for prefills and decodes."""
    if not verdict.served:
        return []
    latencies = map(_escaped_row, served_cells.latency_rows(verdict.served))
    phases = [_escaped_row(row) for row in served_cells.phase_rows(verdict.served)]
    return [
        *_bullets(served_cells.TITLE, map(escaped, served_cells.served_sentences(verdict.served))),
        *_section("Latency of requests", served_cells.LATENCY_HEADINGS, latencies),
        *_section("Prefill and decode per device", served_cells.PHASE_HEADINGS, phases),
        *([escaped(served_cells.PHASE_NOTE)] if phases else []),
    ]


def _sides(verdict: Verdict) -> list[str]:
    if not verdict.sides:
        return []
    headings, *rows = cells.side_rows(verdict.sides)
    return _section("What ran", headings, map(_escaped_row, rows))


def _prediction(verdict: Verdict, history: Sequence[Bias]) -> list[str]:
    """What the plan predicted, what a replay says where clocks could not, and how predictions came out over runs."""
    sections: list[str] = []
    if (judged := verdict.prediction) is not None and judged.reason != "no_prediction":
        sections += _bullets("Prediction of the plan", [escaped(prediction_cells.prediction_sentence(judged))])
        for title, headings, rows in prediction_cells.prediction_tables(judged):
            sections += _section(title, headings, map(_escaped_row, rows))
    if (modelled := verdict.modelled) is not None:
        sections += _bullets(prediction_cells.MODELLED_TITLE, [escaped(modelled.method)])
        for title, headings, rows in prediction_cells.modelled_tables(modelled):
            sections += _section(title, headings, map(_escaped_row, rows))
    biases = (_escaped_row(prediction_cells.history_cells(bias)) for bias in history)
    return [*sections, *_section(prediction_cells.HISTORY_TITLE, prediction_cells.HISTORY_HEADINGS, biases)]


def _method(verdict: Verdict) -> list[str]:
    """How the verdict was reached: self-tests, looks, outliers, baselines that decide nothing."""
    sampling = [method_cells.sampling_text(verdict.sampling)] if verdict.sampling else []
    return [
        *_section("Self-tests", method_cells.SELF_CHECK_HEADINGS, map(_self_check_row, verdict.self_test)),
        *_bullets("Sampling", map(escaped, [*sampling, *map(method_cells.outliers_text, verdict.outliers)])),
        *_section(
            "Other baselines, shown only",
            method_cells.OTHER_BASELINE_HEADINGS,
            (_escaped_row(method_cells.other_baseline_cells(row)) for row in verdict.other_baselines),
        ),
    ]


def _self_check_row(check: SelfCheck) -> list[str]:
    outcome, *texts = method_cells.self_check_cells(check)
    return [f"{_SIGNS[check.outcome]} {outcome}", *map(escaped, texts)]


def _provenance(verdict: Verdict) -> str:
    lines = [
        f"- hybrid_runtime {escaped(verdict.tool_version)}, rules {escaped(verdict.ruleset)}",
        f"- deployment `{_code(verdict.deployment_fingerprint)}`",
        f"- plan {f'`{_code(verdict.plan_fingerprint)}`' if verdict.plan_fingerprint else 'none'}",
        *(f"- not the same on all ranks: {escaped(line)}" for line in _differing(verdict)),
        *(
            f"- {escaped(title)}: {escaped(', '.join(f'{name} {value}' for name, value in values.items()))}"
            for title, values in method_cells.provenance_sections(verdict.provenance).items()
        ),
    ]
    head = "## What this rests on\n\n" + "\n".join(lines)
    if not verdict.raw:
        return head
    rows = _table(("raw record", "SHA-256"), ([escaped(file.path), f"`{_code(file.sha256)}`"] for file in verdict.raw))
    return f"{head}\n\n<details><summary>{len(verdict.raw)} raw record files</summary>\n\n{rows}\n\n</details>"


def _differing(verdict: Verdict) -> tuple[str, ...]:
    return verdict.provenance.differing if verdict.provenance else ()


def _code(text: str) -> str:
    return re.sub(r"[^0-9A-Za-z./:-]", "?", text)


def _section(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    listed = list(rows)
    return [f"## {title}", _table([escaped(heading) for heading in headings], listed)] if listed else []


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _bullets(title: str, lines: Iterable[str]) -> list[str]:
    listed = [f"- {line}" for line in lines]
    return [f"## {title}", "\n".join(listed)] if listed else []


def _escaped_row(texts: Sequence[str]) -> list[str]:
    return [escaped(text) for text in texts]
