"""How far a run is. Rank 0 writes a line per step; whoever started the run shows it.

    rank 0 --ProgressLine--> progress.jsonl --ProgressTail--> terminal, TensorBoard, ...   (by hybrid-runtime)
    rank 0 --ProgressLine-----------------------------------> the same                     (plain torchrun)

A line is a picture, not a record: what is judged stands in `records/`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hybrid_runtime.report.cells import printable
from hybrid_runtime.report.figures import overall_text

EXTREMES = 16  # idlest and busiest ranks that a line names at every step, of each kind
ROTATING = 32  # further ranks that a line names in turn, so that each is heard of in a while
MAX_LOADS = 2 * EXTREMES + ROTATING


class RankLoad(NamedTuple):
    """One rank in one step.

    Attributes:
        busy_percent, wait_percent: compute without waits, and waits for other ranks, of the longest rank's step; None
            where they were not measured.
        memory_bytes: the allocator's peak of the step before on a GPU, the byte ledger's newest figure elsewhere; None
            before it was first weighed.
        tokens_per_s: tokens of the rank's replica in its own step.
    """

    rank: int
    busy_percent: float | None
    wait_percent: float | None
    memory_bytes: int | None
    tokens_per_s: float

    def known_since(self, before: RankLoad | None) -> RankLoad:
        """This step's figures, and the ones from before where this step has none."""
        if before is None:
            return self
        return self._replace(
            busy_percent=before.busy_percent if self.busy_percent is None else self.busy_percent,
            wait_percent=before.wait_percent if self.wait_percent is None else self.wait_percent,
            memory_bytes=before.memory_bytes if self.memory_bytes is None else self.memory_bytes,
        )


def loads_to_tell(busy: Sequence[float], turn: int) -> list[int]:
    """The ranks that one line names: all up to MAX_LOADS, else the idlest, the busiest, and others in turn.

    Args:
        busy: of every rank, any figure that grows with its load.
        turn: how many lines named ranks before this one.
    """
    ranks = range(len(busy))
    if len(busy) <= MAX_LOADS:
        return list(ranks)
    order = sorted(ranks, key=busy.__getitem__)
    others = ((turn * ROTATING + k) % len(busy) for k in range(ROTATING))
    return sorted({*order[:EXTREMES], *order[-EXTREMES:], *others})


SideName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_ -]{0,39}$")]  # also names a folder, and a bar


class ProgressLine(BaseModel):
    """One finished step of one side. Fields that a newer version adds are left aside by an older reader.

    Attributes:
        step: steps that this side has finished.
        side: "candidate", "baseline", or the name of another one that runs beside them.
        steps: how many it will be; an estimate that may grow.
        trained_before: steps of the model up to the checkpoint from which the run went on; 0 without one.
        loss: mean loss of the step; None where it is not known (forward only, or another host holds the head).
        validation_loss: mean loss over the batches of a validation; None where this step did not end with one.
        grad_norm: global gradient norm before clipping; None for forward only.
        learning_rate: of the step's update; None for forward only.
        first_token_s, output_token_s, request_s: median latencies of the requests of the judged rounds so far; None
            where no requests are served.
        mfu: model FLOPs utilisation, from 0 to 1; None where no peak rate is known for a device.
        busiest, idlest: (rank, compute-busy percent of the step); None where busy shares were not exchanged.
        ranks: the ranks that `loads_to_tell` chose; none where the last line that named some is only moments old.
        left_out: how many ranks this line does not name.
    """

    model_config = ConfigDict(
        extra="ignore", frozen=True, ser_json_inf_nan="strings"
    )  # a diverged loss is shown as nan

    step: int
    steps: int
    side: SideName = "candidate"
    phase: str
    trained_before: int = 0
    loss: float | None = None
    validation_loss: float | None = None
    grad_norm: float | None = None
    learning_rate: float | None = None
    first_token_s: float | None = None
    output_token_s: float | None = None
    request_s: float | None = None
    mfu: float | None = None
    tokens_per_s: float
    step_time_s: float
    busiest: tuple[int, float] | None = None
    idlest: tuple[int, float] | None = None
    ranks: tuple[RankLoad, ...] = ()
    left_out: int = 0

    def known_since(self, before: ProgressLine | None) -> ProgressLine:
        """This step's figures, and the newest validation loss where this step did not end with one."""
        if before is None or self.validation_loss is not None:
            return self
        return self.model_copy(update={"validation_loss": before.validation_loss})

    @property
    def charted_step(self) -> int:
        """Over which charts draw this line: the curves of a training go on where a run has resumed it."""
        return self.trained_before + self.step

    def to_line(self) -> str:
        """One line of JSON, newline included."""
        return self.model_dump_json() + "\n"

    def figures(self) -> str:
        """ "loss 2.513  [...]  5 343 tokens/s  383 ms/step  MFU n/a  busiest rank 3 91 %  idlest rank 0 72 %"."""
        parts = [self.overall()]
        for word, who in (("busiest", self.busiest), ("idlest", self.idlest)):
            if who is not None:
                parts.append(f"{word} rank {who[0]} {who[1]:.0f} %")
        return "  ".join(parts)

    def overall(self) -> str:
        """ "loss 2.513  norm 0.81  lr 0.0003  5 343 tokens/s  383 ms/step  MFU n/a": what belongs to no rank."""
        return overall_text(self)

    def __str__(self) -> str:
        return printable(f"{self.side} step {self.step}/{self.steps} ({self.phase})  {self.figures()}")


class ProgressTail:
    """Reads what was appended to a progress.jsonl since the last look; the file may not exist yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read_new(self) -> list[ProgressLine]:
        """The complete lines since the last call; a half-written one is left for the next, one that is no record is
        left out (progress is a picture: it never fails a run)."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                text = file.read()
        except OSError:
            return []
        complete = text[: text.rfind(b"\n") + 1]
        self._offset += len(complete)
        return list(_parsed(complete.splitlines()))


def _parsed(lines: Iterable[bytes]) -> Iterable[ProgressLine]:
    for line in lines:
        try:
            yield ProgressLine.model_validate_json(line)
        except ValidationError:
            continue
