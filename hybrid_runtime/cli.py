"""The console command `hybrid-runtime`. Thin: every command reads arguments, calls one function, prints, exits.

Exit codes: 0 all pass, 1 a claim fails, 2 usage or file error, 3 inconclusive, 4 environment or runtime error,
5 stopped by SIGTERM with a whole checkpoint to go on from.
"""

from __future__ import annotations

import enum
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console

from hybrid_runtime.cli_convert import convert
from hybrid_runtime.cli_generate import generate
from hybrid_runtime.cli_lone import calibrate, rehearse
from hybrid_runtime.cli_output import (
    Json,
    PlanFile,
    Prometheus,
    TensorBoard,
    Wandb,
    console_for,
    refuse_unwritable,
    write_json,
)
from hybrid_runtime.cli_plan import plan
from hybrid_runtime.cli_report import report
from hybrid_runtime.cli_schedule import schedule_app, simulate
from hybrid_runtime.cli_tokenize import corpus, tokenize
from hybrid_runtime.errors import ExitCode, HybridRuntimeError, UsageError
from hybrid_runtime.run_folder import RunFolder, new_run_folder
from hybrid_runtime.stop_signals import signals_stop

if TYPE_CHECKING:  # every command loads what it needs: `check` answers at once
    from hybrid_runtime.deployment import Deployment
    from hybrid_runtime.report.exports import Exports
    from hybrid_runtime.verdict import StaticCheck, Verdict

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Deploy a tensor x pipeline x data parallel plan, measure every rank, and judge what was promised.\n\n"
    "Exit codes: 0 all pass, 1 a claim fails, 2 usage or file error, 3 inconclusive, 4 environment or runtime error, "
    "5 stopped with a whole checkpoint.",
)

app.add_typer(schedule_app, name="schedule")


def _print_version(wanted: bool) -> None:
    if wanted:
        from hybrid_runtime.verifier.tool import tool_version

        print(tool_version())
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and stop")
    ] = False,
) -> None:
    """Options of the command itself; `--version` ends it before any command is looked for."""


File = Annotated[Path, typer.Argument(metavar="FILE", help="deployment file, TOML or JSON")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress")]
Folder = Annotated[Path | None, typer.Option("--run-folder", help="where to write; default runs/<name>-<time>")]
Resume = Annotated[
    str | None,
    typer.Option(
        metavar="latest|auto|FOLDER",
        help="go on from the newest checkpoint (auto: if there is one, else begin), or from this one",
    ),
]


@app.command()
def check(file: File, json_file: Json = None) -> None:
    """Judge the file alone: is the plan possible, do the declared figures agree? Answers at once, runs nothing."""
    from hybrid_runtime.deployment import load_deployment
    from hybrid_runtime.verifier.static import static_checks

    _refuse_unwritable(json_file)
    deployment = load_deployment(file)
    _show_checks(deployment.name, static_checks(deployment), json_file)


@app.command()
def run(
    file: File,
    json_file: Json = None,
    quiet: Quiet = False,
    run_folder: Folder = None,
    plan_file: PlanFile = None,
    resume: Resume = None,
    tensorboard: TensorBoard = None,
    prometheus: Prometheus = None,
    wandb: Wandb = None,
    nodes: Annotated[int, typer.Option(help="machines that take part")] = 1,
    node_rank: Annotated[int | None, typer.Option(help="this machine's number; 0 is the one of the endpoint")] = None,
    rdzv_endpoint: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="where the machines meet")] = None,
    rdzv_id: Annotated[str, typer.Option(help="the same on every machine of a run")] = "hybrid-runtime",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the torchrun command and stop")] = False,
) -> None:
    """Run the deployment with torchrun, then judge what one side alone can show.

    On several machines, call it on each with the same --run-folder on a shared disk; node 0 judges.
    """
    from hybrid_runtime.launcher import Rendezvous, torchrun_command
    from hybrid_runtime.planner.given import deployment_and_plan

    _refuse_unwritable(json_file)
    deployment, plan = deployment_and_plan(file, plan_file)
    rendezvous = Rendezvous(nodes=nodes, node_rank=node_rank, endpoint=rdzv_endpoint, run_id=rdzv_id)
    folder = _folder(run_folder, deployment.name)
    follow = ["--plan", str(plan_file)] if plan_file else []
    go_on = ["--resume", resume] if resume else []
    arguments = [str(file), *follow, *go_on, "--run-folder", str(folder.path)]
    command = torchrun_command(deployment.mesh.world_size, arguments, rendezvous)
    if dry_run:
        print(shlex.join(command))
        return
    _refuse_impossible(deployment, json_file)
    from hybrid_runtime.measure import run_alone

    if nodes > 1 and run_folder is None:
        raise UsageError(f"--nodes {nodes} needs --run-folder, the same folder on a disk that all machines share")
    deployment = _with_telemetry(deployment, tensorboard=tensorboard, prometheus_textfile=prometheus, wandb=wandb)
    console = _progress_console()
    with _exports(deployment, folder, console, first=rendezvous.is_first) as exports:
        verdict = run_alone(
            deployment, folder, rendezvous, console, quiet=quiet, exports=exports, plan=plan, resume=resume
        )
        exports.judged(verdict)
    if deployment.export is not None and rendezvous.is_first:
        console.print(f"model: {deployment.export.folder}", markup=False, highlight=False, soft_wrap=True)
    if verdict is None:
        print(f"hybrid-runtime: this machine's ranks are done; the first machine judges the records in {folder.path}")
        return
    _show(verdict, folder, json_file)


