"""Reads a drawing of action lists, so that tests look like the schedules they are about."""

from __future__ import annotations

from hybrid_runtime.schedule.actions import Action, ActionList, parse_action


def read_drawing(drawing: str) -> tuple[ActionList, ...]:
    """ "rank 1 | F0 0B3" -> ((1F0, 0B3),): an action without a stage belongs to the stage of the rank's number."""
    return tuple(_line(rank, line) for rank, line in enumerate(drawing.strip().splitlines()))


def _line(rank: int, line: str) -> tuple[Action, ...]:
    cells = line.partition("|")[2].split()
    return tuple(parse_action(cell if cell[0].isdigit() else f"{rank}{cell}") for cell in cells)
