from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hybrid_runtime.comm.groups import join_groups
from hybrid_runtime.comm.point_to_point import Receiver, Sender, TensorSpec, decode_spec, encode_spec, spec_of
from hybrid_runtime.errors import RunError
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.schedule.actions import Action, Kind, parse_action
from tests.ranks import run_ranks


class CountedBytes:
    """A ledger that only adds up."""

    def __init__(self) -> None:
        self.held = self.messages = 0

    def hold(self, tensor: Tensor) -> None:
        self.held += tensor.nbytes

    def release(self, tensor: Tensor) -> None:
        self.held -= tensor.nbytes

    def count_message(self, change_bytes: int) -> None:
        self.messages += change_bytes


def test_headers_say_shapes_and_types() -> None:
    spec = spec_of([torch.zeros(2, 3), torch.zeros(4, dtype=torch.int64), torch.zeros((), dtype=torch.bfloat16)])
    assert decode_spec(encode_spec(spec)) == spec


def test_what_a_header_cannot_say_is_refused() -> None:
    with pytest.raises(RunError, match="at most 8 tensors of 6 dims"):
        encode_spec(tuple(TensorSpec((1,), torch.float32) for _ in range(9)))
    with pytest.raises(RunError, match=r"carry of torch.bool cannot be sent"):
        encode_spec((TensorSpec((1,), torch.bool),))


def forward(i: int) -> tuple[Tensor, ...]:
    return torch.full((2, 3), float(i)), torch.arange(3) + i


def two_ranks(rank: int) -> None:
    """Rank 0 sends three activations of stage 0; rank 1 announces two receives early and answers with gradients."""
    groups = join_groups(Mesh(pp_degree=2), [(0, 1), (1, 0)], device=torch.device("cpu"), backend="gloo")
    ledger = CountedBytes()
    there, back = groups.edges[0, 1], groups.edges[1, 0]
    if rank == 0:
        sender = Sender(there, groups.device, ledger)
        receiver = Receiver(back, groups.device, groups.clocks)
        receiver.announce(parse_action("0RECV_B0"))  # before anybody knows what a gradient looks like
        for i in range(3):
            sender.send(Action(0, Kind.SEND_F, i), forward(i))
            assert ledger.messages == 24 + 24  # the newest message only
            receiver.know(0, Kind.RECV_B, spec_of(forward(i)[:1]))
        gradients = receiver.take(parse_action("0RECV_B0"))
        assert gradients[0].tolist() == [[7.0] * 3] * 2
        with pytest.raises(RunError, match=r"0SEND_F9: stage 0 sends \(1,\) float32, but its first message was"):
            sender.send(Action(0, Kind.SEND_F, 9), (torch.zeros(1),))
        sender.finish()
        assert ledger.messages == 0
    else:
        sender = Sender(back, groups.device)
        receiver = Receiver(there, groups.device, groups.clocks, ledger)
        for i in range(2):
            receiver.announce(Action(1, Kind.RECV_F, i))
        for i in range(3):
            if i == 1:
                receiver.announce(Action(1, Kind.RECV_F, 2))
            buffers = receiver.take(Action(1, Kind.RECV_F, i))
            assert all(torch.equal(*pair) for pair in zip(buffers, forward(i)))
            receiver.give_back(buffers)
        assert receiver.pool.allocated == 2  # two outstanding at most, reused for the third
        assert ledger.held == 2 * (24 + 24)
        receiver.abandon(receiver.pool.take(spec_of(forward(0))))  # a unit passed it on: no buffer any more
        assert ledger.held == 24 + 24
        sender.send(parse_action("1SEND_B0"), (torch.full((2, 3), 7.0),))
        sender.finish()
    groups.barrier()


@pytest.mark.ranks
def test_messages_arrive_in_order_with_pooled_buffers() -> None:
    run_ranks(2, two_ranks)
