"""What `model.compile` saves: the same training with compiled units and without, in alternating blocks, in one call.

    scripts/bench compiled [--quick] [--save] [--device cpu|cuda] [--only NAME]

On: norms, rotary positions and SwiGLU fused by torch.compile. Off: operation by operation. It is compiled
in the steps that warm up. Goal: step time on / off <= 1, that is, whoever asks for it does not lose by it.
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

GOAL = 1.0
CASES = (Case("1x1", 1, 1, goal=GOAL), Case("tp2", 2, 1, goal=GOAL), Case("pp2", 1, 2, goal=GOAL))


def main(arguments: Sequence[str] | None = None) -> int:
    """As `on_and_off.bench`."""
    options = parser_of("compiled", __doc__, blocks=8).parse_args(arguments)
    return bench("compiled", options, *sizes_and_timing(options), CASES, measure_rank)


def measure_rank(rank: int, deployment: Deployment, folder: Path, timing: Timing, device_type: str) -> dict[str, Any]:
    """One rank, twice: compiled and not."""
    device = torch.device(device_type, rank) if device_type == "cuda" else torch.device(device_type)
    sides = {
        name: stepper(build_parts(_compiling(deployment, name == ON), folder, device, telemetry=False))
        for name in (ON, OFF)
    }
    return measure_sides(sides, timing, device_type)


def _compiling(deployment: Deployment, wanted: bool) -> Deployment:
    assert deployment.model is not None
    return deployment.model_copy(update={"model": deployment.model.model_copy(update={"compile": wanted})})


if __name__ == "__main__":
    raise SystemExit(main())
