"""Groups of one present member: what they say they are, and what they write."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from hybrid_runtime.comm.axis import Axis, through_host
from hybrid_runtime.comm.groups import Edge
from hybrid_runtime.comm.lookups import Broadcasts, Sums
from hybrid_runtime.comm.point_to_point import TensorSpec, staging_of
from hybrid_runtime.lone.group import LoneGroup, Traffic

CPU, GPU = torch.device("cpu"), torch.device("cuda")  # a name of a device: no GPU is touched
SPEC = (TensorSpec((3, 4), torch.float32),)


def lone(rank: int, size: int = 3) -> LoneGroup:
    return LoneGroup(rank, size, Traffic())


def test_ranks_that_share_a_gpu_go_through_the_host() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        group = dist.new_group([0], backend="gloo")
        assert (through_host(group, GPU), through_host(group, CPU)) == (True, False)
    finally:
        dist.destroy_process_group()


def test_a_lone_rank_on_a_gpu_takes_the_way_of_nccl() -> None:
    """No group of its is known to torch's world: it says itself what it is."""
    with pytest.raises(ValueError, match="not initialized in the world group map"):
        dist.get_backend(lone(0))
    assert not through_host(lone(0), GPU)
    assert staging_of(Edge(0, 1, 1, lone(0)), GPU) is None
    for parts in (Sums(Axis(3, 1, lone(1)), 0, False, GPU, None), Broadcasts(Axis(3, 1, lone(1)), 0, GPU, None)):
        assert parts._host is False


def test_what_another_would_have_broadcast_is_random_and_a_weight_stays() -> None:
    broadcasts = Broadcasts(Axis(3, 1, lone(1)), 0, CPU, None)
    (first,) = broadcasts.take(SPEC, "wait", more=False)
    assert 0.1 < first.std() < 10
    weight = nn.Parameter(torch.full((2, 2), 7.0))
    for tensor, root in ((weight, 0), (torch.full((2, 2), 7.0), 1)):
        dist.broadcast(tensor, group=lone(1), group_src=root)
        assert tensor.eq(7).all()


def test_the_own_part_is_the_sum() -> None:
    sums, part = Sums(Axis(3, 0, lone(0)), 0, True, CPU, None), torch.ones(3, 4)
    sums.start(0, part)
    taken: Tensor = sums.take(0, "wait")
    assert taken.eq(1).all()
