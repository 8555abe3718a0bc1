"""One rank's part in writing checkpoints: steps wait for a copy to host memory, a thread writes it to the disk.

    step 40 ends   save(40)     waits until step 20's file is written, copies, starts the thread
    step 41 ends                every rank tells the others what it has written, with its other numbers of the step
    step 43 ends   all said 40  rank 0's thread writes the manifest and gives the folder its name: now it is whole

So nothing waits for the disk, no thread takes part in a collective, and a checkpoint counts only when every rank's file
is on the disk. What goes wrong in a thread is raised by the next call.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from time import thread_time_ns

from hybrid_runtime.checkpoint import folders
from hybrid_runtime.checkpoint.boxes import Box
from hybrid_runtime.checkpoint.manifest import Index, Manifest, with_indexes
from hybrid_runtime.checkpoint.rank_file import RankFile
from hybrid_runtime.checkpoint.training_state import TrainingState
from hybrid_runtime.errors import EnvironmentProblem
from hybrid_runtime.run_folder import sync, write_whole

WRITER, _COMMITTER = "checkpoint write", "checkpoint commit"  # names of threads
_NICE = 19  # the least urgent


class Saver:
    """Writes this rank's files; rank 0's also makes checkpoints whole.

    Args:
        folder: of the training's checkpoints.
        written: the boxes that this rank writes (`boxes.shared_out`).
        describe: steps trained -> manifest without tensors.
        keep: how many whole checkpoints stay.
        pinned: copy into page-locked memory.

    Attributes:
        written_step: of the newest checkpoint of which this rank's file is on the disk; -1 before the first.
        skipped: steps of the training so far whose update was skipped.
        thread_ns: CPU time of its threads that have ended.
    """

    def __init__(
        self,
        folder: Path,
        rank: int,
        world_size: int,
        state: TrainingState,
        written: set[Box],
        describe: Callable[[int], Manifest],
        *,
        keep: int,
        pinned: bool,
    ) -> None:
        self._folder = folder
        self._rank = rank
        self._world_size = world_size
        self._state = state
        self._boxes = written
        self._describe = describe
        self._keep = keep
        self._file = RankFile(state.to_write(written), pinned=pinned)
        self._pending: list[Manifest] = []  # rank 0's, begun and not yet whole
        self._threads: dict[str, threading.Thread] = {}
        self._problem: Exception | None = None
        self.written_step = -1
        self.skipped = state.skipped
        self.thread_ns = 0

    @property
    def num_bytes(self) -> int:
        """What one checkpoint takes of the disk, of this rank."""
        return self._file.num_bytes

    def save(self, step: int) -> None:
        """Copies the state after `step` steps and starts writing it.

        Raises:
            EnvironmentProblem: an earlier checkpoint could not be written.
        """
        self.wait()
        assert self._state.optimizer_steps in (None, step - self.skipped), (
            "every step that was not skipped is one update"
        )
        self._file.fill(self._state.to_write(self._boxes))
        if self._rank == 0:
            self._pending.append(self._describe(step).model_copy(update={"skipped": self.skipped}))
        self._start(WRITER, lambda: self._write(step))

    def make_whole(self, everywhere: int) -> None:
        """Rank 0 finishes the checkpoints up to that step, of which every rank's file is on the disk.

        Raises:
            EnvironmentProblem: something could not be written, now or earlier.
        """
        self._raise()
        ready = [manifest for manifest in self._pending if manifest.step <= everywhere]
        if ready:
            self._join(_COMMITTER)
            self._pending = self._pending[len(ready) :]
            self._start(_COMMITTER, lambda: self._commit(ready))

    def wait(self) -> None:
        """Until the threads are done.

        Raises:
            EnvironmentProblem: something could not be written.
        """
        for name in list(self._threads):
            self._join(name)
        self._raise()

    def _join(self, name: str) -> None:
        if (thread := self._threads.pop(name, None)) is not None:
            thread.join()

    def _start(self, name: str, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True)
        self._threads[name] = thread
        thread.start()

    def _guarded(self, work: Callable[[], None]) -> None:
        # A rank on CPUs has its cores pinned, and this thread with it: it writes while the rank waits for others.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        try:
            work()
        except OSError as problem:
            self._problem = EnvironmentProblem(
                f"a checkpoint cannot be written into {self._folder} ({problem.strerror}); earlier ones stay whole; "
                "free space or mend the folder"
            )
        except Exception as problem:  # a thread has nobody to raise it to
            self._problem = problem
        finally:
            self.thread_ns += thread_time_ns()

    def _raise(self) -> None:
        if self._problem is not None:
            raise self._problem

    def _write(self, step: int) -> None:
        partial = folders.partial(self._folder, step)
        partial.mkdir(parents=True, exist_ok=True)
        index = self._file.write(partial / f"rank{self._rank}.safetensors")
        write_whole(partial / f"rank{self._rank}.json", index.model_dump_json())
        sync(partial)
        self.written_step = step

    def _commit(self, ready: list[Manifest]) -> None:
        for manifest in ready:
            partial = folders.partial(self._folder, manifest.step)
            files = [partial / f"rank{rank}.json" for rank in range(self._world_size)]
            indexes = [Index.model_validate_json(file.read_bytes()) for file in files]
            for file in files:
                os.unlink(file)
            folders.commit(self._folder, with_indexes(manifest, indexes), self._keep)
