"""Schedules against each other and against torch's, and the replay against what was executed. Two ranks, in one call.

    scripts/bench schedules [--quick] [--save] [--device cpu|cuda] [--only NAME]

Every case is one schedule of ours beside torch's of the same lists (auto: beside torch's ZB-V, whose placement it has),
with the same model, weights, cuts, batches and updates, in blocks A B B A in the same processes.

    goals   step time <= 1.00 of torch's; the pipeline's part of a step within 5 % of its replay
    CPU     CPU time of all threads, ours / torch: steadier than the step where other programs share the cores
    others  what other programs used of the ranks' cores in our steps; beside more than a few per cent, measure again
    busy    CPU time of the ranks' own threads / (ranks x step), see blocks.py
    ideal   what the replay gives for it with these durations and free messages

The replay takes its durations and messages from the run's own records (`planner.measured_costs`).
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.blocks import Timing, combine, measure_sides
from benchmarks.cases import Case, make_deployment, prepare
from benchmarks.options import cases_here, parser_of, sizes_and_timing
from benchmarks.ours import build_parts, stepper
from benchmarks.peers import LOSS_TOLERANCE
from benchmarks.ranks import run_ranks
from benchmarks.results import arguments_given, environment, markdown_table, save
from benchmarks.theirs import torch_stepper
from hybrid_runtime.deployment import Deployment
from hybrid_runtime.plan import read_plan
from hybrid_runtime.planner.measured_costs import measured_costs, pipeline_times_ns
from hybrid_runtime.records import RankRecords, read_side
from hybrid_runtime.run_folder import RunFolder
from hybrid_runtime.schedule.actions import parse_actions
from hybrid_runtime.schedule.replay import replay, replay_step

REPLAY_GOAL = 0.05
NUM_LAYERS = 6
# Rank 0 holds the first and the last stage of a V: equal sums of FLOPs on both ranks, and a small first stage.
V_CUTS = ("embedding..0.mlp", "1.attn..2.mlp", "3.attn..4.attn", "4.mlp..head")


def _case(name: str, torchs_schedule: str, cuts: Sequence[str] | str = "balanced") -> Case:
    pipeline = {"schedule": name, "cuts": cuts if isinstance(cuts, str) else list(cuts)}
    return Case(name, 1, 2, goal=1.00, pipeline=pipeline, torchs_schedule=torchs_schedule)


CASES = (
    _case("1f1b", "1f1b"),
    _case("interleaved_1f1b", "interleaved_1f1b"),
    _case("zb_h1", "zb_h1"),
    _case("zb_v", "zb_v", V_CUTS),
    _case("auto", "zb_v", V_CUTS),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the cases, prints the table, and with --save keeps the result. Returns 1 when a goal is missed."""
    options = parser_of("schedules", __doc__, blocks=4).parse_args(arguments)
    sizes, timing = sizes_and_timing(options)
    sizes = replace(sizes, num_layers=NUM_LAYERS)
    result: dict[str, Any] = {"environment": environment(arguments_given(), "schedules"), "cases": {}}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(folder, sizes)
        for case in cases_here(options, CASES):
            case = replace(case, goal=case.goal if options.device == "cpu" else None)  # the goals are for CPU ranks
            deployment = make_deployment(case, sizes, folder, options.device)
            given = (deployment, case.torchs_schedule, folder, timing, options.device)
            ranks = run_ranks(case.world_size, measure_rank, *given, device=options.device)
            result["cases"][case.name] = _judge(case, combine(ranks), _replayed(_records(folder, deployment)))
            print(f"{case.name} is done", flush=True)
    table = table_of(result)
    print(table)
    if options.save:
        print(f"saved {save('schedules', result, table, options.results).name}")
    return 0 if all(case["met"] is not False for case in result["cases"].values()) else 1


def measure_rank(
    rank: int, deployment: Deployment, torchs_schedule: str, folder: Path, timing: Timing, device_type: str
) -> dict[str, Any]:
    """One rank of both sides; leaves the plan and our side's records behind."""
    device = torch.device(device_type, rank) if device_type == "cuda" else torch.device(device_type)
    records = _records(folder, deployment)
    parts = build_parts(deployment, records, device)
    ours = stepper(parts, warmup_steps=timing.warmup_steps)
    torchs = torch_stepper(deployment, parts, folder, device, schedule=torchs_schedule)
    measured = measure_sides({"ours": ours, "torch": torchs}, timing, device_type)
    parts.recorder.finish()
    if rank == 0:
        RunFolder(records).plan.write_text(parts.plan.to_json())
    return measured


