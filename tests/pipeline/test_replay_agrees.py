"""The executor takes as long as the replay says: stages that sleep, so that eight ranks fit on two cores."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hybrid_runtime.comm.groups import Groups, join_groups
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.models.unit import Carry, Microbatch
from hybrid_runtime.pipeline.executor import Executor
from hybrid_runtime.pipeline.stage import Stage
from hybrid_runtime.planner.searched import searched_lists
from hybrid_runtime.schedule import choose
from hybrid_runtime.schedule.actions import ActionList, Kind
from hybrid_runtime.schedule.choose import AUTO
from hybrid_runtime.schedule.registry import SCHEDULES
from hybrid_runtime.schedule.replay import replay
from hybrid_runtime.telemetry.recorder import NullRecorder
from hybrid_runtime.tensor_parallel.weight_queue import WeightQueue
from tests.ranks import run_ranks

TIMES_NS = {Kind.F: 30_000_000, Kind.I: 34_500_000, Kind.W: 27_000_000}  # of a rank's whole share, 1 : 1.15 : 0.9
# With eight ranks on two cores a message takes a third of a millisecond, so actions are longer.
FACTORS = {2: 1.5, 3: 1.5, 8: 2}
BAR = 0.05 if "CI" in os.environ else 0.03
TRIES = 5
ALL = (*SCHEDULES, AUTO)
Durations = Mapping[tuple[int, Kind], int]


class Alarm:
    """Sleeps for as long as asked, on average: one wakes up late, but by how much can be learned."""

    def __init__(self) -> None:
        self._late_s = 0.0

    def sleep(self, seconds: float) -> None:
        start_s = time.monotonic()
        time.sleep(seconds - self._late_s)
        error_s = time.monotonic() - start_s - seconds
        self._late_s += 0.1 * max(-0.001, min(0.001, error_s))


class Sleeper(nn.Module):
    """A stage of known durations; its weight gradient waits in the queue as a linear's does."""

    def __init__(self, stage: int, durations: Durations, alarm: Alarm) -> None:
        super().__init__()
        self.weight_queue: WeightQueue | None = None
        self.asleep = False
        self._alarm = alarm
        self._durations_s = {kind: durations[stage, kind] / 1e9 for kind in TIMES_NS}

    def sleep(self, kind: Kind) -> None:
        if self.asleep:
            self._alarm.sleep(self._durations_s[kind])

    def forward(self, carry: Carry, microbatch: Microbatch) -> Carry:
        x = carry[0] if carry else torch.zeros((), requires_grad=True)
        return (_Sleep.apply(x, self),)  # type: ignore[no-untyped-call]


class _Sleep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, unit: Sleeper) -> Tensor:
        ctx.unit = unit
        unit.sleep(Kind.F)
        return x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        unit: Sleeper = ctx.unit
        unit.sleep(Kind.I)
        if unit.weight_queue is not None and unit.weight_queue.is_deferring:
            unit.weight_queue.push(Nap(unit))
        else:
            unit.sleep(Kind.W)
        return dy.clone(), None


class Nap:
    """The weight gradient of a `Sleeper`."""

    gathers = False
    tensors: tuple[Tensor, ...] = ()

    def __init__(self, layer: Sleeper) -> None:
        self.layer = layer

    def start(self) -> None:
        """Nothing to gather."""

    def run(self) -> None:
        self.layer.sleep(Kind.W)


def durations_of(place: Sequence[int]) -> Durations:
    """Unequal stages: 0.9, 1 and 1.1 times the mean in turn."""
    pp_degree = max(place) + 1
    times = {
        (stage, kind): int(FACTORS[pp_degree] * time_ns * (9 + stage % 3) * pp_degree / (10 * len(place)))
        for stage in range(len(place))
        for kind, time_ns in TIMES_NS.items()
    }
    return times | {(stage, Kind.B): times[stage, Kind.I] + times[stage, Kind.W] for stage in range(len(place))}


def step_of(
    lists: Sequence[ActionList], place: Sequence[int], durations: Durations, groups: Groups, num: int
) -> Callable[[], int]:
    """Runs one step and says how many ns it took, from the first rank's start to the last one's end."""
    me = groups.place.pp
    alarm = Alarm()
    sleepers = {stage: Sleeper(stage, durations, alarm) for stage, rank in enumerate(place) if rank == me}
    stages = {stage: Stage(stage, [("sleeper", unit)], training=True) for stage, unit in sleepers.items()}
    recorder = NullRecorder(torch.device("cpu"))
    executor = Executor(lists[me], stages, place, groups, loss_scale=1.0, recorder=recorder)
    batch = [Microbatch(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64))] * num
    executor.run_step(batch)  # connects, and tells the shapes, without sleeping

    def step() -> int:
        for unit in sleepers.values():
            unit.asleep = True
        dist.barrier()
        start_ns = time.monotonic_ns()
        executor.run_step(batch)
        everyone = [(0, 0)] * dist.get_world_size()
        dist.all_gather_object(everyone, (start_ns, time.monotonic_ns()))
        return max(end_ns for _, end_ns in everyone) - min(start_ns for start_ns, _ in everyone)

    return step


def lists_of(name: str, pp_degree: int, num: int, durations: Durations) -> Sequence[ActionList]:
    """The lowered lists; a search is one rank's work, because eight at once would take two cores a minute."""
    if not choose.is_searched(name):
        return choose.lowered_lists(name, pp_degree, num, "train")
    found: list[Sequence[ActionList] | None] = [None]
    if dist.get_rank() == 0:
        found = [searched_lists(choose.place(name, pp_degree), num, durations, None, 0)]
    dist.broadcast_object_list(found)
    assert found[0] is not None
    return found[0]


def compare(rank: int, pp_degree: int, names: Sequence[str]) -> None:
    num = 2 * pp_degree
    edges = {(r, (r + step) % pp_degree) for r in range(pp_degree) for step in (1, -1)}
    groups = join_groups(
        Mesh(pp_degree=pp_degree), edges, device=torch.device("cpu"), backend="gloo", timeout=timedelta(seconds=60)
    )
    problems = list[str]()
    for name in names:
        place = choose.place(name, pp_degree)
        durations = durations_of(place)
        lists = lists_of(name, pp_degree, num, durations)
        predicted_ns = int(replay(lists, place, durations).makespan)
        step = step_of(lists, place, durations, groups, num)
        errors: list[float] = []
        while len(errors) < TRIES and not (errors and abs(errors[-1]) <= BAR):
            errors.append(step() / predicted_ns - 1)
        words = f"{name}: {predicted_ns / 1e6:.0f} ms replayed, executed {', '.join(f'{e:+.1%}' for e in errors)}"
        if rank == 0:
            print(f"p = {pp_degree}, {words}", flush=True)
        if abs(errors[-1]) > BAR:
            problems.append(words)
    assert not problems, "; ".join(problems)


@pytest.mark.ranks
@pytest.mark.parametrize(
    "worlds", [((2, ALL), (3, ("1f1b", "zb_v", AUTO))), ((8, ALL[::2]), (8, ALL[1::2]))], ids=["2 and 3", "8"]
)
def test_every_schedule_takes_as_long_as_replayed(worlds: Sequence[tuple[int, Sequence[str]]]) -> None:
    """Two worlds at once: their ranks sleep nearly all the time."""

    def run(world: tuple[int, Sequence[str]]) -> None:
        run_ranks(world[0], compare, *world, timeout_s=300)

    with ThreadPoolExecutor(len(worlds)) as threads:
        list(threads.map(run, worlds))
