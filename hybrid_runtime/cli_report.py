"""The command `report`: the reports of a run folder again, two runs side by side, or predictions over many."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hybrid_runtime.cli_output import console_for, refuse_unwritable, write_text
from hybrid_runtime.errors import UsageError
from hybrid_runtime.run_folder import RunFolder

if TYPE_CHECKING:
    from hybrid_runtime.report.run_data import Run
    from hybrid_runtime.verdict import Verdict

_HTML = "the page; default report.html in the run folder, compare.html here with --compare"


def report(
    run_folders: Annotated[
        list[Path] | None, typer.Argument(metavar="RUN_FOLDER...", help="what `run` or `verify` wrote")
    ] = None,
    predictions: Annotated[
        bool,
        typer.Option("--predictions", help="show how predictions came out over the runs of a folder; default runs"),
    ] = False,
    compare: Annotated[bool, typer.Option("--compare", help="put two runs side by side")] = False,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help=_HTML)] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", metavar="FILE", help="default report.md there")] = None,
    junit: Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="default junit.xml there")] = None,
) -> None:
    """Write report.html, report.md, junit.xml and trace.json of a run; with --compare, two runs side by side.

    The verdict is derived again from the raw records, which must be the ones that were judged. Exit code 0: written.
    """
    run_folders = run_folders or []
    for option, target in (("--html", html), ("--markdown", markdown), ("--junit", junit)):
        refuse_unwritable(option, target)
    if predictions:
        if compare or html or markdown or junit or len(run_folders) > 1:
            raise UsageError("report --predictions takes the folder that holds the runs, and no other option")
        _predictions(run_folders[0] if run_folders else Path("runs"))
    elif compare:
        if len(run_folders) != 2:
            raise UsageError(f"report --compare takes two run folders, not {len(run_folders)}")
        if markdown or junit:
            raise UsageError("report --compare writes a page only; leave --markdown and --junit out")
        _compare(run_folders[0], run_folders[1], html or Path("compare.html"))
    elif len(run_folders) != 1:
        raise UsageError(f"report takes one run folder, not {len(run_folders)}; put two side by side with --compare")
    else:
        _report(RunFolder(run_folders[0]), html, markdown, junit)


def _predictions(folder: Path) -> None:
    """The history of a folder of runs; a run folder stands for the folder that it lies in."""
    from hybrid_runtime.prediction_history import FILE, history_file, read_bias, shown_first
    from hybrid_runtime.report.prediction_tables import history_table
    from hybrid_runtime.report.terminal import print_plainly

    file = history_file(RunFolder(folder)) if RunFolder(folder).records.is_dir() else folder / FILE
    biases = shown_first(read_bias(file))
    if not biases:
        raise UsageError(f"{file}: holds no judged prediction; run a plan that `hybrid-runtime plan` made, with --plan")
    print_plainly(history_table(biases), console_for(None))


def _report(folder: RunFolder, html: Path | None, markdown: Path | None, junit: Path | None) -> None:
    from hybrid_runtime.report.write import Targets, write_reports
    from hybrid_runtime.verifier.judge import write_verdict

    verdict = _verdict(folder)
    if not folder.verdict.exists():  # plain torchrun left it
        write_verdict(verdict, folder.verdict)
    console = console_for(None)
    for path in write_reports(folder, verdict, Targets(html, markdown, junit)):
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)


def _compare(first: Path, second: Path, html: Path) -> None:
    from hybrid_runtime.report.compare import compare_page, compare_tables
    from hybrid_runtime.report.terminal import print_plainly

    refuse_unwritable("--html", html)
    runs = _judged(first), _judged(second)
    write_text("--html", html, compare_page(*runs))
    console = console_for(None)
    print_plainly(compare_tables(*runs), console)
    console.print(f"page: {html}", markup=False, highlight=False, soft_wrap=True)


def _judged(folder: Path) -> Run:
    """A run with its verdict; nothing is written into its folder."""
    from hybrid_runtime.report.run_data import read_run

    return read_run(folder, _verdict(RunFolder(folder)))


def _verdict(folder: RunFolder) -> Verdict:
    """The verdict from the raw records, with the options that the run was judged with."""
    from hybrid_runtime.verdict import overridden
    from hybrid_runtime.verifier.judge import read_verdict, recheck

    overrides = read_verdict(folder.verdict).overrides if folder.verdict.exists() else {}
    return overridden(recheck(folder.path), overrides)
