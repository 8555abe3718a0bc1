"""The commands about schedules: `schedule show`, `schedule compare`, `schedule check`, and `simulate`. All is modelled.

Times are in units of a whole rank's work: --forward 1 is one microbatch through all stages of a rank, so that schedules
with one and with several stages per rank are compared fairly.
"""

from __future__ import annotations

import csv
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hybrid_runtime.cli_output import Json, console_for, refuse_unwritable, write_json, write_text
from hybrid_runtime.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from hybrid_runtime.report.schedule_facts import Case, Row

schedule_app = typer.Typer(no_args_is_help=True, help="Draw, compare and check schedules; nothing runs.")

MAX_RANKS, MAX_MICROBATCHES = 256, 4096

Pp = Annotated[int, typer.Option("--pp", help="pipeline ranks", min=1, max=MAX_RANKS)]
Microbatches = Annotated[int, typer.Option("--microbatches", help="of one step", min=1, max=MAX_MICROBATCHES)]
Forward = Annotated[str, typer.Option("--forward", metavar="TIME", help="of a rank's stages, one microbatch")]
InputGrad = Annotated[str, typer.Option("--input-grad", metavar="TIME", help="the same, input gradient")]
WeightGrad = Annotated[str, typer.Option("--weight-grad", metavar="TIME", help="the same, weight gradient")]
HopTime = Annotated[str, typer.Option("--hop", metavar="TIME", help="from one rank to another")]
Limit = Annotated[
    str | None, typer.Option("--limit", help="auto: most microbatches that a rank holds, a number or p+1 (default)")
]
Seed = Annotated[int, typer.Option("--seed", help="auto: equal seeds, equal results", min=0)]
Budget = Annotated[float, typer.Option("--budget-s", help="auto: seconds to search", min=0.1, max=86400)]


@schedule_app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="a schedule, auto, or a .csv file of action lists")],
    pp: Pp = 4,
    microbatches: Microbatches = 8,
    virtual_stages: Annotated[int | None, typer.Option("--virtual-stages", min=1, help="stages per rank")] = None,
    forward: Forward = "1",
    input_grad: InputGrad = "1",
    weight_grad: WeightGrad = "1",
    hop: HopTime = "0",
    limit: Limit = None,
    seed: Seed = 0,
    budget_s: Budget = 20.0,
    html: Annotated[Path | None, typer.Option("--html", help="also draw into this page")] = None,
    svg: Annotated[Path | None, typer.Option("--svg", help="also draw into this image")] = None,
    csv_file: Annotated[
        Path | None,
        typer.Option("--csv", help="also write the action lists, which check, show and pipeline.schedule take"),
    ] = None,
) -> None:
    """Draw a schedule's step: a row per rank, time from left to right."""
    from rich.text import Text

    from hybrid_runtime.report.cells import printable
    from hybrid_runtime.report.schedule_facts import cells_of, figures, replayed
    from hybrid_runtime.report.schedule_grid import grid_html, grid_svg, grid_text, legend
    from hybrid_runtime.report.terminal import print_plainly
    from hybrid_runtime.schedule.choose import is_file, is_searched
    from hybrid_runtime.schedule.files import lists_text

    if csv_file is not None:
        _demand_list_file(csv_file, name)
    for option, target in (("--html", html), ("--svg", svg), ("--csv", csv_file)):
        refuse_unwritable(option, target)
    case = _case(pp, microbatches, forward, input_grad, weight_grad, hop)
    if is_searched(name):
        step = _searched(case, _limit(limit, pp), seed, budget_s, virtual_stages).step
    else:
        step = replayed(name, case, virtual_stages)
    assert step is not None
    title = f"{Path(name).name if is_file(name) else name} on {pp} pipeline ranks, {microbatches} microbatches"
    below = figures(step).lines
    for path, option, draw in ((html, "--html", grid_html), (svg, "--svg", grid_svg)):
        if path is not None:
            write_text(option, path, draw(step, title, below))
    if csv_file is not None:
        write_text("--csv", csv_file, lists_text(cells_of(name, step, virtual_stages)))
    console = console_for(None)
    text = Text(f"{printable(title)}\n").append_text(grid_text(step, min(console.width, 200)))
    text.append("\n").append_text(legend(step)).append("\n" + "\n".join(below))
    print_plainly(text, console)


@schedule_app.command()
def compare(
    pp: Pp = 4,
    microbatches: Microbatches = 16,
    forward: Forward = "1",
    input_grad: InputGrad = "1",
    weight_grad: WeightGrad = "1",
    hop: HopTime = "0",
    auto: Annotated[bool, typer.Option("--auto", help="also search for a schedule")] = False,
    limit: Limit = None,
    seed: Seed = 0,
    budget_s: Budget = 20.0,
    json_file: Json = None,
) -> None:
    """Compare all schedules for these costs: bubble, utilisation, memory, traffic."""
    from hybrid_runtime.report.schedule_facts import compare_all
    from hybrid_runtime.report.schedule_tables import comparison_table, comparison_values
    from hybrid_runtime.report.terminal import print_plainly

    refuse_unwritable("--json", json_file)
    case = _case(pp, microbatches, forward, input_grad, weight_grad, hop)
    rows = compare_all(case)
    rows += [_searched(case, _limit(limit, pp), seed, budget_s)] if auto else []
    print_plainly(comparison_table(case, rows), console_for(json_file))
    write_json(json_file, comparison_values(case, rows))


