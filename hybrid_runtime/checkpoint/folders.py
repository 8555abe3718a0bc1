"""The folder of a training's checkpoints: what is whole, what comes next, what goes.

    checkpoints/my-run/
      step-00000020/             whole: it got this name when nothing was missing any more
      step-00000040/
      .partial-step-00000060/    being written, or left by a run that was killed meanwhile
      latest                     "step-00000040", for people and scripts
      .lock                      held by the run that writes here

The newest whole one is the one with the highest number: a folder holds one history, without branches. Whoever goes
back to an older checkpoint removes the newer ones or writes into another folder.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import socket
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

from hybrid_runtime.checkpoint.manifest import MANIFEST, Manifest
from hybrid_runtime.errors import EnvironmentProblem, UsageError
from hybrid_runtime.run_folder import sync, write_whole

LATEST, AUTO = "latest", "auto"
_WHOLE = re.compile(r"step-(\d{8,})")
_PARTIAL = ".partial-"
_LOCK = ".lock"


def whole(folder: Path) -> list[Path]:
    """The whole checkpoints in a folder, oldest first; none if there is no such folder."""
    found = [(int(match[1]), path) for path in folder.glob("step-*") if (match := _WHOLE.fullmatch(path.name))]
    return [path for _, path in sorted(found) if (path / MANIFEST).is_file()]


def name_of(step: int) -> str:
    """Of the checkpoint after `step` steps."""
    return f"step-{step:08}"


def step_of(path: Path) -> int:
    """The opposite, for a path that `whole` returned."""
    match = _WHOLE.fullmatch(path.name)
    assert match is not None, path
    return int(match[1])


def find(path: Path) -> Path | None:
    """The whole checkpoint that a path names: itself, or the newest one in it."""
    if (path / MANIFEST).is_file() and _WHOLE.fullmatch(path.resolve().name):
        return path.resolve()
    return next(reversed(whole(path)), None)


def partial(folder: Path, step: int) -> Path:
    """Where a checkpoint is while it is being written."""
    return folder / f"{_PARTIAL}{name_of(step)}"


def choose(folder: Path | None, resume: str | None, *, restarted: bool) -> Path | None:
    """The checkpoint to continue from; None to start anew. Every rank asks this before any of them writes.

    Args:
        folder: of [checkpoint]; None where there is no such table.
        resume: LATEST, AUTO (the latest where there is one), a checkpoint's folder, or a folder of checkpoints; None
            where none is asked for.
        restarted: torchrun has restarted this very run, which then continues by itself from what it has reached.

    Raises:
        UsageError: there is no such checkpoint, or the folder already holds checkpoints that come after it.
    """
    there = [] if folder is None else whole(folder)
    if resume in (LATEST, AUTO) and folder is None:
        raise UsageError(f"--resume {resume} needs the table [checkpoint], which says where checkpoints are; add it")
    if restarted and there:
        return there[-1]
    if resume == AUTO:
        return there[-1] if there else None
    chosen = None if resume is None else _asked_for(folder, resume)
    newer = [path for path in there if chosen is None or step_of(path) > step_of(chosen)]
    if newer and resume is None:
        raise UsageError(
            f"{folder}: already holds checkpoints, the newest {newer[-1].name}; continue from it with --resume latest, "
            "or name another checkpoint.folder"
        )
    if newer and chosen is not None and not restarted:
        raise UsageError(
            f"{folder}: holds {newer[-1].name}, which is newer than {chosen}, from where it shall continue; remove "
            "what is newer, or name another checkpoint.folder"
        )
    return chosen


def _asked_for(folder: Path | None, resume: str) -> Path:
    path = folder if resume == LATEST and folder is not None else Path(resume)
    found = find(path)
    if found is None:
        raise UsageError(
            f"--resume {resume}: {path} holds no whole checkpoint; name a folder step-... that a run has written, or "
            "the folder that holds some, or start anew without --resume"
        )
    return found


def refuse_unwritable(folder: Path) -> None:
    """Makes the folder if need be, and writes a file in it.

    Raises:
        EnvironmentProblem: checkpoints cannot be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-{uuid.uuid4().hex}"
        probe.write_text("")
        probe.unlink()
    except OSError as problem:
        raise _unwritable(folder, problem) from None