def _records(folder: Path, deployment: Deployment) -> Path:
    return folder / f"records-{deployment.name}"


def _replayed(folder: Path) -> dict[str, float]:
    """What the records say of the pipeline's part of a step, and what the replay makes of their durations."""
    plan, ranks = read_plan(RunFolder(folder).plan), read_side(folder)
    lists, costs = tuple(map(parse_actions, plan.actions)), measured_costs(ranks)
    executed_s = statistics.median(pipeline_times_ns(ranks)) / 1e9
    replayed_s = float(replay_step(lists, plan.stage_to_rank, costs).makespan) / 1e9
    return {
        "executed_s": executed_s,
        "replayed_s": replayed_s,
        "error": executed_s / replayed_s - 1,
        "ideal_busy": 1 - float(replay(lists, plan.stage_to_rank, costs.durations).bubble),
        "company": company(ranks),
        "message_s": max((float(hop.latency) / 1e9 for hop in costs.hops.values()), default=0.0),
    }


def company(ranks: Sequence[RankRecords]) -> float:
    """What other programs used of the ranks' cores, as a share of the measured steps."""
    steps = [step for rank in ranks for step in rank.measured()]
    foreign_ns = sum(max(0, step.cores_busy_ns - step.process_ns) for step in steps)
    return foreign_ns / sum(step.end_ns - step.start_ns for step in steps)


def _judge(case: Case, figures: dict[str, Any], replayed: dict[str, float]) -> dict[str, Any]:
    """Adds the replay, the goals and whether they are met; both sides must have started from the same loss."""
    first = {name: side["losses"][0] for name, side in figures["sides"].items()}
    if abs(first["ours"] - first["torch"]) > LOSS_TOLERANCE:
        raise SystemExit(f"{case.name}: the two sides are not the same model: initial losses {first}")
    met = (
        {}
        if case.goal is None
        else {
            "step": figures["step_time_ratio"]["median"] <= case.goal,
            "replay": abs(replayed["error"]) <= REPLAY_GOAL,
        }
    )
    return figures | {
        "torchs_schedule": case.torchs_schedule,
        "replay": replayed,
        "metric": "step_time_ratio",
        "goal": case.goal,
        "goals_met": met,
        "met": all(met.values()) if met else None,
    }


def table_of(result: dict[str, Any]) -> str:
    """Two rows per case."""
    ours_alone = ["executed s", "replayed s", "error", "others %", "goals"]
    header = ["schedule", "side", "step s", "CPU s", "busy %", "ideal %", "step, ours / torch", "CPU", *ours_alone]
    rows = []
    for name, case in result["cases"].items():
        ours, torchs, replayed = case["sides"]["ours"], case["sides"]["torch"], case["replay"]
        ratio = case["step_time_ratio"]
        rows.append(
            [
                name,
                "ours",
                *_figures(ours),
                f"{100 * replayed['ideal_busy']:.1f}",
                f"{ratio['median']:.3f} ({ratio['minimum']:.3f}-{ratio['maximum']:.3f})",
                f"{case['cpu_ratio']['median']:.3f}",
                f"{replayed['executed_s']:.3f}",
                f"{replayed['replayed_s']:.3f}",
                f"{100 * replayed['error']:+.1f} %",
                f"{100 * replayed['company']:.1f}",
                _goals(case),
            ]
        )
        rows.append([f"  {case['torchs_schedule']}", "torch", *_figures(torchs), *[""] * 8])
    return markdown_table(header, rows)


def _figures(side: dict[str, Any]) -> list[str]:
    return [f"{side['step_time_s']:.3f}", f"{side['cpu_s']:.3f}", f"{100 * side['busy']:.1f}"]


def _goals(case: dict[str, Any]) -> str:
    if case["goal"] is None:
        return "-"
    words = {"step": f"step <= {case['goal']:.2f}", "replay": f"replay {100 * REPLAY_GOAL:.0f} %"}
    return "; ".join(f"{words[name]}: {'met' if met else 'missed'}" for name, met in case["goals_met"].items())


if __name__ == "__main__":
    raise SystemExit(main())
