"""Small pipelines whose bytes can be counted by hand; tests/lone/test_predicted_bytes.py compares ledgers."""

from __future__ import annotations

from hybrid_runtime.schedule.actions import ActionList, Kind, parse_actions
from hybrid_runtime.schedule.held_bytes import Held, held_peaks
from hybrid_runtime.schedule.lower import lower
from hybrid_runtime.schedule.step_costs import ActionBytes, Received, StepCosts

MESSAGE = 10


def lists(*rows: str) -> list[ActionList]:
    return [parse_actions(row.split()) for row in rows]


def costs(held: ActionBytes) -> StepCosts:
    messages = {(0, Kind.SEND_F): MESSAGE, (1, Kind.SEND_B): MESSAGE}
    return StepCosts({}, message_bytes=messages, action_bytes=held)


def test_whole_backwards() -> None:
    """
    rank 0 | RECV_B0 RECV_B1 F0 SEND F1 SEND B0 B1      at F1: 2 x 100 kept, 2 buffers posted, F0's message: 200 + 30
    rank 1 | RECV_F0 RECV_F1 F0 B0 SEND F1 B1           at F1: 100 kept, 10 of them in one of 2 buffers, B0's: 100 + 20
    """
    held = ActionBytes(
        kept={(0, Kind.F): 100, (1, Kind.F): 100},
        freed={(0, Kind.B): 100, (1, Kind.B): 100},
        received={
            (1, Kind.RECV_F): Received(MESSAGE, MESSAGE, (Kind.I, Kind.B)),
            (0, Kind.RECV_B): Received(MESSAGE, MESSAGE, (Kind.W, Kind.B)),
        },
    )
    lowered = lower(lists("0F0 0F1 0B0 0B1", "1F0 1B0 1F1 1B1"), (0, 1))
    assert held_peaks(lowered, (0, 1), costs(held)) == (Held(200, 30), Held(100, 20))


def test_a_gradient_is_kept_from_i_to_w() -> None:
    """
    rank 0 | RECV_B0 RECV_B1 F0 SEND F1 SEND I0 I1 W0 W1

    I exchanges the input for the gradient, which lies in its receive buffer: both buffers are activations after I1.
    """
    held = ActionBytes(
        kept={(0, Kind.F): 100},
        freed={(0, Kind.W): 100},
        temporary={(0, Kind.I): 50},
        received={(0, Kind.RECV_B): Received(MESSAGE, MESSAGE, (Kind.W, Kind.B))},
    )
    lowered = lower(lists("0F0 0F1 0I0 0I1 0W0 0W1", "1F0 1I0 1W0 1F1 1I1 1W1"), (0, 1))
    assert held_peaks(lowered, (0, 1), costs(held))[0] == Held(250, 20)  # at I0: one buffer of two, and the message


def test_a_sharded_embedding() -> None:
    """
    rank 0 | 0EF0 0EF1 0F0 ...     14 in two sums at 0EF1; 0F0 keeps 5 of its sum as its input and lets go of it
    rank 1 | 1EF0 1EF1 ...         the newest part sent, and two buffers for gradients
    """
    held = ActionBytes(
        kept={(0, Kind.F): 5}, freed={(0, Kind.B): 5}, received={(0, Kind.EF): Received(7, 5, (Kind.F,))}
    )
    found = held_peaks(
        lists("0EF0 0EF1 0F0 0F1 0B0 0EB0 0B1 0EB1", "1EF0 1EF1 1EB0 1EB1"),
        (0, 1),
        StepCosts({}, message_bytes={(0, Kind.EF): 7, (1, Kind.EF): 7, (0, Kind.EB): 7}, action_bytes=held),
    )
    assert found == (Held(0, 14), Held(0, 21))