@schedule_app.command("check")
def check_lists(
    file: Annotated[Path, typer.Argument(metavar="FILE.csv", help="action lists, one row per pipeline rank")],
) -> None:
    """Check a foreign list of actions and point at the first wrong one. Exit code 1 if there is any."""
    from hybrid_runtime.report.cells import printable
    from hybrid_runtime.schedule.files import check_file, in_file, read_lists

    findings = check_file(file).findings
    console = console_for(None)
    if findings:
        lines = [f"FAIL: {file}: {in_file(findings[0])}", *_pointed_at(file, findings[0].rank, findings[0].position)]
        lines += [f"also {in_file(finding)}" for finding in findings[1:10]]
        lines += [f"and {len(findings) - 10} more"] if len(findings) > 10 else []
    else:
        found = read_lists(file)
        lines = [
            f"PASS: {file}: {len(found.lists)} pipeline ranks, {len(found.stage_to_rank)} stages, "
            f"{found.num_microbatches} microbatches, workload {found.workload}: complete and free of deadlock"
        ]
    for line in lines:
        console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(ExitCode.FAIL if findings else ExitCode.PASS)


def simulate(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN.json", help="plan.json of a run folder")],
    flops_per_s: Annotated[
        str | None, typer.Option("--flops-per-s", metavar="RATE", help="of one rank, e.g. 1e12; default: no seconds")
    ] = None,
    json_file: Json = None,
) -> None:
    """Replay a plan's own action lists with durations from its FLOPs. Modelled, nothing is measured."""
    from hybrid_runtime.plan import read_plan
    from hybrid_runtime.planner.simulate import simulate_plan
    from hybrid_runtime.report.schedule_tables import simulation_table, simulation_values
    from hybrid_runtime.report.terminal import print_plainly

    refuse_unwritable("--json", json_file)
    rate = None if flops_per_s is None else _time("--flops-per-s", flops_per_s)
    if rate == 0:
        raise UsageError("--flops-per-s 0: no work is ever done at this rate; give for example 1e12")
    simulated = simulate_plan(read_plan(plan_file), str(plan_file), rate)
    print_plainly(simulation_table(simulated), console_for(json_file))
    write_json(json_file, simulation_values(simulated))


def _case(pp: int, microbatches: int, forward: str, input_grad: str, weight_grad: str, hop: str) -> Case:
    from hybrid_runtime.report.schedule_facts import Case

    options = ("--forward", forward), ("--input-grad", input_grad), ("--weight-grad", weight_grad), ("--hop", hop)
    times = [_time(option, text) for option, text in options]
    if not any(times[:3]):
        raise UsageError("--forward, --input-grad and --weight-grad are all 0: there is no work; give one a time")
    return Case(pp, microbatches, *times)


def _demand_list_file(path: Path, name: str) -> None:
    """A file of lists is known by its ending, and the one that is shown must not be overwritten."""
    if path.suffix.lower() != ".csv":
        raise UsageError(f"--csv {path}: must end in .csv, or pipeline.schedule takes it for a name; use {path}.csv")
    if path.exists() and Path(name).exists() and path.samefile(name):
        raise UsageError(f"--csv {path}: is the file that is shown; name another one")


def _searched(case: Case, limit: int, seed: int, budget_s: float, virtual_stages: int | None = None) -> Row:
    """Searches, with a progress bar where stderr is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    from hybrid_runtime.report.schedule_facts import searched

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("searching", total=1.0)
        return searched(case, limit, seed, budget_s, virtual_stages, lambda done: bar.update(task, completed=done))


def _time(option: str, text: str) -> Fraction:
    """A number of an option, exactly as it is written."""
    try:
        value = Fraction(text) if len(text) <= 20 else None
    except (ValueError, ZeroDivisionError):
        value = None
    if value is None or not (value == 0 or Fraction(1, 10**12) <= value <= 10**24):
        raise UsageError(f"{option} {text}: must be 0 or a number from 1e-12 to 1e24; write for example 1.15")
    return value


def _limit(text: str | None, pp: int) -> int:
    """A number of microbatches, or "p+1"."""
    head, plus, rest = (text or "p+1").replace(" ", "").partition("+")
    try:
        number = (pp if head == "p" else int(head)) + (int(rest) if plus else 0)
    except ValueError:
        number = 0
    if not 1 <= number <= 10**9:
        raise UsageError(f"--limit {text}: must be a number of microbatches from 1, or for example p+1")
    return number


def _pointed_at(file: Path, row: int, cell: int) -> list[str]:
    """The cell among its neighbours, and a mark under it; nothing where the row does not hold it any more."""
    with file.open(encoding="utf-8-sig", newline="") as lines:
        rows = list(csv.reader(lines))
    if row >= len(rows):
        return []
    first = max(0, cell - 4)
    before = [text.strip()[:40] for text in rows[row][first:cell]]
    around = [text.strip()[:40] for text in rows[row][cell : cell + 4]]
    start = f"  row {row + 1}: " + ("... " if first else "") + "".join(f"{text} " for text in before)
    return [start + " ".join(around), " " * len(start) + "^" * max(1, len(around[0]) if around else 1)]