def take(folder: Path) -> TextIO:
    """Keeps every other run from writing there, for as long as the file that is returned stays open.

    The lock is the system's: it ends with the process, however that ends. A file system without locks lets all in.

    Raises:
        UsageError: another run writes there.
        EnvironmentProblem: the folder cannot be written.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context((folder / _LOCK).open("a+", encoding="utf-8"))
            if _is_locked(file):
                file.seek(0)
                raise UsageError(
                    f"{folder}: another run writes its checkpoints there ({file.read(200).strip()}); wait until it has "
                    "ended, or name another checkpoint.folder"
                )
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        except OSError as problem:
            raise _unwritable(folder, problem) from None
        stack.pop_all()
    return file


def refuse_newer(folder: Path, chosen: Path | None) -> None:
    """After `take`: whether the run that wrote here before has gone on since `choose`, and ended only then.

    Raises:
        UsageError: the folder holds checkpoints that come after the chosen one, or any where none was chosen.
    """
    newest = next(reversed(whole(folder)), None)
    if newest is not None and (chosen is None or step_of(newest) > step_of(chosen)):
        begun = "began" if chosen is None else f"chose {chosen.name} to go on from"
        raise UsageError(
            f"{folder}: another run has written {newest.name} since this one {begun}; run the same command again"
        )


def refuse_different(folder: Path, steps: Sequence[int]) -> None:
    """Whether all ranks have chosen the same checkpoint: each looks for itself, and a run may end meanwhile.

    Args:
        steps: of every rank's choice, -1 for none.

    Raises:
        UsageError: they have not.
    """
    if len(set(steps)) > 1:
        other = next(rank for rank, step in enumerate(steps) if step != steps[0])
        chosen = [name_of(step) if step >= 0 else "nothing" for step in (steps[0], steps[other])]
        raise UsageError(
            f"{folder}: rank 0 chose {chosen[0]} to go on from, rank {other} {chosen[1]}: another run was writing; run "
            "the same command again"
        )


def _is_locked(file: TextIO) -> bool:
    """By somebody else; if not, it is locked now, where the file system can."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        return problem.errno in (errno.EAGAIN, errno.EACCES)
    return False


def refuse_too_full(folder: Path, checkpoint_bytes: int, keep: int) -> None:
    """Whether `keep` checkpoints, and the next one beside them, fit on the disk, with what lies there already.

    Raises:
        EnvironmentProblem: they do not.
    """
    present = sum(size_of(path) for path in whole(folder)[-keep:])
    needed = (keep + 1) * checkpoint_bytes
    free = shutil.disk_usage(folder).free
    if free + present < needed:
        raise EnvironmentProblem(
            f"checkpoint.folder = {str(folder)!r}: {free} bytes are free, and keep = {keep} checkpoints of "
            f"{checkpoint_bytes} bytes and a new one beside them need {needed - present}; free space, keep fewer, or "
            "name a folder on another disk"
        )


def size_of(path: Path) -> int:
    """Bytes of the files directly in a folder."""
    return sum(file.stat().st_size for file in path.iterdir() if file.is_file())


def _unwritable(folder: Path, problem: OSError) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"checkpoint.folder = {str(folder)!r} cannot be written ({problem.strerror}); name another folder"
    )


def clear_partial(folder: Path) -> None:
    """Removes what killed runs left; no rank may be writing."""
    for path in folder.glob(f"{_PARTIAL}*"):
        shutil.rmtree(path)


def commit(folder: Path, manifest: Manifest, keep: int) -> None:
    """Makes a checkpoint whole, of which every rank's file is on the disk, and removes what is older than kept.

    A crash at any instant leaves the one before whole: the folder gets its name when nothing is missing.
    """
    source, target = partial(folder, manifest.step), folder / name_of(manifest.step)
    with (source / MANIFEST).open("w", encoding="utf-8") as file:
        file.write(manifest.to_json())
        file.flush()
        os.fsync(file.fileno())
    sync(source)
    source.rename(target)
    sync(folder)
    write_whole(folder / LATEST, f"{target.name}\n")
    for old in whole(folder)[:-keep]:
        gone = old.with_name(f"{_PARTIAL}{old.name}")  # a half removed one must not look whole
        old.rename(gone)
        shutil.rmtree(gone)
