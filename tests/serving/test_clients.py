"""Readers that stop: each is a sentence, and nobody else waits."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from hybrid_runtime.serving import clients
from hybrid_runtime.serving.clients import QUEUED, STILL_S, Client, file_client


def until_problem(client: Client) -> str:
    deadline = time.monotonic() + 10
    while client.problem is None and time.monotonic() < deadline:
        client.give("x")
        time.sleep(0.01)
    assert client.problem is not None
    assert not client.give("more")
    return client.problem


def test_a_file(tmp_path: Path) -> None:
    client = file_client(tmp_path / "1.txt")
    assert client.give("Grüße, ")
    assert client.give("Welt\n")
    client.end()
    client.wait()
    assert (tmp_path / "1.txt").read_text() == "Grüße, Welt\n"
    assert client.problem is None


def test_nothing_given_makes_no_file(tmp_path: Path) -> None:
    client = file_client(tmp_path / "1.txt")
    assert client.give("")
    client.end()
    client.wait()
    assert not (tmp_path / "1.txt").exists()


def test_a_closed_pipe() -> None:
    read_end, write_end = os.pipe()
    client = Client("standard output", lambda: write_end)
    client.give("read")
    assert os.read(read_end, 10) == b"read"
    os.close(read_end)
    assert until_problem(client) == "standard output is not read by anybody"
    client.end()
    client.wait()


def test_a_named_pipe_without_a_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "1.txt")
    assert until_problem(file_client(tmp_path / "1.txt")) == f"{tmp_path / '1.txt'} is not read by anybody"


def test_a_named_pipe_with_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "1.txt")
    read_end = os.open(tmp_path / "1.txt", os.O_RDONLY | os.O_NONBLOCK)
    client = file_client(tmp_path / "1.txt")
    client.give("hello")
    client.end()
    client.wait()
    assert os.read(read_end, 10) == b"hello"
    os.close(read_end)


def test_a_reader_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces go into the pipe, then into the queue, then the client is given up: never does anybody wait."""
    monkeypatch.setattr(clients, "STILL_S", 0.2)
    read_end, write_end = os.pipe()
    client = Client("standard output", lambda: write_end)
    given = 0
    began = time.monotonic()
    while client.give("y" * 1000):
        given += 1
        time.sleep(0.0001)
    assert given >= QUEUED
    assert client.problem == f"standard output is not read: {QUEUED} pieces of text wait for its reader"
    client.end()
    client.wait()
    assert 0.2 < time.monotonic() - began < 10
    os.close(read_end)


def test_more_than_the_queue_at_once_is_read_by_one_who_reads() -> None:
    """Pieces come faster than their thread has its turn: nobody stands still, and nothing is lost or exchanged."""
    read_end, write_end = os.pipe()
    client = Client("standard output", lambda: write_end)
    lines = [f"{number}\n" for number in range(5 * QUEUED)]
    for line in lines:
        assert client.give(line), client.problem
    client.end()
    with os.fdopen(read_end) as reader:
        assert reader.read() == "".join(lines)
    client.wait()
    assert client.problem is None


def test_a_slow_reader_reads_until_it_takes_nothing_for_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now_s=0.0)
    monkeypatch.setattr(clients, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)
    client = Client("standard output", lambda: write_end)
    client.give("y" * 100_000)
    wait_until(lambda: client._queue.empty())  # the thread has it, and the pipe takes a part of it
    for _ in range(QUEUED):
        assert client.give("y")
    for _ in range(3):
        clock.now_s += 0.9 * STILL_S
        assert client.give("y")
        os.read(read_end, 4096)
        wait_until(lambda: client._since_s == clock.now_s)  # the next piece has found room
    clock.now_s += 1.1 * STILL_S
    assert not client.give("y")
    os.close(read_end)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    problem = until_problem(file_client(tmp_path / "none" / "1.txt"))
    assert problem == f"{tmp_path / 'none' / '1.txt'} cannot be written (No such file or directory)"
