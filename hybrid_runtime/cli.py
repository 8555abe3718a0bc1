"""The console command `hybrid-runtime`. Thin: every command reads arguments, calls one function, prints, exits.

Exit codes: 0 all pass, 1 a claim fails, 2 usage or file error, 3 inconclusive, 4 environment or runtime error.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from hybrid_runtime.cli_output import Json, console_for, write_json
from hybrid_runtime.cli_schedule import schedule_app, simulate
from hybrid_runtime.errors import ExitCode, HybridRuntimeError, UsageError
from hybrid_runtime.run_folder import RunFolder, new_run_folder

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Deploy a tensor x pipeline x data parallel plan, measure every rank, and judge what was promised.\n\n"
    "Exit codes: 0 all pass, 1 a claim fails, 2 usage or file error, 3 inconclusive, 4 environment or runtime error.",
)

app.add_typer(schedule_app, name="schedule")

File = Annotated[Path, typer.Argument(metavar="FILE", help="deployment file, TOML or JSON")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress")]
Folder = Annotated[Path | None, typer.Option("--run-folder", help="where to write; default runs/<name>-<time>")]


@app.command()
def check(file: File, json_file: Json = None) -> None:
    """Judge the file alone: is the plan possible, do the declared figures agree? Answers at once, runs nothing."""
    from hybrid_runtime.deployment import load_deployment
    from hybrid_runtime.report.terminal import check_table, print_plainly
    from hybrid_runtime.verdict import count, overall
    from hybrid_runtime.verifier.static import static_checks

    deployment = load_deployment(file)
    rows = static_checks(deployment)
    outcome, code = overall(row.outcome for row in rows)
    console = console_for(json_file)
    print_plainly(check_table(deployment.name, rows), console)
    counts = count(row.outcome for row in rows)
    values = {
        "name": deployment.name,
        "verdict": outcome.value,
        "exit_code": int(code),
        "counts": counts,
        "static_checks": [row.model_dump(mode="json") for row in rows],
    }
    write_json(json_file, values)
    raise typer.Exit(code)


@app.command()
def run(
    file: File,
    json_file: Json = None,
    quiet: Quiet = False,
    run_folder: Folder = None,
    nodes: Annotated[int, typer.Option(help="machines that take part", min=1)] = 1,
    node_rank: Annotated[int | None, typer.Option(help="this machine's number, 0-based")] = None,
    rdzv_endpoint: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="where the machines meet")] = None,
    rdzv_id: Annotated[str, typer.Option(help="the same on every machine of a run")] = "hybrid-runtime",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the torchrun command and stop")] = False,
) -> None:
    """Run the deployment with torchrun, then judge what one side alone can show."""
    from hybrid_runtime.deployment import load_deployment
    from hybrid_runtime.launcher import Rendezvous, torchrun_command

    deployment = load_deployment(file)
    rendezvous = Rendezvous(nodes=nodes, node_rank=node_rank, endpoint=rdzv_endpoint, run_id=rdzv_id)
    folder = _folder(run_folder, deployment.name)
    command = torchrun_command(deployment.mesh.world_size, [str(file), "--run-folder", str(folder.path)], rendezvous)
    if dry_run:
        print(" ".join(command))
        return
    _refuse_impossible(file, json_file)
    from hybrid_runtime.measure import run_alone

    verdict = run_alone(deployment, folder, rendezvous, _progress_console(), quiet=quiet)
    _show(verdict, folder, json_file)


@app.command()
def verify(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="deployment file, TOML or JSON")] = None,
    recheck: Annotated[
        Path | None, typer.Option("--recheck", metavar="RUN_FOLDER", help="judge an old run again from its raw records")
    ] = None,
    json_file: Json = None,
    quiet: Quiet = False,
    run_folder: Folder = None,
) -> None:
    """Check the file, run candidate and baseline in alternating blocks on the same devices, and judge every claim."""
    if (file is None) == (recheck is None):
        raise UsageError("verify needs a deployment FILE, or --recheck RUN_FOLDER, and not both")
    if recheck is not None:
        _show(_rechecked(recheck), RunFolder(recheck), json_file)
    assert file is not None
    from hybrid_runtime.deployment import load_deployment

    deployment = load_deployment(file)
    _refuse_impossible(file, json_file)
    from hybrid_runtime.measure import run_against_baseline

    folder = _folder(run_folder, deployment.name)
    _show(run_against_baseline(deployment, folder, _progress_console(), quiet=quiet), folder, json_file)


@app.command()
def schema(json_file: Json = None) -> None:
    """Print the JSON Schema of the deployment file, so that editors complete and check it."""
    from hybrid_runtime.deployment import json_schema

    write_json(json_file or "-", json_schema())


app.command()(simulate)


def _rechecked(path: Path) -> object:
    from hybrid_runtime.verifier.judge import recheck

    return recheck(path)


def _refuse_impossible(file: Path, json_file: str | None) -> None:
    """A plan that a static check refuses is not run: its rows are printed and the command ends with FAIL."""
    from hybrid_runtime.deployment import load_deployment
    from hybrid_runtime.verdict import Outcome
    from hybrid_runtime.verifier.static import static_checks

    if any(row.outcome is Outcome.FAIL for row in static_checks(load_deployment(file))):
        check(file, json_file)


def _show(verdict: object, folder: RunFolder, json_file: str | None) -> NoReturn:
    from hybrid_runtime.report.terminal import print_verdict
    from hybrid_runtime.verdict import Verdict

    assert isinstance(verdict, Verdict)
    console = console_for(json_file)
    print_verdict(verdict, console)
    console.print(f"files: {folder.path}", markup=False, highlight=False, soft_wrap=True)
    write_json(json_file, verdict.model_dump(mode="json"))
    raise typer.Exit(verdict.exit_code)


def _folder(given: Path | None, name: str) -> RunFolder:
    return new_run_folder(name) if given is None else RunFolder(given)


def _progress_console() -> Console:
    return Console(stderr=True)


def main() -> NoReturn:
    """Entry of the console command: every error is one sentence and a documented exit code."""
    try:
        app(standalone_mode=True)
    except HybridRuntimeError as problem:
        print(f"hybrid-runtime: {problem}", file=sys.stderr)
        sys.exit(int(problem.exit_code))
    except KeyboardInterrupt:
        print("hybrid-runtime: stopped; what was recorded so far is kept", file=sys.stderr)
        sys.exit(int(ExitCode.ERROR))
    except OSError as problem:
        print(f"hybrid-runtime: {problem}; check the disk and the file's permissions", file=sys.stderr)
        sys.exit(int(ExitCode.ERROR))
    sys.exit(0)
