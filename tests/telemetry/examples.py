"""Headers, hosts and fake instruments for this folder's tests."""

from __future__ import annotations

from hybrid_runtime.records import Device, Header, Host


def host(
    name: str = "one", affinity: tuple[int, ...] = (0,), available_cores: int = 2, threads_per_rank: int = 1
) -> Host:
    return Host(
        name=name,
        affinity=affinity,
        available_cores=available_cores,
        threads_per_rank=threads_per_rank,
        local_world_size=2,
    )


def header(rank: int = 3, stages: tuple[int, ...] = (1,)) -> Header:
    return Header(
        plan_fingerprint="p",
        deployment_fingerprint="d",
        rank=rank,
        world_size=6,
        dp=0,
        pp=1,
        tp=1,
        stages=stages,
        device=Device(kind="cpu", id="one:cores=0", name="a CPU", owned=True, total_bytes=None),
        host=host(),
        backend="gloo",
        clock="wall",
        clock_offset_ns=0,
        clock_uncertainty_ns=0,
        flops_per_step=1,
        flops_by_kind={"F": 1},
        started_utc="2026-01-01T00:00:00+00:00",
        versions={},
        environment={},
    )


class FakeStream:
    """A device whose time only moves when `run` makes it busy."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self.made = 0
        self.synchronized = 0

    def run(self, busy_ms: float) -> None:
        self.now_ms += busy_ms

    def make_event(self) -> FakeEvent:
        self.made += 1
        return FakeEvent(self)

    def synchronize(self) -> None:
        self.synchronized += 1


class FakeEvent:
    """A timing event on a `FakeStream`; like the real one, useless before it was recorded."""

    def __init__(self, stream: FakeStream) -> None:
        self._stream = stream
        self.at_ms: float | None = None

    def record(self) -> None:
        self.at_ms = self._stream.now_ms

    def synchronize(self) -> None:
        assert self.at_ms is not None

    def elapsed_time(self, end_event: FakeEvent) -> float:
        assert self.at_ms is not None
        assert end_event.at_ms is not None
        return end_event.at_ms - self.at_ms
