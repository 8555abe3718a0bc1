"""All-reduce through shared memory: the sums of gloo, equal bits on every rank, and no hang when a peer leaves."""

from __future__ import annotations

import os
import random
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from hybrid_runtime.comm import shared_memory
from hybrid_runtime.comm.axis import Axis
from hybrid_runtime.comm.collectives import all_reduce, start_all_reduce
from hybrid_runtime.comm.shared_memory import SLOT_BYTES, SharedMemory, open_shared_memory
from hybrid_runtime.errors import RunError
from tests.ranks import run_ranks


def _axis(rank: int) -> Axis:
    group = dist.new_group()
    shared = open_shared_memory(group, timedelta(seconds=20))
    assert shared is not None
    return Axis(dist.get_world_size(), rank, group, shared=shared)


def _sums(rank: int) -> None:
    axis = _axis(rank)
    draw = torch.Generator().manual_seed(rank)
    pause = random.Random(rank)
    for number in range(120):  # many more than there are slots, at changing paces and sizes
        dtype = (torch.float32, torch.bfloat16, torch.float64)[number % 3]
        x = torch.randn(7, 1 + number % 5, generator=draw).to(dtype)
        plain = Axis(axis.size, rank, axis.group)
        expected = all_reduce(x.clone(), plain)
        mine = all_reduce(x, axis)
        loose = 0.05 if dtype == torch.bfloat16 else 1e-5  # another order of additions
        torch.testing.assert_close(mine, expected, rtol=loose, atol=loose)
        everyone = [torch.empty_like(mine) for _ in range(axis.size)]
        dist.all_gather(everyone, mine)
        assert all(torch.equal(mine, other) for other in everyone), "ranks must not drift apart"
        if pause.random() < 0.1:
            time.sleep(0.003)


def _falls_back(rank: int) -> None:
    axis = _axis(rank)
    shared = axis.shared
    assert shared is not None
    assert not shared.takes(torch.empty(SLOT_BYTES + 1, dtype=torch.uint8)), "too large for a slot"
    assert not shared.takes(torch.empty(0)), "nothing to send"
    first, second = (torch.full((3,), float(value + rank)) for value in (1, 10))
    one = start_all_reduce(first, axis)
    two = start_all_reduce(second, axis)  # one is under way: this goes through gloo
    assert (two.wait() == 10 * axis.size + sum(range(axis.size))).all()
    assert (one.wait() == axis.size + sum(range(axis.size))).all()
    largest = torch.full((3,), float(rank))
    assert (start_all_reduce(largest, axis, dist.ReduceOp.MAX).wait() == axis.size - 1).all()
    big = torch.ones(SLOT_BYTES // 4 + 1)
    assert (all_reduce(big, axis) == axis.size).all()
    assert not list(Path("/dev/shm").glob("hybrid_runtime-*")), "names are gone once everybody has opened the files"


def _peer_leaves(rank: int) -> None:
    shared = _axis(rank).shared
    assert shared is not None
    dist.barrier()
    if rank == 1:
        _close(shared)
        time.sleep(1)
        return
    with pytest.raises(RunError, match="left the run"):
        _exchange_until_it_fails(shared)


def _exchange_until_it_fails(shared: SharedMemory) -> None:
    x = torch.ones(4)
    for _ in range(3):
        shared.start(x).wait()
        shared.add_others(x)


def _close(shared: SharedMemory) -> None:
    """What the operating system does when a process dies."""
    for descriptor in [*shared._tell, *shared._hear.values()]:
        os.close(descriptor)


def _impossible(rank: int) -> None:
    group = dist.new_group()
    shared_memory._MEMORY = Path("/nowhere")
    assert open_shared_memory(group, timedelta(seconds=20)) is None
    shared_memory._MEMORY = Path("/dev/shm")
    if rank == 1:  # as on a host of its own: it cannot open what rank 0 made
        shared_memory._make_own = lambda folder, rank, size: None
    assert open_shared_memory(group, timedelta(seconds=20)) is None
    dist.barrier()
    assert not list(Path("/dev/shm").glob("hybrid_runtime-*"))


def _three(rank: int) -> None:
    _sums(rank)
    _falls_back(rank)


def _two(rank: int) -> None:
    _sums(rank)
    _impossible(rank)
    shared_memory._make_own = _MAKE_OWN
    _peer_leaves(rank)


_MAKE_OWN = shared_memory._make_own


@pytest.mark.ranks
def test_three_ranks_get_the_sums_of_gloo() -> None:
    run_ranks(3, _three, timeout_s=60)


@pytest.mark.ranks
def test_two_ranks_and_what_can_go_wrong() -> None:
    run_ranks(2, _two, timeout_s=60)


def test_a_silent_peer_is_named_after_the_timeout() -> None:
    reading, writing = os.pipe()
    slots = [torch.zeros(2 * SLOT_BYTES, dtype=torch.uint8) for _ in range(2)]
    shared = SharedMemory(0, slots, {1: reading}, [writing], timedelta(milliseconds=10))
    shared.start(torch.ones(2))
    os.read(reading, 1)  # the byte meant for the peer
    with pytest.raises(RunError, match=r"peer 1 sent nothing for 0\.01 s"):
        shared.wait()
    os.close(reading)
    os.close(writing)
