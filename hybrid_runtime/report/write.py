"""Writes every report of a judged run: report.html, report.md, junit.xml and trace.json."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hybrid_runtime.errors import EnvironmentProblem
from hybrid_runtime.report.junit import junit
from hybrid_runtime.report.markdown import markdown
from hybrid_runtime.report.page.render import report_page
from hybrid_runtime.report.run_data import chosen_steps, read_run
from hybrid_runtime.report.trace import default_steps, write_trace
from hybrid_runtime.run_folder import RunFolder, write_whole
from hybrid_runtime.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Targets:
    """Where reports go that are not to be written into the run folder; None for the folder."""

    html: Path | None = None
    markdown: Path | None = None
    junit: Path | None = None


def write_reports(folder: RunFolder, verdict: Verdict, targets: Targets | None = None) -> list[Path]:
    """Writes the reports of a run and returns their paths.

    Raises:
        RecordsError: the records cannot be read.
        PlanError: plan.json cannot be read.
        EnvironmentProblem: a report cannot be written.
    """
    to = targets or Targets()
    run = read_run(folder.path, verdict)
    texts = {
        to.html or folder.page: report_page(run),
        to.markdown or folder.report: markdown(verdict, run.history),
        to.junit or folder.junit: junit(verdict),
    }
    written = list(_write(texts))
    write_trace(run.ranks, run.plan, folder.trace, {*default_steps(run.ranks), *chosen_steps(run.ranks)})
    return [*written, folder.trace]


def _write(texts: dict[Path, str]) -> Iterator[Path]:
    for path, text in texts.items():
        try:
            write_whole(path, text)
        except OSError as problem:
            raise EnvironmentProblem(
                f"{path}: cannot be written ({problem.strerror}); free some space, or name another file"
            ) from None
        yield path
