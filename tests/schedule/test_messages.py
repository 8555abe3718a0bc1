from __future__ import annotations

import pytest

from hybrid_runtime.schedule.actions import parse_action
from hybrid_runtime.schedule.messages import edge_of, partner, producers, received_by, sent_by

V_SHAPE = (0, 1, 1, 0)  # stages 1 and 2 on the same rank


@pytest.mark.parametrize(
    ("send", "receive", "edge"),
    [("0SEND_F3", "1RECV_F3", (0, 1)), ("1SEND_B3", "0RECV_B3", (1, 0)), ("2SEND_F0", "3RECV_F0", (1, 0))],
)
def test_partners_share_an_edge(send: str, receive: str, edge: tuple[int, int]) -> None:
    assert str(partner(parse_action(send))) == receive
    assert str(partner(parse_action(receive))) == send
    assert edge_of(parse_action(send), V_SHAPE) == edge_of(parse_action(receive), V_SHAPE) == edge


@pytest.mark.parametrize(
    ("action", "receives", "sends"),
    [
        ("0F2", None, "0SEND_F2"),
        ("1F2", "1RECV_F2", None),  # stage 2 is on the same rank
        ("2F2", None, "2SEND_F2"),
        ("3F2", "3RECV_F2", None),
        ("3B2", None, "3SEND_B2"),
        ("2I2", "2RECV_B2", None),
        ("1B2", None, "1SEND_B2"),
        ("0B2", "0RECV_B2", None),
        ("0W2", None, None),
    ],
)
def test_messages_of_compute_actions(action: str, receives: str | None, sends: str | None) -> None:
    received, sent = received_by(parse_action(action), V_SHAPE), sent_by(parse_action(action), V_SHAPE)
    assert (received and str(received), sent and str(sent)) == (receives, sends)


def test_producers() -> None:
    assert list(map(str, producers(parse_action("0SEND_F3")))) == ["0F3"]
    assert list(map(str, producers(parse_action("1SEND_B3")))) == ["1I3", "1B3"]
