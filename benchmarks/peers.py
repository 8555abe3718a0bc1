"""hybrid_runtime against torch's own parallelism: the same model, weights, batches and updates, in one call.

    scripts/bench peers [--quick] [--save] [--device cpu|cuda] [--only NAME]

torch's side is `parallelize_module` (tp) and `torch.distributed.pipelining` (pp), see torch_peer.py. Our side is
`hybrid_runtime.job.run_step` with telemetry on. Both live in the same processes and take turns in blocks A B B A.

    1x1   one rank: the ideal of the others is its step time divided by their ranks
    tp2   step time <= 0.75 of torch's
    pp2   step time <= 1.00
    tp2pp3   six ranks: total CPU time <= 0.80 (on fewer than six cores the wall clock is not a measurement)
"""

from __future__ import annotations

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
from benchmarks.ranks import cores, run_ranks
from benchmarks.results import arguments_given, environment, markdown_table, save
from benchmarks.theirs import torch_stepper
from benchmarks.torch_peer import AdamWKind
from hybrid_runtime.deployment import Deployment

ONE = Case("1x1", 1, 1)
CASES = (
    ONE,
    Case("tp2", 2, 1, "step_time_ratio", 0.75),
    Case("pp2", 1, 2, "step_time_ratio", 1.00),
    Case("tp2pp3", 2, 3, "cpu_ratio", 0.80),
)
LOSS_TOLERANCE = 1e-4


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the cases, prints the table, and with --save keeps the result. Returns 1 when a goal is missed."""
    parser = parser_of("peers", __doc__, blocks=4)
    parser.add_argument("--adamw", choices=("fused", "foreach", "plain"), default="fused", help="torch's variant")
    options = parser.parse_args(arguments)
    sizes, timing = sizes_and_timing(options)
    result: dict[str, Any] = {"environment": environment(arguments_given(), "peers"), "cases": {}}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(folder, sizes)
        for case in cases_here(options, CASES):
            case = replace(case, goal=case.goal if options.device == "cpu" else None)  # the goals are for CPU ranks
            deployment = make_deployment(case, sizes, folder, options.device)
            ranks = run_ranks(
                case.world_size,
                measure_rank,
                deployment,
                folder,
                timing,
                options.device,
                options.adamw,
                device=options.device,
            )
            result["cases"][case.name] = _judge(case, combine(ranks), result["cases"].get(ONE.name), options.device)
            print(f"{case.name} is done", flush=True)
    table = table_of(result)
    print(table)
    if options.save:
        print(f"saved {save('peers', result, table, options.results).name}")
    return 0 if all(case["met"] is not False for case in result["cases"].values()) else 1


def measure_rank(
    rank: int, deployment: Deployment, folder: Path, timing: Timing, device_type: str, adamw: AdamWKind
) -> dict[str, Any]:
    """One rank of both sides."""
    device = torch.device(device_type, rank) if device_type == "cuda" else torch.device(device_type)
    parts = build_parts(deployment, folder / f"records-{deployment.name}", device)
    ours = stepper(parts)
    torchs = torch_stepper(deployment, parts, folder, device, adamw=adamw)
    return measure_sides({"ours": ours, "torch": torchs}, timing, device_type)


def _judge(case: Case, figures: dict[str, Any], one: dict[str, Any] | None, device: str) -> dict[str, Any]:
    """Adds goal, ideal and whether the goal is met; both sides must have started from the same loss."""
    first = {name: side["losses"][0] for name, side in figures["sides"].items()}
    if abs(first["ours"] - first["torch"]) > LOSS_TOLERANCE:
        raise SystemExit(f"{case.name}: the two sides are not the same model: initial losses {first}")
    met = None if case.goal is None else figures[case.metric]["median"] <= case.goal
    wall_clock = case.world_size <= cores() or device == "cuda"
    figures |= {"metric": case.metric, "goal": case.goal, "met": met, "wall_clock_is_measured": wall_clock}
    if one is not None:
        ideal = min(side["step_time_s"] for side in one["sides"].values()) / case.world_size
        figures["ideal_step_time_s"] = ideal
        figures["ideal_cpu_s"] = min(side["cpu_s"] for side in one["sides"].values())
    return figures


def table_of(result: dict[str, Any]) -> str:
    """One row per case."""
    header = ["case", "side", "step s", "CPU s", "step / ideal", "CPU / ideal", "initial loss", "ours / torch", "goal"]
    rows = []
    for name, case in result["cases"].items():
        for side, figures in case["sides"].items():
            ours = side == "ours"
            step = f"{figures['step_time_s']:.3f}" if case["wall_clock_is_measured"] else "-"
            over_step, over_cpu = "-", "-"
            if "ideal_step_time_s" in case:
                over_cpu = f"{figures['cpu_s'] / case['ideal_cpu_s']:.2f}"
                if case["wall_clock_is_measured"]:
                    over_step = f"{figures['step_time_s'] / case['ideal_step_time_s']:.2f}"
            shown = [_ratio_text("step", case["step_time_ratio"])] if case["wall_clock_is_measured"] else []
            shown.append(_ratio_text("CPU", case["cpu_ratio"]))
            rows.append(
                [
                    name if ours else "",
                    side,
                    step,
                    f"{figures['cpu_s']:.3f}",
                    over_step,
                    over_cpu,
                    f"{figures['losses'][0]:.6f}",
                    "; ".join(shown) if ours else "",
                    _goal_text(case) if ours else "",
                ]
            )
    return markdown_table(header, rows)


def _ratio_text(what: str, ratio: dict[str, float]) -> str:
    return f"{what} {ratio['median']:.3f} ({ratio['minimum']:.3f}-{ratio['maximum']:.3f})"


def _goal_text(case: dict[str, Any]) -> str:
    if case["goal"] is None:
        return "-"
    what = "step" if case["metric"] == "step_time_ratio" else "CPU"
    return f"{what} <= {case['goal']:.2f}: {'met' if case['met'] else 'missed'}"


if __name__ == "__main__":
    raise SystemExit(main())
