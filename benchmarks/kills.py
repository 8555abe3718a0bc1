"""A training that is killed at random instants, again and again: what is lost, and is anything damaged read as good?

    scripts/bench kills [--kills 100] [--seed N] [--ranks 2] [--every 4] [--synchronous] [--keep-files]

Each round starts the job with torchrun (`--resume latest` from the second on), kills torchrun and every rank with
SIGKILL at a random instant, every second time while files of a checkpoint are being written, and then looks:

    every checkpoint under its final name is whole, by every checksum
    the newest is at most two intervals behind the last finished step (synchronous: one), and never older than before
    the next round continues from exactly that one, and repeats the same losses bit for bit where steps overlap
    a byte flipped in a copy is found, and its file is named

Exit code 1 if anything of that is not so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hybrid_runtime.checkpoint import folders
from hybrid_runtime.checkpoint.reader import check_whole
from hybrid_runtime.errors import CheckpointError
from hybrid_runtime.launcher import descendants

STEPS = 10**6
START_S = 120  # from torchrun to the first step
MOST_STEPS_S = 3.0  # of stepping before a kill


class Round(NamedTuple):
    """What a killed job left.

    Attributes:
        resumed: the step from which it went on.
        losses: by step, counted over all rounds.
        saving: it was killed while files of a checkpoint were being written.
    """

    resumed: int
    losses: dict[int, str]
    saving: bool

    @property
    def done(self) -> int:
        return self.resumed + len(self.losses)


def deployment(checkpoints: Path, ranks: int, every: int, *, asynchronous: bool) -> dict[str, Any]:
    """A pipeline of `ranks` ranks whose checkpoints of some 20 MB take as long as a few of its steps."""
    return {
        "name": "kills",
        "model": {
            "preset": "tiny", "hidden_size": 192, "num_layers": max(2, ranks), "num_heads": 4, "num_kv_heads": 2,
            "ffn_size": 384,
        },
        "parallel": {"pp_degree": ranks},
        "batch": {"global_batch_size": ranks, "microbatch_size": 1, "sequence_length": 8},
        "workload": {"steps": STEPS},
        "hardware": {"device": "cpu", "oversubscribe": True},
        "checkpoint": {"folder": str(checkpoints), "every": every, "keep": 2, "asynchronous": asynchronous},
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all rounds; returns 1 if one of them shows something wrong."""
    options = _options(arguments)
    print(f"seed {options.seed}", flush=True)
    work = Path(tempfile.mkdtemp(prefix="kills-"))
    try:
        problems = _rounds(options, work)
    finally:
        if not options.keep_files:
            shutil.rmtree(work)
    for problem in problems:
        print(f"WRONG: {problem}")
    return 1 if problems else 0


def _rounds(options: argparse.Namespace, work: Path) -> list[str]:
    chance = random.Random(options.seed)
    checkpoints = work / "checkpoints"
    file = work / "deployment.json"
    values = deployment(checkpoints, options.ranks, options.every, asynchronous=not options.synchronous)
    file.write_text(json.dumps(values))
    known: dict[int, str] = {}
    newest, lost, saving, found = 0, 0, 0, 0
    problems: list[str] = []
    for number in range(options.kills):
        killed = _killed(work, file, options.ranks, number, newest, chance)
        problems += _compare(number, killed, newest, known)
        newest, problems_here = _look(number, checkpoints, newest, killed, options)
        problems += problems_here
        lost, saving = max(lost, killed.done - newest), saving + killed.saving
        if newest and (missed := _flip(checkpoints / folders.name_of(newest), work / "flipped", chance)):
            problems.append(f"round {number}: {missed}")
        found += newest > 0
        print(
            f"kill {number + 1}/{options.kills}: {killed.resumed} -> {killed.done} steps, "
            f"{'while saving, ' if killed.saving else ''}step {newest} is whole",
            flush=True,
        )
    print(
        f"{options.kills} kills, {saving} of them while saving; at most {lost} steps lost, one checkpoint every "
        f"{options.every}; {newest} steps kept in the end; {found} flipped bytes, {len(problems)} problems"
    )
    return problems