class Inconclusive(enum.StrEnum):
    """What `--inconclusive` makes of an INCONCLUSIVE verdict's exit code."""

    PASS = "pass"
    FAIL = "fail"


@app.command()
def verify(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="deployment file, TOML or JSON")] = None,
    recheck: Annotated[
        Path | None, typer.Option("--recheck", metavar="RUN_FOLDER", help="judge an old run again from its raw records")
    ] = None,
    self_test: Annotated[
        bool, typer.Option("--self-test", help="test the instrument alone: planted imbalances, A/A, telemetry's cost")
    ] = False,
    rebalance: Annotated[
        bool,
        typer.Option("--rebalance", help="then cut the plan anew by what was measured, and run and judge that too"),
    ] = False,
    all_baselines: Annotated[
        bool, typer.Option("--all-baselines", help="also run every other kind of baseline that is possible, to show it")
    ] = False,
    inconclusive: Annotated[
        Inconclusive | None,
        typer.Option(help="exit code of an INCONCLUSIVE verdict: as of a PASS or of a FAIL, for CI; it is noted down"),
    ] = None,
    json_file: Json = None,
    quiet: Quiet = False,
    run_folder: Folder = None,
    plan_file: PlanFile = None,
    tensorboard: TensorBoard = None,
    prometheus: Prometheus = None,
    wandb: Wandb = None,
) -> None:
    """Check the file, run candidate and baseline in alternating blocks on the same devices, and judge every claim."""
    if (file is None) == (recheck is None):
        raise UsageError("verify needs a deployment FILE, or --recheck RUN_FOLDER, and not both")
    _refuse_unwritable(json_file)
    overrides = {} if inconclusive is None else {"inconclusive": inconclusive.value}
    if recheck is not None:
        if tensorboard or prometheus or wandb or self_test or rebalance or all_baselines or run_folder or plan_file:
            raise UsageError(
                "--recheck runs nothing, so --tensorboard, --prometheus, --wandb, --self-test, --rebalance, "
                "--all-baselines, --plan and --run-folder mean nothing beside it; drop them"
            )
        _show(_judged_again(RunFolder(recheck), overrides), RunFolder(recheck), json_file)
    assert file is not None
    from hybrid_runtime.planner.baseline import with_all_baselines
    from hybrid_runtime.planner.given import deployment_and_plan

    deployment, plan = deployment_and_plan(file, plan_file)
    if self_test and (all_baselines or rebalance):
        raise UsageError("--self-test runs no baseline and no other plan; drop it, or --all-baselines and --rebalance")
    deployment = with_all_baselines(deployment) if all_baselines else deployment
    _refuse_impossible(deployment, json_file)
    from hybrid_runtime.measure import run_against_baseline, run_self_test

    folder = _folder(run_folder, deployment.name)
    deployment = _with_telemetry(deployment, tensorboard=tensorboard, prometheus_textfile=prometheus, wandb=wandb)
    console = _progress_console()
    measure = run_self_test if self_test else run_against_baseline
    with _exports(deployment, folder, console, first=True) as exports:
        verdict = measure(deployment, folder, console, quiet=quiet, exports=exports, overrides=overrides, plan=plan)
        exports.judged(verdict)
    if rebalance:
        verdict, folder = _rebalanced(verdict, folder, json_file, quiet=quiet, overrides=overrides)
    _show(verdict, folder, json_file)


def _rebalanced(
    before: Verdict, folder: RunFolder, json_file: str | None, *, quiet: bool, overrides: Mapping[str, str]
) -> tuple[Verdict, RunFolder]:
    """Runs what the records ask for and shows both; the run that was there where they ask for nothing else."""
    from hybrid_runtime.rebalance import run_rebalanced, show_both

    after = run_rebalanced(folder, _progress_console(), quiet=quiet, overrides=overrides)
    console = console_for(json_file)
    if after is None:
        words = "no other cuts make the measured ranks more equal; the plan was not run again"
        console.print(f"rebalance: {words}", markup=False, highlight=False, soft_wrap=True)
        return before, folder
    show_both(folder, before, after, console)
    console.print(f"page: {folder.comparison}", markup=False, highlight=False, soft_wrap=True)
    return after, folder.rebalanced


