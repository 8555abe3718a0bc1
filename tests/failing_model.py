"""A model of which one unit goes wrong in a given step; built on the user's own model of tests/own_model.py.

units = "tests.failing_model:units"
options = { how = "raises", step = 3, microbatches = 4, event = "/tmp/x/event" }
"""

from __future__ import annotations

import os
import resource
import socket
import time
from pathlib import Path

import torch
from torch import nn

from hybrid_runtime.models.unit import Carry, Microbatch, UnitSpec
from tests import own_model


class Failing(nn.Module):
    """Passes its input on until its time has come; then leaves the time in the file `event`, and fails."""

    def __init__(self, how: str, at_call: int, event: str) -> None:
        super().__init__()
        self.how, self.at_call, self.event = how, at_call, Path(event)
        self.calls = 0

    def forward(self, carry: Carry, microbatch: Microbatch) -> Carry:
        if carry[0].device.type == "meta":  # only being counted
            return carry
        self.calls += 1
        if self.calls > self.at_call:
            time.sleep(0.5)  # so that a test sees the ranks while they live
            self.event.write_text(repr(time.time()))
            match self.how:
                case "exits":
                    os._exit(7)
                case "sleeps":
                    time.sleep(1000)
                case "cuts":
                    cut_links()
                    return carry
                case "exhausts":
                    exhaust_memory()
                case "spoils":
                    return (carry[0] * float("nan"), *carry[1:])
            raise ValueError("the unit's own words\nand pages of advice")
        return carry


def exhaust_memory() -> None:
    """Asks for 4 GiB where the system gives this process no more than 256 MiB beyond what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 2**28
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    torch.empty(2**32, dtype=torch.uint8)


def cut_links() -> None:
    """Ends every connection of this process to another rank, without a word; that to torchrun's store stays."""
    for number in map(int, os.listdir("/proc/self/fd")):
        try:
            with socket.socket(fileno=os.dup(number)) as connection:
                if connection.getpeername()[1] != int(os.environ["MASTER_PORT"]):
                    connection.shutdown(socket.SHUT_RDWR)
        except (OSError, IndexError, TypeError):  # no socket, or one that listens or is none of the network's
            continue


def units(how: str, step: int, microbatches: int, event: str) -> list[UnitSpec]:
    """The failing unit stands before the head, so it is the last stage's."""
    *others, head = own_model.units(width=16)
    return [*others, UnitSpec("failing", lambda context: Failing(how, step * microbatches, event)), head]
