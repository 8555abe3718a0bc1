"""What the hang detector costs: the same training with it and without, in alternating blocks, in one call.

    scripts/bench faults [--quick] [--save] [--device cpu|cuda] [--only NAME]

On: as runs have it by default: every action and every wait is noted in the rank's status file, and a thread gives a
sign of life every second. Off: no thread, and nobody is told (with [faults] hang_limit_s = 0 a run still writes its
status file, for error messages; so this is all that a detector could cost). Telemetry is on in both. Goal: step time
on / off <= 1.005. Steps are small, a quarter of a second, for what is noted costs the same in longer ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.blocks import Step, Timing, measure_sides
from benchmarks.cases import Case
from benchmarks.on_and_off import OFF, ON, bench
from benchmarks.options import parser_of, sizes_and_timing
from benchmarks.ours import build_parts, stepper
from hybrid_runtime.comm.axis import NoWatch
from hybrid_runtime.deployment import Deployment
from hybrid_runtime.job_parts import Parts
from hybrid_runtime.job_watch import Watch
from hybrid_runtime.run_folder import RunFolder
from hybrid_runtime.telemetry.status import StatusFile

GOAL = 1.005
CASES = (Case("tp2", 2, 1, goal=GOAL), Case("pp2", 1, 2, goal=GOAL))


class Silent(NoWatch):
    """In place of a status file: nobody is told."""

    def step(self, step: int) -> None:
        return None

    def close(self) -> None:
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    """As `on_and_off.bench`."""
    options = parser_of("faults", __doc__, blocks=20).parse_args(arguments)
    sizes, timing = sizes_and_timing(options)
    if not options.quick:
        sizes = replace(sizes, hidden_size=256, ffn_size=704, num_heads=4, global_batch_size=8)
        timing = timing._replace(block_steps=5)
    timing = timing._replace(settle_steps=1)  # in which the detector's thread starts, or ends
    return bench("faults", options, sizes, timing, CASES, measure_rank)


def measure_rank(rank: int, deployment: Deployment, folder: Path, timing: Timing, device_type: str) -> dict[str, Any]:
    """One rank, twice: watched and not."""
    device = torch.device(device_type, rank) if device_type == "cuda" else torch.device(device_type)
    folders = {name: folder / f"records-{deployment.name}-{name}" for name in (ON, OFF)}
    parts = {name: build_parts(deployment, folders[name], device) for name in (ON, OFF)}
    silence(parts[OFF])
    detector = Detector(parts[ON], RunFolder(folders[ON]), deployment.faults.hang_limit_s)
    sides = {ON: detector.during(stepper(parts[ON])), OFF: detector.without(stepper(parts[OFF]))}
    answer = measure_sides(sides, timing, device_type)
    detector.end()
    return answer


def silence(parts: Parts) -> None:
    """Nothing of what the rank does is noted any more."""
    assert parts.recorder.status is not None
    parts.recorder.status.close()
    parts.recorder.status = parts.groups.clocks.watch = Silent()  # type: ignore[assignment]


class Detector:
    """A rank's hang detector, whose thread runs during the steps of one side only."""

    def __init__(self, parts: Parts, folder: RunFolder, limit_s: float) -> None:
        self._parts = parts
        self._folder = folder
        self._limit_s = limit_s
        self._watch: Watch | None = None

    def during(self, step: Step) -> Step:
        """The step with the detector at work."""

        def run() -> float | None:
            if self._watch is None:
                status = self._parts.recorder.status
                assert isinstance(status, StatusFile)
                self._watch = Watch(self._folder, self._parts.plan, dist.get_rank(), status, 0, self._limit_s)
                self._watch.__enter__()
            return step()

        return run

    def without(self, step: Step) -> Step:
        """The step without it."""

        def run() -> float | None:
            self.end()
            return step()

        return run

    def end(self) -> None:
        """Its thread is gone when this returns."""
        if self._watch is not None:
            self._watch.__exit__(None, None, None)
            self._watch = None


if __name__ == "__main__":
    raise SystemExit(main())
