"""Readers that stop: each is a sentence, and nobody else waits."""

from __future__ import annotations

import os
import time
from pathlib import Path

from hybrid_runtime.serving.clients import QUEUED, Client, file_client


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


def test_a_reader_that_stands_still() -> None:
    """Pieces go into the pipe, then into the queue, then the client is given up: never does anybody wait."""
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
    assert time.monotonic() - began < 10
    os.close(read_end)


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    problem = until_problem(file_client(tmp_path / "none" / "1.txt"))
    assert problem == f"{tmp_path / 'none' / '1.txt'} cannot be written (No such file or directory)"
