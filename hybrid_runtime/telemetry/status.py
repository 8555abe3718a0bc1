"""What a rank is doing right now, in a file that outlives it: `status/rank<R>`, one line of fixed size.

    rank=3 step=12           stage=1 action=1B5

The file is mapped into memory and every change is one copy of a few bytes, so it costs some hundred nanoseconds and the
operating system keeps it when the rank is killed. Torch-free: the launcher reads it.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hybrid_runtime.errors import EnvironmentProblem
from hybrid_runtime.mesh import Mesh

_STEP_BYTES, _DOING_BYTES = 12, 72
_ACTION_STAGE = re.compile(r"(\d+)[A-Z]")
_LINE = re.compile(r"rank=(\d+) step=(\S+) +stage=(\S+) action=(.*?) *\n")


class Status(NamedTuple):
    """What a status file says.

    Attributes:
        step: None before the first step.
        stage: the stage of the action, or all stages of the rank for work that belongs to none.
        action: text of the last action or phase that began, for example "1B5".
    """

    rank: int
    step: int | None
    stage: str
    action: str

    def __str__(self) -> str:
        """ "stage 1, step 7, 1B5": what follows a rank's name in an error message."""
        step = "before the first step" if self.step is None else f"step {self.step}"
        return f"stage {self.stage}, {step}, {self.action}"


class StatusFile:
    """The writing end, held by the rank itself.

    Args:
        path: usually `RunFolder.status / "rank<R>"`; an older file there is overwritten.
        stages: the rank's stages.

    Raises:
        EnvironmentProblem: the file cannot be created.
    """

    def __init__(self, path: Path, rank: int, stages: Sequence[int]) -> None:
        self._stages = ",".join(map(str, stages)) or "-"
        self._texts: dict[str, bytes] = {}
        head = f"rank={rank} step=".encode()
        step = b"-".ljust(_STEP_BYTES)
        self._step = slice(len(head), len(head) + _STEP_BYTES)
        self._doing = slice(self._step.stop, self._step.stop + _DOING_BYTES)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(head + step + self._text("starting") + b"\n")
            with path.open("r+b") as file:
                self._map = mmap.mmap(file.fileno(), 0)
        except OSError as problem:
            raise EnvironmentProblem(
                f"{path}: the status file cannot be written ({problem.strerror}); free space or use another run folder"
            ) from None

    def step(self, step: int) -> None:
        """A step begins."""
        self._map[self._step] = str(step).encode().ljust(_STEP_BYTES)

    def doing(self, action: str) -> None:
        """An action or phase begins."""
        text = self._texts.get(action)
        if text is None:
            text = self._texts[action] = self._text(action)
        self._map[self._doing] = text

    def close(self) -> None:
        """Lets go of the file; what it says stays."""
        self._map.close()

    def _text(self, action: str) -> bytes:
        match = _ACTION_STAGE.match(action)
        stage = match[1] if match else self._stages
        return f"stage={stage} action={action}".encode()[:_DOING_BYTES].ljust(_DOING_BYTES)


def read_status(path: Path) -> Status | None:
    """What the rank was doing when it last wrote; None when it died before it could say, or the file is not one."""
    try:
        match = _LINE.fullmatch(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if match is None:
        return None
    step = int(match[2]) if match[2].isdigit() else None
    return Status(int(match[1]), step, match[3], match[4])


def whereabouts(folder: Path, mesh: Mesh | None, rank: int) -> str:
    """ "rank 3 (dp 0, pp 1, tp 1), stage 1, step 7, 1B5": as much of it as is known.

    Args:
        folder: `RunFolder.status`.
    """
    place = f"rank {rank}" if mesh is None or rank >= mesh.world_size else str(mesh.place(rank))
    status = read_status(folder / f"rank{rank}")
    return f"{place}, before it was set up" if status is None else f"{place}, {status}"
