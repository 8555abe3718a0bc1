"""Draws action lists as text, one line per pipeline rank; tests and comments use the same drawing.

rank 0 | F0 F1 B0 F2 B1 B2             one stage per rank: its number is left out
rank 1 | F0 B0 F1 B1 F2 B2

rank 0 | 0F0 3F0 3B0 0B0               several stages on a rank: every action names its stage
rank 1 | 1F0 2F0 2B0 1B0
"""

from __future__ import annotations

from collections.abc import Sequence

from hybrid_runtime.schedule.actions import Action, ActionList


def render(lists: Sequence[ActionList]) -> str:
    """The drawing, without a newline at its end; lowered lists show their SENDs and RECVs too."""
    several = any(len({action.stage for action in actions}) > 1 for actions in lists)
    width = len(str(len(lists) - 1))
    return "\n".join(
        f"rank {rank:>{width}} | " + " ".join(str(action) if several else _short(action) for action in actions)
        for rank, actions in enumerate(lists)
    )


def _short(action: Action) -> str:
    return f"{action.kind.value}{action.microbatch}"
