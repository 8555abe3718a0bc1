"""The line between the command and rank 0: what is sent arrives, and a hang-up is noticed on both ends."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybrid_runtime.serving.line import Answering, Asking, Ended, Line, Token, call, listen
from hybrid_runtime.serving.requests import Answer, Request, Sampling

REQUESTS = [
    Request(1, (5, 6), 3, frozenset({2}), Sampling(0.5, 7, 0.9, seed=2**62)),
    Request(2, tuple(range(20_000)), 1),
]


Ends = tuple[Asking, Answering, Line, Line]


@pytest.fixture
def ends() -> Iterator[Ends]:
    ours, theirs = map(Line, socket.socketpair())
    yield Asking(ours), Answering(theirs), ours, theirs
    ours.close()
    theirs.close()


def test_requests_arrive_as_they_were_sent(ends: Ends) -> None:
    asking, answering, *_ = ends
    sender = threading.Thread(target=asking.ask, args=(REQUESTS,))  # more than a socket's buffer holds
    sender.start()
    assert answering.asked() == REQUESTS
    sender.join()


def test_tokens_and_answers_arrive_in_order(ends: Ends) -> None:
    asking, answering, *_ = ends
    assert answering.token(REQUESTS[0], 17)
    answering.ended(Answer(REQUESTS[0], 100, 150, 300, 900, (17, 2), "stop"))
    answering.ended(Answer(REQUESTS[1], 100, None, None, 200, (), "refused", "request 2 is bad"))
    assert list(asking.news(1)) == [
        Token(1, 17),
        Ended(1, "stop", "", (17, 2), 200, 800),
        Ended(2, "refused", "request 2 is bad", (), None, 100),
    ]
    assert list(asking.news(0)) == []


def test_a_cancelled_request_alone_is_not_read_any_more(ends: Ends) -> None:
    asking, answering, *_ = ends
    asking.cancel(2)
    assert answering.token(REQUESTS[0], 1)
    assert not answering.token(REQUESTS[1], 1)
    assert answering.token(REQUESTS[0], 1)


def test_a_command_that_has_gone_cancels_everything(ends: Ends) -> None:
    _, answering, ours, _ = ends
    ours.close()
    assert not answering.token(REQUESTS[0], 1)
    assert answering.asked() == []


def test_a_rank_that_has_gone_is_noticed(ends: Ends) -> None:
    asking, answering, _, theirs = ends
    answering.token(REQUESTS[0], 17)
    theirs.close()
    assert list(asking.news(1)) == [Token(1, 17)]
    assert list(asking.news(1)) == []
    assert not asking.is_open
    asking.cancel(1)


def test_calling(tmp_path: Path) -> None:
    with listen(tmp_path / "socket") as listening:
        line = call(tmp_path / "socket")
        connection, _ = listening.accept()
        Line(connection).send({"ask": []})
        assert line.received(1) == [{"ask": []}]
        line.close()
        connection.close()
