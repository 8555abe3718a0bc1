"""What the schedule checker reports."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """One thing wrong with a set of action lists.

    Attributes:
        rank: pipeline rank whose list is wrong.
        position: index in that list; its length where something is missing.
        action: text form of the action, e.g. "2B5".
        message: what is wrong, in words.
    """

    rank: int
    position: int
    action: str
    message: str

    def __str__(self) -> str:
        return f"pipeline rank {self.rank}, position {self.position}, {self.action}: {self.message}"
