"""The line between the command `generate` and pipeline rank 0: JSON messages over a socket of this machine.

    command -> rank 0   {"ask": [request, ...]}                          once
                        {"cancel": 3, "why": "..."}                      a client has gone
    rank 0 -> command   {"token": 17, "of": 3}
                        {"answer": 3, "end": "length", "why": "", ...}   after its last token

The command listens, because it is there first. Either end notices that the other has gone.
"""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hybrid_runtime.serving.requests import Answer, End, Request, Sampling

_CHUNK_BYTES = 1 << 16


class Token(NamedTuple):
    """The next token of a request's answer."""

    request: int
    token: int


class Ended(NamedTuple):
    """A request's answer is whole, refused or cancelled. Times in ns; None where there was no token."""

    request: int
    end: End
    why: str
    tokens: tuple[int, ...]
    first_token_ns: int | None
    whole_ns: int


class Line:
    """One end of a connected socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._read = b""
        self.is_open = True

    def send(self, message: object) -> None:
        """Nothing happens where the other end has gone."""
        if self.is_open:
            try:
                self._socket.sendall(json.dumps(message, separators=(",", ":")).encode() + b"\n")
            except OSError:
                self.is_open = False

    def received(self, timeout_s: float = 0.0) -> list[dict[str, Any]]:
        """What has come, after at most so long a wait for it."""
        if not self.is_open or not select.select([self._socket], [], [], timeout_s)[0]:
            return []
        try:
            part = self._socket.recv(_CHUNK_BYTES)
        except OSError:
            part = b""
        self.is_open = bool(part)
        *whole, self._read = (self._read + part).split(b"\n")
        return [json.loads(line) for line in whole]

    def close(self) -> None:
        """Hangs up."""
        self.is_open = False
        self._socket.close()


class Answering:
    """Rank 0's end of a line: a `requests.Listener`."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._cancelled: set[int] = set()

    def asked(self) -> list[Request]:
        """Waits for the requests."""
        while self._line.is_open:
            if messages := self._line.received(1.0):
                return [_request(*values) for values in messages[0]["ask"]]
        return []

    def token(self, request: Request, token: int) -> bool:
        """Passes a token on; False if nobody reads the answer any more."""
        self._line.send({"token": token, "of": request.id})
        self._cancelled.update(message["cancel"] for message in self._line.received())
        return self._line.is_open and request.id not in self._cancelled

    def ended(self, answer: Answer) -> None:
        """Passes on what became of a request."""
        first, began = answer.first_token_ns, answer.arrival_ns
        self._line.send(
            {
                "answer": answer.request.id,
                "end": answer.end,
                "why": answer.why,
                "tokens": answer.tokens,
                "first_token_ns": None if first is None else first - began,
                "whole_ns": answer.ended_ns - began,
            }
        )


class Asking:
    """The command's end of a line."""

    def __init__(self, line: Line) -> None:
        self._line = line

    @property
    def is_open(self) -> bool:
        """Whether rank 0 is there."""
        return self._line.is_open

    def ask(self, requests: Iterable[Request]) -> None:
        """Sends the requests, once."""
        self._line.send({"ask": [_values(request) for request in requests]})

    def cancel(self, request_id: int) -> None:
        """Nobody reads this answer any more."""
        self._line.send({"cancel": request_id})

    def news(self, timeout_s: float) -> Iterator[Token | Ended]:
        """What has happened, after at most so long a wait for it."""
        for message in self._line.received(timeout_s):
            if "token" in message:
                yield Token(message["of"], message["token"])
            else:
                yield Ended(
                    message["answer"],
                    message["end"],
                    message["why"],
                    tuple(message["tokens"]),
                    message["first_token_ns"],
                    message["whole_ns"],
                )


def listen(path: Path) -> socket.socket:
    """The command's socket, which rank 0 will call."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen(1)
    return listening


def call(path: Path) -> Line:
    """Rank 0 calls the command."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    return Line(connection)


def _values(request: Request) -> Sequence[object]:
    way = request.sampling
    return (
        request.id,
        request.prompt,
        request.max_new_tokens,
        sorted(request.stop_tokens),
        (way.temperature, way.top_k, way.top_p, way.seed),
    )


def _request(number: int, prompt: list[int], most: int, stops: list[int], way: list[Any]) -> Request:
    return Request(number, tuple(prompt), most, frozenset(stops), Sampling(*way))
