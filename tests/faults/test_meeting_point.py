from __future__ import annotations

import socket

from hybrid_runtime.faults.meeting_point import MeetingPoint, meeting_point


def environment(port: int) -> dict[str, str]:
    return {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}


def test_a_machine_that_answers_is_reached_although_nobody_listens_any_more() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        found = meeting_point(environment(server.getsockname()[1]))
        assert found is not None
        assert found.name == f"localhost:{server.getsockname()[1]}"
        assert found.answers(1.0)
    assert found.answers(1.0)


def test_an_address_from_which_nothing_comes_is_not_reached() -> None:
    """Nobody takes the connections, and no more than one may wait: the system leaves the next one without an answer."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        found = MeetingPoint("silent", socket.AF_INET, server.getsockname())
        with socket.create_connection(server.getsockname()):
            assert not found.answers(0.2)


def test_ranks_of_one_machine_or_without_torchrun_have_met_nowhere() -> None:
    assert meeting_point(environment(1) | {"LOCAL_WORLD_SIZE": "4"}) is None
    assert meeting_point({}) is None
    assert meeting_point(environment(1) | {"MASTER_ADDR": "no-such-name.invalid"}) is None