def _killed(work: Path, file: Path, ranks: int, number: int, newest: int, chance: random.Random) -> Round:
    """Starts the job, lets it step for a while, and kills all of it at once."""
    run = work / f"run{number}"
    resume = ["--resume", "latest"] if newest else []
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks),
        "-m", "hybrid_runtime.job", str(file), "--run-folder", str(run), "--quiet", *resume,
    ]  # fmt: skip
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with (work / f"log{number}.txt").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        pids: list[int] = []
        try:
            _wait(lambda: bool(_lines(run)), process, START_S)
            pids = [process.pid, *descendants(process.pid)]  # asked for now, so that later all die at one instant
            time.sleep(chance.uniform(0, MOST_STEPS_S))
            if number % 2:
                _wait(lambda: any((work / "checkpoints").glob(".partial-*/*.safetensors")), process, START_S, poll_s=0)
                time.sleep(chance.uniform(0, 0.02))
        finally:
            _kill(pids or [process.pid, *descendants(process.pid)])
            process.wait()
    saving = any((work / "checkpoints").glob(".partial-*"))
    losses = {newest + line["step"]: repr(line["loss"]) for line in _lines(run)}
    return Round(_resumed(run), losses, saving)


def _wait(happened: Any, process: subprocess.Popen[bytes], limit_s: float, poll_s: float = 0.01) -> None:
    until_s = time.monotonic() + limit_s
    while not happened():
        if process.poll() is not None or time.monotonic() > until_s:
            raise SystemExit("bench kills: the job ended by itself or took too long; see its log with --keep-files")
        time.sleep(poll_s)


def _kill(pids: Sequence[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    while any(Path(f"/proc/{pid}").exists() and _state(pid) != "Z" for pid in pids):
        time.sleep(0.001)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def _lines(run: Path) -> list[dict[str, Any]]:
    """The finished steps; the last line may be cut off."""
    try:
        text = (run / "progress.jsonl").read_text()
    except OSError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _resumed(run: Path) -> int:
    with (run / "records" / "rank0.jsonl").open() as file:
        return int(json.loads(file.readline())["trained_before"])


def _compare(number: int, killed: Round, newest: int, known: dict[int, str]) -> list[str]:
    """Where it went on, and that steps done again have the same losses."""
    problems = []
    if killed.resumed != newest:
        problems.append(f"round {number}: went on from step {killed.resumed}, and step {newest} was whole")
    other = [step for step, loss in killed.losses.items() if known.setdefault(step, loss) != loss]
    if other:
        problems.append(f"round {number}: step {other[0]} has another loss than when it was done before")
    return problems


def _look(
    number: int, checkpoints: Path, newest: int, killed: Round, options: argparse.Namespace
) -> tuple[int, list[str]]:
    """The newest whole checkpoint's step, and what is wrong with those that are there."""
    problems = []
    for path in folders.whole(checkpoints):
        try:
            check_whole(path)
        except CheckpointError as problem:
            problems.append(f"round {number}: {problem}")
    found = folders.whole(checkpoints)
    step = folders.step_of(found[-1]) if found else 0
    intervals = 1 if options.synchronous else 2
    # The step that ended last may have told of itself before its checkpoint was begun.
    if step < newest or killed.done - step > intervals * options.every:
        problems.append(f"round {number}: step {killed.done} was done, and the newest whole checkpoint is of {step}")
    return step, problems


def _flip(checkpoint: Path, copy: Path, chance: random.Random) -> str | None:
    """Flips one bit anywhere in a copy; None if that is found and its file named."""
    shutil.copytree(checkpoint, copy, dirs_exist_ok=True)
    file = chance.choice(sorted(copy.iterdir()))
    content = bytearray(file.read_bytes())
    at = chance.randrange(len(content))
    content[at] ^= 1 << chance.randrange(8)
    file.write_bytes(content)
    try:
        check_whole(copy)
    except CheckpointError as problem:
        return None if file.name in str(problem) else f"a flipped bit in {file.name} was called: {problem}"
    finally:
        shutil.rmtree(copy)
    return f"a flipped bit in byte {at} of {file.name} was read as good"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench kills", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--every", type=int, default=4, help="steps from one checkpoint to the next")
    parser.add_argument("--synchronous", action="store_true", help="steps wait for the disk")
    parser.add_argument("--keep-files", action="store_true", help="keep logs and checkpoints in the temporary folder")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
