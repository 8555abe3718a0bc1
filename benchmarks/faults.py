"""What the hang detector costs: the same training with it and without, step by step in turn, in one call.

    scripts/bench faults [--quick] [--save] [--device cpu|cuda] [--only NAME]

On: every action and every wait is noted in the rank's status file, as in any run. Off: nobody is told (with [faults]
hang_limit_s = 0 a run still writes its status file, for error messages: so this is all that a detector could cost).
Telemetry is on in both. A machine on which steps vary by some per cent cannot tell a half of one, so the cost is also

    accounted for   every note timed where it is taken, inside steps of their own, on the slowest rank, and the CPU time
                    of the detector's thread, which runs beside both sides: its share of the step, of each such step

Goal: that share <= 0.5 %, its whole interval, and no measured ratio that contradicts it (on / off <= 1.005 a FAIL).
Steps are small, a third of a second: longer ones take no more notes, and so a smaller share.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from statistics import median
from time import clock_gettime_ns, monotonic_ns, pthread_getcpuclockid
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from benchmarks.blocks import Step, Timing, measure_sides
from benchmarks.cases import Case
from benchmarks.on_and_off import OFF, ON, account_text, bench, judged_by_account
from benchmarks.options import parser_of, sizes_and_timing
from benchmarks.ours import build_parts, stepper
from hybrid_runtime.comm.axis import NoWatch
from hybrid_runtime.deployment import Deployment
from hybrid_runtime.job_parts import Parts
from hybrid_runtime.job_watch import THREAD_NAME, Watch
from hybrid_runtime.run_folder import RunFolder
from hybrid_runtime.telemetry.status import StatusFile

GOAL = 1.005
CASES = (Case("tp2", 2, 1, goal=GOAL), Case("pp2", 1, 2, goal=GOAL))
ACCOUNTED_STEPS = 24


class Accounted(NamedTuple):
    """One step of one rank: nanoseconds of the step, of its notes and of the detector's thread; number of notes."""

    step_ns: int
    noted_ns: int
    thread_ns: int
    notes: int


class Silent(NoWatch):
    """In place of a status file: nobody is told."""

    def step(self, step: int) -> None:
        return None

    def close(self) -> None:
        return None


class Accounting:
    """In place of a status file: passes every note on to it, and adds up how long that takes."""

    def __init__(self, status: StatusFile) -> None:
        self._status = status
        self.noted_ns = self.notes = 0

    def step(self, step: int) -> None:
        begin_ns = monotonic_ns()
        self._status.step(step)
        self._took(begin_ns)

    def doing(self, action: str) -> None:
        begin_ns = monotonic_ns()
        self._status.doing(action)
        self._took(begin_ns)

    def wait(self, name: str, axis: str) -> None:
        begin_ns = monotonic_ns()
        self._status.wait(name, axis)
        self._took(begin_ns)

    def go_on(self) -> None:
        begin_ns = monotonic_ns()
        self._status.go_on()
        self._took(begin_ns)

    def _took(self, begin_ns: int) -> None:
        self.noted_ns += monotonic_ns() - begin_ns
        self.notes += 1


def main(arguments: Sequence[str] | None = None) -> int:
    """As `on_and_off.bench`."""
    options = parser_of("faults", __doc__, blocks=100).parse_args(arguments)
    sizes, timing = sizes_and_timing(options)
    if not options.quick:
        sizes = replace(sizes, hidden_size=256, ffn_size=704, num_heads=4, global_batch_size=8)
        timing = timing._replace(settle_steps=0, block_steps=1)
    columns = {"notes a step": _notes, "accounted for": account_text}
    return bench("faults", options, sizes, timing, CASES, measure_rank, columns=columns, judge=judge)


def measure_rank(rank: int, deployment: Deployment, folder: Path, timing: Timing, device_type: str) -> dict[str, Any]:
    """One rank, twice: noting and not; then steps in which every note is timed."""
    device = torch.device(device_type, rank) if device_type == "cuda" else torch.device(device_type)
    folders = {name: folder / f"records-{deployment.name}-{name}" for name in (ON, OFF)}
    parts = {name: build_parts(deployment, folders[name], device) for name in (ON, OFF)}
    status = parts[ON].recorder.status
    assert status is not None
    tell(parts[OFF], Silent())
    sides = {name: stepper(parts[name]) for name in (ON, OFF)}
    limit_s = deployment.faults.hang_limit_s
    with Watch(RunFolder(folders[ON]), parts[ON].plan, rank, status, 0, limit_s):
        answer = measure_sides(sides, timing, device_type)
        accounting = Accounting(status)
        tell(parts[ON], accounting)
        return answer | {"accounted": accounted(sides[ON], accounting)}


def tell(parts: Parts, whom: Silent | Accounting) -> None:
    """Whatever the rank does is noted there from now on."""
    parts.recorder.status = whom  # type: ignore[assignment]
    parts.groups.clocks.watch = whom


def accounted(step: Step, accounting: Accounting) -> list[Accounted]:
    """Runs steps of which every note is timed; the clock's own calls count as part of the notes."""
    detectors = [thread.ident for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]
    clocks = [pthread_getcpuclockid(ident) for ident in detectors if ident is not None]
    assert clocks, "the detector is not at work"
    rows = []
    for _ in range(ACCOUNTED_STEPS):
        dist.barrier()
        before = monotonic_ns(), accounting.noted_ns, sum(map(clock_gettime_ns, clocks)), accounting.notes
        step()
        after = monotonic_ns(), accounting.noted_ns, sum(map(clock_gettime_ns, clocks)), accounting.notes
        rows.append(Accounted(*(now - then for now, then in zip(after, before))))
    return rows


def judge(case: Case, ranks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """As `on_and_off.judged_by_account`, of the slowest rank's steps."""
    costs = []
    for step in zip(*([Accounted(*row) for row in rank["accounted"]] for rank in ranks), strict=True):
        step_ns = max(row.step_ns for row in step)
        costs.append(Fraction(max(row.noted_ns + row.thread_ns for row in step), step_ns))
    return judged_by_account(case, ranks, costs)


def _notes(case: Mapping[str, Any]) -> str:
    return " ".join(f"{median(Accounted(*row).notes for row in rank):.0f}" for rank in case["accounted"])


if __name__ == "__main__":
    raise SystemExit(main())
