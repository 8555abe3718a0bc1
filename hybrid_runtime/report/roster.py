"""Who the ranks of a running side are, from the first line of their records, and what they do, from their status."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from hybrid_runtime.records import Header
from hybrid_runtime.run_folder import RunFolder
from hybrid_runtime.telemetry.status import read_status


class Member(NamedTuple):
    """One rank.

    Attributes:
        stages: "0" or "0,3"; "-" for none.
        device: its id, as in `records.Device`.
    """

    dp: int
    pp: int
    tp: int
    stages: str
    device: str
    host: str


class Roster:
    """The members of one side; each is read once, when it is first asked for and has written its header."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._members: dict[int, Member] = {}

    def member(self, rank: int) -> Member | None:
        """None while the rank has written no header."""
        if rank not in self._members:
            header = _read_header(self.folder.records / f"rank{rank}.jsonl")
            if header is None:
                return None
            stages = ",".join(map(str, header.stages)) or "-"
            self._members[rank] = Member(
                header.dp, header.pp, header.tp, stages, header.device.id, header.host.name
            )  # fmt: skip
        return self._members[rank]

    def doing(self, rank: int) -> str:
        """What the rank says it is doing right now: an action or phase; "-" where it has not said anything."""
        status = read_status(self.folder.status / f"rank{rank}")
        return "-" if status is None else status.action


def _read_header(path: Path) -> Header | None:
    """None where there is none yet: what is only shown waits for the next look."""
    try:
        with path.open("rb") as file:
            return Header.model_validate_json(file.readline())
    except (OSError, ValidationError):
        return None