def _with_telemetry(deployment: Deployment, **given: object) -> Deployment:
    """What the command line asks for outdoes the file's [telemetry]."""
    wanted = {name: str(value) for name, value in given.items() if value is not None}
    return deployment.model_copy(update={"telemetry": deployment.telemetry.model_copy(update=wanted)})


def _exports(deployment: Deployment, folder: RunFolder, console: Console, *, first: bool) -> Exports:
    from hybrid_runtime.report.exports import open_exports

    folder.refuse_used()  # before an earlier run's exports are written over

    def warn(sentence: str) -> None:
        console.print(f"hybrid-runtime: {sentence}", markup=False, highlight=False, soft_wrap=True)

    return open_exports(deployment, folder, first=first, warn=warn)


def _judged_again(folder: RunFolder, overrides: Mapping[str, str]) -> Verdict:
    """A folder that plain torchrun left was never judged: it gets its verdict and reports now."""
    if not folder.verdict.exists():
        from hybrid_runtime.measure import judge_and_report

        return judge_and_report(folder, overrides)
    from hybrid_runtime.verdict import overridden
    from hybrid_runtime.verifier.judge import recheck

    return overridden(recheck(folder.path), overrides)


@app.command()
def schema(
    json_file: Json = None,
    verdict: Annotated[bool, typer.Option("--verdict", help="of verdict.json instead")] = False,
    records: Annotated[bool, typer.Option("--records", help="of a line of the record files instead")] = False,
) -> None:
    """Print the JSON Schema (draft 2020-12) of the deployment file, so that editors complete and check it."""
    from hybrid_runtime.deployment import json_schema
    from hybrid_runtime.schemas import records_schema, verdict_schema

    if verdict and records:
        raise UsageError("schema prints one schema: give --verdict or --records, not both")
    _refuse_unwritable(json_file)
    make = verdict_schema if verdict else records_schema if records else json_schema
    write_json(json_file or "-", make())


app.command()(plan)
app.command()(simulate)
app.command()(report)
app.command()(calibrate)
app.command()(rehearse)
app.command()(convert)
app.command()(generate)
app.command()(tokenize)
app.command()(corpus)


def _refuse_impossible(deployment: Deployment, json_file: str | None) -> None:
    """A plan that a static check refuses is not run: its rows are printed and the command ends with FAIL."""
    from hybrid_runtime.verdict import Outcome
    from hybrid_runtime.verifier.static import static_checks

    rows = static_checks(deployment)
    if any(row.outcome is Outcome.FAIL for row in rows):
        _show_checks(deployment.name, rows, json_file)


def _show_checks(name: str, rows: tuple[StaticCheck, ...], json_file: str | None) -> NoReturn:
    from hybrid_runtime.report.terminal import print_checks
    from hybrid_runtime.verdict import count, overall

    outcome, code = overall(row.outcome for row in rows)
    print_checks(name, rows, console_for(json_file))
    values = {
        "name": name,
        "verdict": outcome.value,
        "exit_code": int(code),
        "counts": count(row.outcome for row in rows),
        "static_checks": [row.model_dump(mode="json") for row in rows],
    }
    write_json(json_file, values)
    raise typer.Exit(code)


def _show(verdict: Verdict, folder: RunFolder, json_file: str | None) -> NoReturn:
    from hybrid_runtime.report.terminal import print_verdict

    console = console_for(json_file)
    print_verdict(verdict, console)
    console.print(f"files: {folder.path}", markup=False, highlight=False, soft_wrap=True)
    write_json(json_file, verdict.model_dump(mode="json"))
    raise typer.Exit(verdict.exit_code)


def _folder(given: Path | None, name: str) -> RunFolder:
    return new_run_folder(name) if given is None else RunFolder(given)


def _progress_console() -> Console:
    return Console(stderr=True)


def _refuse_unwritable(target: str | None) -> None:
    refuse_unwritable("--json", target)


def main() -> NoReturn:
    """Entry of the console command: every error is one sentence and a documented exit code."""
    try:
        with signals_stop():
            code = app(prog_name="hybrid-runtime", standalone_mode=False)
    except HybridRuntimeError as problem:
        _leave(str(problem), problem.exit_code)
    except _ClickError as problem:
        _leave(_usage_words(problem), ExitCode.USAGE)
    except OSError as problem:
        _leave(f"{problem}; check the disk and the file's permissions", ExitCode.ERROR)
    sys.exit(code or 0)


def _leave(words: str, code: ExitCode) -> NoReturn:
    print(f"hybrid-runtime: {words}", file=sys.stderr)
    sys.exit(int(code))


# Typer carries its own copy of click since 0.20 or uses the installed one; this is the base class in either case.
_ClickError: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def _usage_words(problem: Any) -> str:
    """What is wrong with the command line, and where its options are listed."""
    command = getattr(getattr(problem, "ctx", None), "command_path", "hybrid-runtime")
    words = re.sub(r"Input should be a valid integer.*", "it must be a whole number", problem.format_message())
    return f"{words.rstrip('.')}; see {command} --help"
