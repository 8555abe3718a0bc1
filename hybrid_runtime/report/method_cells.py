"""The words for how a verdict was reached: self-tests, sampling, outliers, other baselines, provenance."""

from __future__ import annotations

from collections.abc import Iterator

from hybrid_runtime.report.cells import UNKNOWN, measured_text, printable, ranges_text
from hybrid_runtime.verdict import Look, OtherBaseline, Outliers, Provenance, Sampling, SelfCheck, Verdict

SELF_CHECK_HEADINGS = ("outcome", "test of the instrument, in this run", "measured [interval]", "found")
LOOK_HEADINGS = ("look", "blocks of each side", "after", "still undecided")
OTHER_BASELINE_HEADINGS = ("baseline", "mesh", "same number of devices", "latency reduction", "throughput gain", "note")
_STOPPED = {
    "decided": "no claim was left that more samples might decide",
    "budget": "the budget of time or looks was used up",
    "single look": "the number of blocks was fixed before the run, and there was one look",
    "self-test only": "only the instrument was tested",
}


def self_check_cells(check: SelfCheck) -> tuple[str, str, str, str]:
    """One self-test under SELF_CHECK_HEADINGS."""
    found = f"{check.reason}: {check.detail}" if check.reason else check.detail
    figure = "-" if check.measured is None else measured_text(check.measured, check.unit)
    return check.outcome.value, printable(check.text), figure, printable(found)


def sampling_text(sampling: Sampling) -> str:
    """Why sampling stopped, and what the looks were allowed to spend."""
    if sampling.stopped == "self-test only":
        return f"Measuring stopped because {_STOPPED[sampling.stopped]}; no claim was judged."
    looks = f"{sampling.looks_allowed} look" + ("s" if sampling.looks_allowed != 1 else "")
    return printable(
        f"Measuring stopped because {_STOPPED[sampling.stopped]}: {len(sampling.looks)} of at most {looks}, fixed "
        f"before any data, each with an error budget of {sampling.alpha_per_look}; time budget {sampling.budget_s} s."
    )


def look_rows(sampling: Sampling) -> Iterator[tuple[str, str, str, str]]:
    """Every look under LOOK_HEADINGS."""
    for number, look in enumerate(sampling.looks, start=1):
        yield str(number), str(look.blocks), printable(f"{look.elapsed_s} s"), _undecided(look)


def _undecided(look: Look) -> str:
    return printable(", ".join(look.undecided)) or "nothing"


def outliers_text(row: Outliers) -> str:
    """What leaving the outliers out would change."""
    if not row.steps:
        return f"{row.role}: none beyond Tukey's outer fences; mean {printable(row.mean_step_s)} s."
    return printable(
        f"{row.role}: {len(row.steps)} beyond Tukey's outer fences, flagged and kept (steps {ranges_text(row.steps)}): "
        f"mean {row.mean_step_s} s, without them {row.mean_without_s} s, median {row.median_step_s} s."
    )


def other_baseline_cells(row: OtherBaseline) -> tuple[str, ...]:
    """One baseline under OTHER_BASELINE_HEADINGS."""
    figures = (UNKNOWN if one is None else measured_text(one, "%") for one in (row.latency, row.throughput))
    matched = "yes" if row.resource_matched else "no"
    return (printable(row.kind), printable(row.mesh), matched, *figures, printable(row.detail))


def rests_on(verdict: Verdict) -> dict[str, str]:
    """The program, its rules and the fingerprints of what was judged."""
    return {
        "hybrid_runtime": printable(f"{verdict.tool_version}, rules {verdict.ruleset}"),
        "deployment": printable(verdict.deployment_fingerprint),
        "plan": printable(verdict.plan_fingerprint or "none"),
    }


def provenance_sections(provenance: Provenance | None) -> dict[str, dict[str, str]]:
    """The sections that hold anything, by title; hosts and devices have one each."""
    if provenance is None:
        return {}
    sections = {
        "judged by": provenance.tool,
        "run": provenance.run,
        "versions": provenance.versions,
        "environment variables": provenance.environment,
        **{f"host {printable(name)}": values for name, values in provenance.hosts.items()},
        **{f"device {printable(name)}": values for name, values in provenance.devices.items()},
    }
    return {title: _printable(values) for title, values in sections.items() if values}


def _printable(values: dict[str, str]) -> dict[str, str]:
    return {printable(name): printable(value) for name, value in values.items()}
