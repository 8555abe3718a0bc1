"""Checkpoints of one rank's run: from which one it goes on, when it writes, and how it leaves when it is told to.

[checkpoint] every = 20    step 20, 40, ... and the last one    written beside the following steps
SIGTERM                    at the end of the step, all ranks    written at once; then every rank leaves with code 5
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO, cast

from hybrid_runtime.checkpoint import folders
from hybrid_runtime.checkpoint.boxes import Box, shared_out
from hybrid_runtime.checkpoint.same_training import Training, describe, restore_training
from hybrid_runtime.checkpoint.saver import Saver
from hybrid_runtime.checkpoint.training_state import TrainingState
from hybrid_runtime.comm.groups import Groups
from hybrid_runtime.deployment import Deployment
from hybrid_runtime.deployment_checkpoint import Checkpoint
from hybrid_runtime.errors import EnvironmentProblem, Preempted, UsageError
from hybrid_runtime.job_shared_folder import first_blind_rank

if TYPE_CHECKING:
    from hybrid_runtime.job_last_words import LastWords
    from hybrid_runtime.job_parts import Built
    from hybrid_runtime.job_progress import RankNumbers


def choose_checkpoint(deployment: Deployment, resume: str | None, *, restarted: bool) -> Path | None:
    """The checkpoint to go on from; None to start anew. Every rank calls this before the ranks join.

    Raises:
        UsageError: as `folders.choose`; or the workload trains nothing.
        EnvironmentProblem: checkpoints cannot be written where [checkpoint] says.
    """
    table = deployment.checkpoint
    if deployment.workload.kind != "train" and (table or resume):
        what = "[checkpoint]" if table else "--resume"
        raise UsageError(
            f"{what}: a workload of kind {deployment.workload.kind!r} trains nothing; remove it, or set workload.kind "
            "to 'train'"
        )
    folder = None if table is None else Path(table.folder)
    chosen = folders.choose(folder, resume, restarted=restarted)
    if folder is not None:
        folders.refuse_unwritable(folder)
    return chosen


class Writing(NamedTuple):
    """What it takes to write checkpoints.

    Attributes:
        lock: rank 0's hold of the folder, open as long as the run lasts.
    """

    saver: Saver
    table: Checkpoint
    steps: int
    groups: Groups
    last_words: LastWords
    lock: TextIO | None


class Checkpoints:
    """What one rank writes, and when.

    Args:
        writing: None where no checkpoints are written.

    Attributes:
        trained_before: steps that the model was trained before this run.
        resumed_from: the checkpoint it went on from.
    """

    def __init__(
        self, writing: Writing | None = None, *, trained_before: int = 0, resumed_from: Path | None = None
    ) -> None:
        self._writing = writing
        self._trained = self._saved = trained_before
        self.trained_before = trained_before
        self.resumed_from = resumed_from

    @property
    def written_step(self) -> int:
        """Of the newest checkpoint of which this rank's file is on the disk; -1 for none."""
        return -1 if self._writing is None else self._writing.saver.written_step

    @property
    def thread_ns(self) -> int:
        """CPU time that threads have taken for checkpoints, beside the steps."""
        return 0 if self._writing is None else self._writing.saver.thread_ns

    @property
    def asked_to_stop(self) -> bool:
        """This rank has been told to write a checkpoint and leave."""
        return self._writing is not None and self._writing.last_words.asked_to_stop

    def after_step(self, trained: int, numbers: Sequence[RankNumbers]) -> None:
        """Every rank calls this after every step, with the same numbers, so that all decide alike.

        Args:
            trained: steps that the model has been trained now.

        Raises:
            Preempted: a rank was told to leave; the checkpoint of this step is whole.
            EnvironmentProblem: a checkpoint could not be written.
        """
        self._trained = trained
        if self._writing is None:
            return
        saver, table, steps, *_ = self._writing
        saver.make_whole(int(min(rank.written_step for rank in numbers)))
        if trained < steps and any(rank.asked_to_stop for rank in numbers):
            self.finish()
            raise Preempted(
                f"stopped by SIGTERM after step {trained} of {steps}; {Path(table.folder) / folders.name_of(trained)} "
                "is whole: run the same command again with --resume latest"
            )
        if trained % table.every == 0 and trained < steps:
            self._complete(self._writing)  # the one before: two are never under way, so no more than two can be lost
            self._save(saver)
            if not table.asynchronous:
                self._complete(self._writing)

    def note_skipped(self) -> None:
        """The newest step's update was skipped: the optimizer has counted one step fewer than the model's data."""
        if self._writing is not None:
            self._writing.saver.skipped += 1

    def finish(self) -> None:
        """After the last step: its checkpoint is whole when this returns.

        Raises:
            EnvironmentProblem: it could not be written.
        """
        if self._writing is not None:
            self._save(self._writing.saver)
            self._complete(self._writing)
            if self._writing.lock is not None:
                self._writing.lock.close()

    def _save(self, saver: Saver) -> None:
        if self._saved != self._trained:
            saver.save(self._trained)
            self._saved = self._trained

    def _complete(self, writing: Writing) -> None:
        """Waits until the newest checkpoint is whole."""
        writing.saver.wait()
        everyone = writing.groups.gather_numbers([writing.saver.written_step])
        writing.saver.make_whole(int(min(row[0] for row in everyone)))
        writing.saver.wait()
        writing.groups.barrier()


