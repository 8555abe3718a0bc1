"""What telemetry costs: the same runtime with it on and off, in alternating blocks, in one call.

    scripts/bench telemetry [--quick] [--save] [--device cpu|cuda] [--only NAME]

On: spans, waits, CPU times, status file and a record line per step. Off: `NullRecorder`, no clock on the collectives.
Goal: step time on / off <= 1.02.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.blocks import Timing, combine, measure_sides
from benchmarks.cases import Case, make_deployment, prepare
from benchmarks.options import cases_here, parser_of, sizes_and_timing
from benchmarks.ours import build_parts, stepper
from benchmarks.ranks import run_ranks
from benchmarks.results import arguments_given, environment, markdown_table, save
from hybrid_runtime.deployment import Deployment

GOAL = 1.02
CASES = (Case("1x1", 1, 1, goal=GOAL), Case("tp2", 2, 1, goal=GOAL), Case("pp2", 1, 2, goal=GOAL))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the cases, prints the table, and with --save keeps the result. Returns 1 when the goal is missed."""
    options = parser_of("telemetry", __doc__, blocks=8).parse_args(arguments)
    sizes, timing = sizes_and_timing(options)
    result: dict[str, Any] = {"environment": environment(arguments_given(), "telemetry"), "cases": {}}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(folder, sizes)
        for case in cases_here(options, CASES):
            deployment = make_deployment(case, sizes, folder, options.device)
            ranks = run_ranks(
                case.world_size, measure_rank, deployment, folder, timing, options.device, device=options.device
            )
            figures = combine(ranks)
            met = figures["step_time_ratio"]["median"] <= GOAL
            result["cases"][case.name] = figures | {"metric": "step_time_ratio", "goal": GOAL, "met": met}
            print(f"{case.name}: done", flush=True)
    table = table_of(result)
    print(table)
    if options.save:
        print(f"saved {save('telemetry', result, table, options.results).name}")
    return 0 if all(case["met"] for case in result["cases"].values()) else 1


def measure_rank(rank: int, deployment: Deployment, folder: Path, timing: Timing, device_type: str) -> dict[str, Any]:
    """One rank, twice: with telemetry and without."""
    device = torch.device(device_type, rank) if device_type == "cuda" else torch.device(device_type)
    sides = {
        name: stepper(build_parts(deployment, folder / f"records-{deployment.name}", device, telemetry=name == "on"))
        for name in ("on", "off")
    }
    return measure_sides(sides, timing, device_type)


def table_of(result: dict[str, Any]) -> str:
    """One row per case."""
    rows = []
    for name, case in result["cases"].items():
        on, off, ratio, cpu = case["sides"]["on"], case["sides"]["off"], case["step_time_ratio"], case["cpu_ratio"]
        rows.append(
            [
                name,
                f"{on['step_time_s']:.4f}",
                f"{off['step_time_s']:.4f}",
                f"{ratio['median']:.4f} ({ratio['minimum']:.4f}-{ratio['maximum']:.4f})",
                f"{cpu['median']:.4f} ({cpu['minimum']:.4f}-{cpu['maximum']:.4f})",
                f"step <= {case['goal']}: {'met' if case['met'] else 'missed'}",
            ]
        )
    return markdown_table(["case", "on s", "off s", "step on / off", "CPU on / off", "goal"], rows)


if __name__ == "__main__":
    raise SystemExit(main())
