"""What ranks really take to talk to each other here: some processes, each on a core or GPU of its own.

    collectives   shared-memory all-reduce (CPU), all-reduce, reduce-scatter, all-gather: all sizes in turn, many rounds
    messages      there and back, halved; both ways at once; and what they take from ranks at work (posting.py)
    engine        what it adds to an item of requests, where any are served (served_items.py)
    overlap       a collective under way beside a matrix product, against each of them alone
    devices       the same products on every rank: finds slow cores and GPUs

Ranks meet before each call, so that a call's time holds no waiting for a late one.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median
from time import monotonic_ns, thread_time_ns
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from hybrid_runtime.calibration import CollectiveTime, MessageTime, ServedItemTimes
from hybrid_runtime.comm.axis import Axis
from hybrid_runtime.comm.collectives import (
    all_reduce,
    start_all_reduce,
    start_gather_sequence,
    start_reduce_scatter_sequence,
)
from hybrid_runtime.comm.shared_memory import SLOT_BYTES, open_shared_memory
from hybrid_runtime.deployment import Deployment
from hybrid_runtime.errors import RunError
from hybrid_runtime.lone.company import Work
from hybrid_runtime.lone.group import LoneGroup, Traffic
from hybrid_runtime.lone.maker import Echo
from hybrid_runtime.lone.posting import posts_ns
from hybrid_runtime.lone.served_items import served_on_two
from hybrid_runtime.lone.unit_times import spread
from hybrid_runtime.stop_signals import stops_held
from hybrid_runtime.telemetry.host import settle

ROUNDS = 30
_TIMEOUT_S = 120.0
_SIZES_CPU = tuple(4096 * 4**power for power in range(6))  # 4 KiB to 4 MiB
_SIZES_CUDA = tuple(4096 * 16**power for power in range(5))  # 4 KiB to 256 MiB
_PRODUCT = 384


@dataclass(frozen=True, slots=True)
class Exchanged:
    """What ranks of one world measured."""

    collectives: tuple[CollectiveTime, ...]
    messages: tuple[MessageTime, ...]
    overlap: dict[str, str]
    device_factors: tuple[str, ...]
    served_items: tuple[ServedItemTimes, ...]


@dataclass(frozen=True, slots=True)
class _Asked:
    """What all ranks are told."""

    device_kind: str
    own_sizes: Sequence[int]
    summed_sizes: Sequence[int]
    work: Work | None
    served: Deployment | None

    @property
    def sizes(self) -> list[int]:
        """Of every call, in bytes."""
        return sorted({*(_SIZES_CPU if self.device_kind == "cpu" else _SIZES_CUDA), *self.own_sizes})


def exchange(
    ranks: int,
    device_kind: str,
    own_sizes: Sequence[int],
    summed_sizes: Sequence[int] = (),
    work: Work | None = None,
    served: Deployment | None = None,
) -> Exchanged:
    """Measures among `ranks` processes of this machine; there must be a core or GPU for each.

    Args:
        own_sizes: in bytes, beside the usual ones: what the model at hand sends.
        summed_sizes: of all-reduces only: gradients, which are larger than anything else.
        work: what ranks of a CPU compute while two of them send messages (`posting.py`); None leaves that out.
        served: whose requests two ranks of a CPU serve to show what the engine adds; None leaves that out.

    Raises:
        RunError: a process failed, or all took too long.
    """
    asked = _Asked(device_kind, own_sizes, summed_sizes, work, served)
    context = mp.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        started = [
            context.Process(target=_rank, args=(rank, ranks, folder, asked), daemon=True) for rank in range(ranks)
        ]
        try:
            with stops_held():
                for process in started:
                    process.start()
            _wait(started, Path(folder), ranks)
        finally:
            for process in (one for one in started if one.pid is not None):
                process.kill()
                process.join()
        values: dict[str, Any] = json.loads((Path(folder) / "found.json").read_text(encoding="utf-8"))
    return Exchanged(
        collectives=tuple(map(CollectiveTime.model_validate, values["collectives"])),
        messages=tuple(map(MessageTime.model_validate, values["messages"])),
        overlap=values["overlap"],
        device_factors=tuple(values["device_factors"]),
        served_items=tuple(map(ServedItemTimes.model_validate, values["served_items"])),
    )


def _wait(started: Sequence[Any], folder: Path, ranks: int) -> None:
    deadline_s = time.monotonic() + _TIMEOUT_S
    while any(process.is_alive() for process in started):
        failed = sorted(folder.glob("failed*"))
        if failed or time.monotonic() > deadline_s:
            why = failed[0].read_text(encoding="utf-8").strip().splitlines()[-1] if failed else "took too long"
            raise RunError(f"communication among {ranks} ranks could not be measured: {why}; calibrate again")
        time.sleep(0.05)
    if not (folder / "found.json").is_file():
        raise RunError(f"communication among {ranks} ranks could not be measured: a rank died; calibrate again")


def _rank(rank: int, ranks: int, folder: str, asked: _Asked) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        _measure(rank, ranks, Path(folder), asked)
    except BaseException:
        (Path(folder) / f"failed{rank}").write_text(traceback.format_exc(), encoding="utf-8")
        raise SystemExit(1) from None


def _measure(rank: int, ranks: int, folder: Path, asked: _Asked) -> None:
    cpu = asked.device_kind == "cpu"
    device = torch.device("cpu") if cpu else torch.device("cuda", rank)
    settle(rank, ranks, 1, pin=cpu)
    torch.set_num_threads(1)
    if not cpu:
        torch.cuda.set_device(device)
    store = dist.FileStore(str(folder / "store"), ranks)  # type: ignore[attr-defined]
    timeout = timedelta(seconds=_TIMEOUT_S)
    dist.init_process_group("gloo" if cpu else "nccl", store=store, rank=rank, world_size=ranks, timeout=timeout)
    group = dist.new_group(list(range(ranks)))
    shared = open_shared_memory(group, timeout) if cpu else None
    plain, fast = Axis(ranks, rank, group), Axis(ranks, rank, group, shared=shared)
    found = {
        "collectives": _collectives(plain, fast, device, asked),
        "messages": _messages(plain, device, asked) if ranks == 2 else [],
        "overlap": _overlap(plain, device) if ranks == 2 else {},
        "device_factors": _factors(plain, device),
        "served_items": [] if asked.served is None else [row.model_dump() for row in served_on_two(asked.served)],
    }
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


def _collectives(plain: Axis, fast: Axis, device: torch.device, asked: _Asked) -> list[dict[str, Any]]:
    calls: dict[tuple[str, int], Callable[[], object]] = {}
    for num_bytes in asked.sizes:
        x = torch.zeros(1, num_bytes // 4 // plain.size * plain.size, 1, device=device)
        part = x[:, : x.shape[1] // plain.size].contiguous()
        if fast.shared is not None and x.nbytes <= SLOT_BYTES:
            calls["shared_all_reduce", num_bytes] = lambda x=x: all_reduce(x, fast)  # type: ignore[misc]
        calls["all_reduce", num_bytes] = lambda x=x: all_reduce(x, plain)  # type: ignore[misc]
        calls["reduce_scatter", num_bytes] = lambda x=x: start_reduce_scatter_sequence(x, plain).wait()  # type: ignore[misc]
        calls["all_gather", num_bytes] = lambda x=part: start_gather_sequence(x, plain).wait()  # type: ignore[misc]
    for num_bytes in (size for size in asked.summed_sizes if size > max(asked.sizes)):
        x = torch.zeros(num_bytes // 4, device=device)
        calls["all_reduce", num_bytes] = lambda x=x: all_reduce(x, plain)  # type: ignore[misc]
    walls: dict[tuple[str, int], list[int]] = defaultdict(list)
    own: dict[tuple[str, int], list[int]] = defaultdict(list)
    for number in range(ROUNDS + 1):
        for key, call in calls.items():
            _meet(plain, device)
            wall_ns, cpu_ns = _timed(call, device)
            if number:  # the first round opens connections
                walls[key].append(wall_ns)
                own[key].append(cpu_ns)
    return [
        {
            "kind": kind,
            "ranks": plain.size,
            "num_bytes": num_bytes,
            "time": spread(walls[kind, num_bytes]).model_dump(),
            "own_cpu_ns": int(median(own[kind, num_bytes])) if kind == "shared_all_reduce" else 0,
        }
        for kind, num_bytes in calls
    ]


def lone_cpu_ns(ranks: int, num_bytes: int) -> int:
    """What a rank alone computes in a shared-memory all-reduce: its median over the rounds."""
    traffic = Traffic()
    axis = Axis(ranks, 0, LoneGroup(0, ranks, traffic), shared=Echo(0, ranks, torch.float32, traffic))
    x = torch.zeros(num_bytes // 4)
    device = torch.device("cpu")
    return int(median(_timed(lambda: all_reduce(x, axis), device)[1] for _ in range(ROUNDS)))


def _messages(axis: Axis, device: torch.device, asked: _Asked) -> list[dict[str, Any]]:
    other, sizes = 1 - axis.rank, asked.sizes
    one: dict[int, list[int]] = defaultdict(list)
    both: dict[int, list[int]] = defaultdict(list)
    buffers = {num_bytes: torch.zeros(2, num_bytes // 4, device=device) for num_bytes in sizes}
    for number in range(ROUNDS + 1):
        for num_bytes, (out, into) in buffers.items():
            _meet(axis, device)
            there_and_back_ns, _ = _timed(lambda out=out, into=into: _ping(axis, other, out, into), device)  # type: ignore[misc]
            _meet(axis, device)
            at_once_ns, _ = _timed(lambda out=out, into=into: _swap(axis, other, out, into), device)  # type: ignore[misc]
            if number:
                one[num_bytes].append(there_and_back_ns // 2)
                both[num_bytes].append(at_once_ns)
    posted = {} if asked.work is None else posts_ns(axis, sorted({sizes[0], *asked.own_sizes, sizes[-1]}), asked.work)
    return [
        {
            "num_bytes": size,
            "one_way": spread(one[size]).model_dump(),
            "both_ways": spread(both[size]).model_dump(),
            "post_ns": int(np.interp(size, list(posted), list(posted.values()))) if posted else 0,
        }
        for size in buffers
    ]


def _ping(axis: Axis, other: int, out: Tensor, into: Tensor) -> None:
    if axis.rank == 0:
        _done(dist.isend(out, group=axis.group, group_dst=other))
        _done(dist.irecv(into, group=axis.group, group_src=other))
    else:
        _done(dist.irecv(into, group=axis.group, group_src=other))
        _done(dist.isend(out, group=axis.group, group_dst=other))


def _swap(axis: Axis, other: int, out: Tensor, into: Tensor) -> None:
    operations = [
        dist.P2POp(dist.isend, out, group=axis.group, group_peer=other),
        dist.P2POp(dist.irecv, into, group=axis.group, group_peer=other),
    ]
    for work in dist.batch_isend_irecv(operations):
        work.wait()


def _done(work: dist.Work | None) -> None:
    assert work is not None
    work.wait()


def _overlap(axis: Axis, device: torch.device) -> dict[str, str]:
    """How much longer each takes while the other runs; a 1 MiB all-reduce beside products that last about as long."""
    x, matrix = torch.zeros(2**18, device=device), torch.randn(_PRODUCT, _PRODUCT, device=device)
    alone, product = [], []
    for _ in range(ROUNDS):
        _meet(axis, device)
        alone.append(_timed(lambda: all_reduce(x, axis), device)[0])
        product.append(_timed(lambda: matrix @ matrix, device)[0])
    count = max(1, round(median(alone) / median(product)))
    compute, collective = [], []
    for _ in range(ROUNDS):
        _meet(axis, device)
        start_ns = monotonic_ns()
        pending = start_all_reduce(x, axis)
        compute.append(_timed(lambda: [matrix @ matrix for _ in range(count)], device)[0])
        pending.wait()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        collective.append(monotonic_ns() - start_ns)
    slower = median(compute) / (count * median(product)), median(collective) / max(median(alone), median(compute))
    return {name: f"{max(1.0, factor):.3f}" for name, factor in zip(("compute", "collective"), slower)}


def _factors(axis: Axis, device: torch.device) -> list[str]:
    """Every rank's time for the same work, divided by the median rank's."""
    matrix = torch.randn(_PRODUCT, _PRODUCT, device=device)
    mine = median(_timed(lambda: [matrix @ matrix for _ in range(4)], device)[0] for _ in range(ROUNDS))
    everyone: list[float | None] = [None] * axis.size
    dist.all_gather_object(everyone, float(mine), group=axis.group)
    times = [value for value in everyone if value is not None]
    return [f"{value / median(times):.4f}" for value in times]


def _meet(axis: Axis, device: torch.device) -> None:
    all_reduce(torch.zeros(1, device=device), axis)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _timed(call: Callable[[], object], device: torch.device) -> tuple[int, int]:
    """Wall and thread CPU time of a call, the device's work included."""
    start_ns, start_cpu_ns = monotonic_ns(), thread_time_ns()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return monotonic_ns() - start_ns, thread_time_ns() - start_cpu_ns