def open_checkpoints(
    training: Training, built: Built, resumed: Path | None, last_words: LastWords, *, writing: bool
) -> Checkpoints:
    """Restores what is to be resumed, and proves that checkpoints can be written; every rank calls this.

    Args:
        resumed: as `choose_checkpoint` returned it.
        writing: whether checkpoints are written, where the deployment asks for them.

    Raises:
        CheckpointError: the checkpoint is damaged.
        UsageError: it is of another training, or has nothing left to train; or another run writes in the folder, or
            has done so meanwhile.
        EnvironmentProblem: the folder is too full, or not the same on all machines.
    """
    table, groups = training.deployment.checkpoint, training.groups
    state = TrainingState(built.units, training.specs, built.update, built.random, groups.place)
    trained = 0 if resumed is None else restore_training(training, state, resumed)
    if table is None or not writing:
        return Checkpoints(trained_before=trained, resumed_from=resumed)
    state.prepare(trained - state.skipped)
    everyone = cast("list[list[Box]]", groups.gather_objects(state.boxes))
    saver = Saver(
        Path(table.folder),
        groups.place.rank,
        groups.mesh.world_size,
        state,
        shared_out(everyone)[groups.place.rank],
        partial(describe, training),
        keep=table.keep,
        pinned=groups.device.type == "cuda",
    )
    lock = _prove_useful(Path(table.folder), groups, saver.num_bytes, table.keep, resumed)
    last_words.grace_s, last_words.checkpoints = table.grace_s, Path(table.folder)
    running = Writing(saver, table, training.deployment.workload.steps, groups, last_words, lock)
    return Checkpoints(running, trained_before=trained, resumed_from=resumed)


def _prove_useful(folder: Path, groups: Groups, num_bytes: int, keep: int, resumed: Path | None) -> TextIO | None:
    """Every rank calls this before the first step: takes the folder, clears what was left there, proves its room."""
    everyone = groups.gather_numbers([num_bytes, -1 if resumed is None else folders.step_of(resumed)])
    total = int(sum(row[0] for row in everyone))
    folders.refuse_different(folder, [int(row[1]) for row in everyone])
    lock = None
    if groups.place.rank == 0:
        with ExitStack() as stack:
            lock = stack.enter_context(folders.take(folder))
            folders.refuse_newer(folder, resumed)
            folders.clear_partial(folder)
            folders.refuse_too_full(folder, total, keep)
            stack.pop_all()
    if first_blind_rank(folder, groups) is not None:
        raise EnvironmentProblem(
            f"checkpoint.folder = {str(folder)!r} is not the folder that rank 0 sees under this name; name one on a "
            "disk that all machines share"
        )
    return lock
