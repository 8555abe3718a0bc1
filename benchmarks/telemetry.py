"""What telemetry costs: the same runtime with it on and off, in alternating blocks, in one call.

    scripts/bench telemetry [--quick] [--save] [--device cpu|cuda] [--only NAME]

On: spans, waits, CPU times, status file and a record line per step. Off: `NullRecorder`, no clock on the collectives.
Goal: step time on / off <= 1.02.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.blocks import Timing, measure_sides
from benchmarks.cases import Case
from benchmarks.on_and_off import OFF, ON, bench
from benchmarks.options import parser_of, sizes_and_timing
from benchmarks.ours import build_parts, stepper
from hybrid_runtime.deployment import Deployment

GOAL = 1.02
CASES = (Case("1x1", 1, 1, goal=GOAL), Case("tp2", 2, 1, goal=GOAL), Case("pp2", 1, 2, goal=GOAL))


def main(arguments: Sequence[str] | None = None) -> int:
    """As `on_and_off.bench`."""
    options = parser_of("telemetry", __doc__, blocks=8).parse_args(arguments)
    return bench("telemetry", options, *sizes_and_timing(options), CASES, measure_rank)


def measure_rank(rank: int, deployment: Deployment, folder: Path, timing: Timing, device_type: str) -> dict[str, Any]:
    """One rank, twice: with telemetry and without."""
    device = torch.device(device_type, rank) if device_type == "cuda" else torch.device(device_type)
    records = folder / f"records-{deployment.name}"
    sides = {name: stepper(build_parts(deployment, records, device, telemetry=name == ON)) for name in (ON, OFF)}
    return measure_sides(sides, timing, device_type)


if __name__ == "__main__":
    raise SystemExit(main())
