"""The command `hybrid-runtime plan`: search, print, write plan.json; with --try, run the best few first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from hybrid_runtime.cli_output import Json, console_for, refuse_unwritable, write_json, write_text
from hybrid_runtime.errors import UsageError

if TYPE_CHECKING:
    from hybrid_runtime.calibration import Calibration
    from hybrid_runtime.deployment import Deployment
    from hybrid_runtime.plan import Plan
    from hybrid_runtime.planner.planned import Planned
    from hybrid_runtime.planner.serving_plan import PlannedServing


def plan(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="deployment file, TOML or JSON")],
    out: Annotated[Path, typer.Option("--out", metavar="PLAN.json", help="where the plan goes")] = Path("plan.json"),
    json_file: Json = None,
    calibration: Annotated[
        Path | None, typer.Option("--calibration", metavar="CALIBRATION.json", help="costs measured by `calibrate`")
    ] = None,
    analytic: Annotated[
        bool,
        typer.Option(
            "--analytic", help="costs from FLOPs and the rates that the table search declares; nothing measured"
        ),
    ] = False,
    rehearsal: Annotated[
        Path | None,
        typer.Option("--rehearsal", metavar="FOLDER", help="cut a rehearsed plan anew, by what its stages took"),
    ] = None,
    try_best: Annotated[
        int, typer.Option("--try", min=0, metavar="K", help="run the best K for a few steps and choose by measurement")
    ] = 0,
    elsewhere: Annotated[
        bool, typer.Option("--elsewhere", help="plan here for the machine that the calibration was taken on")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress")] = False,
) -> None:
    """Search for the best plan of a deployment: degrees, microbatches, schedule, cuts, embedding rows. No torch.

    Run it with `hybrid-runtime run FILE --plan PLAN.json`. With --rehearsal nothing is searched: the rehearsed plan
    keeps its degrees, microbatches and schedule, and gets new cuts and rows; --calibration then says what its
    communication takes.
    """
    if rehearsal is not None and (analytic or try_best):
        raise UsageError("--rehearsal cuts one plan anew; it goes with neither --analytic nor --try: drop them")
    if rehearsal is None and (calibration is None) != analytic:
        raise UsageError(
            "plan needs the costs of one source: --calibration CALIBRATION.json of this machine (hybrid-runtime "
            "calibrate), --rehearsal FOLDER, or --analytic"
        )
    refuse_unwritable("--out", out)
    refuse_unwritable("--json", json_file)
    from hybrid_runtime.calibration import read_calibration
    from hybrid_runtime.deployment import load_deployment
    from hybrid_runtime.verifier.static import refuse_unfit

    deployment = load_deployment(file)
    refuse_unfit(
        deployment, deployment.search.vary if rehearsal is None else ("tp_degree", "dp_degree", "microbatch_size")
    )
    measured = None if calibration is None else read_calibration(calibration)
    if measured is not None and rehearsal is None and not elsewhere:
        _refuse_other_machine(measured)
    if rehearsal is not None:
        found, sentences = _again(deployment, rehearsal, measured)
        return _write(found, sentences, (), out, json_file)
    if deployment.serves:
        if try_best:
            raise UsageError(
                "--try chooses by the time of a step, and a serving plan is chosen by latencies; drop it, and verify "
                "the plans that you want to compare"
            )
        served = _search_serving(deployment, measured, quiet)
        return _write(served.plan, served.sentences, served.why_not, out, json_file)
    planned = _search(deployment, measured, try_best, quiet)
    if try_best:
        from hybrid_runtime.tried import try_plans

        planned = try_plans(deployment, planned, try_best, Console(stderr=True), quiet=quiet)
    _write(planned.plan, planned.sentences, planned.why_not, out, json_file)


def _refuse_other_machine(measured: Calibration) -> None:
    """Compares what is known without torch; a run compares the rest and says STALE."""
    import socket

    from hybrid_runtime.calibration import refuse_other_machine
    from hybrid_runtime.fingerprint import known_fingerprint
    from hybrid_runtime.telemetry.host import installed_versions
    from hybrid_runtime.telemetry.machine import machine

    here = known_fingerprint(machine(), installed_versions(), host=socket.gethostname())
    try:
        refuse_other_machine(measured, here)
    except UsageError as problem:
        raise UsageError(f"{problem}, or say --elsewhere to plan for the machine that was calibrated") from None


def _write(found: Plan, sentences: Sequence[str], why_not: Sequence[str], out: Path, json_file: str | None) -> None:
    from hybrid_runtime.report.plan_table import plan_tables
    from hybrid_runtime.report.terminal import print_plainly

    write_text("--out", out, found.to_json())
    console = console_for(json_file)
    print_plainly(plan_tables(found, sentences, why_not), console)
    console.print(f"plan: {out}", markup=False, highlight=False, soft_wrap=True)
    write_json(json_file, found.model_dump(mode="json") | {"why_not": list(why_not)})


def _again(deployment: Deployment, folder: Path, measured: Calibration | None) -> tuple[Plan, tuple[str, ...]]:
    """The plan that a rehearsal folder asks for, and what it does to the balance."""
    from hybrid_runtime.calibration import refuse_other_machine
    from hybrid_runtime.planner.given import resolved
    from hybrid_runtime.planner.network import network_of
    from hybrid_runtime.planner.replan import balance_moved, replan_rehearsed
    from hybrid_runtime.run_folder import RunFolder
    from hybrid_runtime.verifier.would import read_folder

    _, before, rehearsal = read_folder(RunFolder(folder))
    if measured is not None:
        refuse_other_machine(measured, rehearsal.fingerprint)
    network = network_of(measured, deployment.hardware)
    after = replan_rehearsed(before, resolved(deployment, before, str(folder)), rehearsal, network)
    return after, (balance_moved(rehearsal, before, after), f"communication: {network.source}", *network.missing())


def _search_serving(deployment: Deployment, measured: Calibration | None, quiet: bool) -> PlannedServing:
    from hybrid_runtime.planner.serving_plan import plan_serving

    with Progress(console=Console(stderr=True), transient=True, disable=quiet) as progress:
        task = progress.add_task("planning", total=1.0)
        return plan_serving(
            deployment,
            measured,
            progress=lambda what, part: progress.update(task, description=what, completed=part),
        )


def _search(deployment: Deployment, measured: Calibration | None, tried: int, quiet: bool) -> Planned:
    from hybrid_runtime.planner.planned import SHOWN_ALTERNATIVES, plan_deployment

    with Progress(console=Console(stderr=True), transient=True, disable=quiet) as progress:
        task = progress.add_task("planning", total=1.0)
        return plan_deployment(
            deployment,
            measured,
            keep=max(1 + SHOWN_ALTERNATIVES, tried),
            progress=lambda what, part: progress.update(task, description=what, completed=part),
        )
