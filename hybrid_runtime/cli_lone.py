"""The commands that need one device only: `rehearse` and `calibrate`. Thin: torch runs in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hybrid_runtime.cli_output import Json, console_for, refuse_unwritable, write_json
from hybrid_runtime.errors import ExitCode, RunError, UsageError
from hybrid_runtime.rehearsal import FILE
from hybrid_runtime.run_folder import RunFolder, new_run_folder
from hybrid_runtime.stop_signals import stops_held

if TYPE_CHECKING:
    from hybrid_runtime.calibration import Calibration
    from hybrid_runtime.would import RehearsalVerdict

Alone = Annotated[
    bool, typer.Option("--alone", help="on a CPU: leave the other cores idle instead of as busy as in a run")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress")]


def rehearse(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="deployment file; or the folder of a rehearsal, judged again")
    ],
    plan: Annotated[Path | None, typer.Option("--plan", metavar="PLAN.json", help="rehearse this plan")] = None,
    calibration: Annotated[
        Path | None, typer.Option("--calibration", metavar="FILE", help="what communication takes on this machine")
    ] = None,
    run_folder: Annotated[
        Path | None, typer.Option("--run-folder", help="where to write; default runs/<name>-rehearsal-<time>")
    ] = None,
    alone: Alone = False,
    json_file: Json = None,
    quiet: Quiet = False,
) -> None:
    """Run every pipeline rank alone on this machine's one device and say which targets WOULD hold.

    Compute and memory are rehearsed: real kernels, real bytes. Step time, utilisation and speed are modelled from them.
    Exit code 0: every target would pass; 1: one would fail; 3: one could not be decided.
    """
    refuse_unwritable("--json", json_file)
    known = None if calibration is None else _calibration(calibration)
    if file.is_dir():
        if plan is not None or run_folder is not None:
            raise UsageError(f"{file} was rehearsed already, so --plan and --run-folder mean nothing; drop them")
        folder = RunFolder(file)
    else:
        folder = _rehearsed(file, plan, run_folder, alone=alone, quiet=quiet)
    from hybrid_runtime.report.rehearsal_tables import rehearsal_tables
    from hybrid_runtime.report.terminal import print_plainly
    from hybrid_runtime.verifier.would import judge_rehearsal

    verdict = judge_rehearsal(folder, known)
    console = console_for(json_file)
    print_plainly(rehearsal_tables(verdict), console)
    console.print(f"files: {folder.path}", markup=False, highlight=False, soft_wrap=True)
    write_json(json_file, verdict.model_dump(mode="json"))
    raise typer.Exit(_exit_code(verdict))


def calibrate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="deployment file, TOML or JSON")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="where to write")] = Path("calibration.json"),
    alone: Alone = False,
    quiet: Quiet = False,
) -> None:
    """Measure what the model's units, messages, collectives and the optimizer cost on this machine: calibration.json.

    Costs hold on this machine with these versions only. What it cannot show is named with the reason, not made up.
    """
    refuse_unwritable("--out", out)
    from hybrid_runtime.deployment import load_deployment
    from hybrid_runtime.verifier.static import refuse_unfit

    deployment = load_deployment(file)  # problems of the file are said before torch is loaded and anything is measured
    refuse_unfit(deployment, deployment.search.vary)
    given = [str(file), "--out", str(out), *(["--alone"] if alone else [])]
    _torch("hybrid_runtime.lone.calibrate", given, quiet=quiet)
    from hybrid_runtime.report.calibration_tables import calibration_tables
    from hybrid_runtime.report.terminal import print_plainly

    console = console_for(None)
    print_plainly(calibration_tables(_calibration(out)), console)
    console.print(f"file: {out}", markup=False, highlight=False, soft_wrap=True)


def _rehearsed(file: Path, plan: Path | None, run_folder: Path | None, *, alone: bool, quiet: bool) -> RunFolder:
    from hybrid_runtime.deployment import load_deployment
    from hybrid_runtime.verifier.static import refuse_unfit

    deployment = load_deployment(file)  # problems of the file are said before torch is loaded
    refuse_unfit(deployment, () if plan is None else ("tp_degree", "dp_degree", "microbatch_size"))
    folder = new_run_folder(f"{deployment.name}-rehearsal") if run_folder is None else RunFolder(run_folder)
    if (folder.path / FILE).exists() or folder.records.exists():
        raise UsageError(f"{folder.path}: already holds a run or a rehearsal; name another with --run-folder")
    given = [*([] if plan is None else ["--plan", str(plan)]), *(["--alone"] if alone else [])]
    _torch("hybrid_runtime.lone.rehearse", [str(file), "--run-folder", str(folder.path), *given], quiet=quiet)
    return folder


def _calibration(path: Path) -> Calibration:
    from hybrid_runtime.calibration import read_calibration

    return read_calibration(path)


def _torch(module: str, arguments: Sequence[str], *, quiet: bool) -> None:
    """Runs a module that needs torch; its sentences and its exit code are the command's own."""
    command = [sys.executable, "-m", module, *arguments, *(["--quiet"] if quiet else [])]
    one_thread = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    with ExitStack() as stack:
        with stops_held():
            process = stack.enter_context(subprocess.Popen(command, env=os.environ | one_thread))
            stack.callback(process.terminate)  # nothing, where it has ended
        code = process.wait()
    if code < 0:
        raise RunError(
            f"the process that measured was ended by {signal.Signals(-code).name}; if the system did it, memory was "
            "short: free some, or use a smaller [batch] microbatch_size"
        )
    if code:
        raise typer.Exit(code)


def _exit_code(verdict: RehearsalVerdict) -> ExitCode:
    outcomes = {claim.outcome for claim in verdict.claims}
    if "WOULD FAIL" in outcomes:
        return ExitCode.FAIL
    return ExitCode.INCONCLUSIVE if "UNDECIDED" in outcomes else ExitCode.PASS
