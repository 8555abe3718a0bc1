"""A training that is killed at random instants, again and again: what is lost, and is anything damaged read as good?

    scripts/bench kills [--kills 100] [--seed N] [--ranks 2] [--every 4] [--synchronous] [--torchrun] [--save]

Each round starts the job (`--resume latest` when a checkpoint is whole) and kills every rank with SIGKILL, all at one
random instant: in every second round while files of a checkpoint are being written, in every eighth while the job is
still starting or reading its checkpoint, in the others at any time of some seconds of steps. And then it looks:

    every checkpoint under its final name is whole, by every checksum
    the newest is at most two intervals behind the last finished step (synchronous: one), and never older than before
    the next round continues from exactly that one, and repeats the same losses bit for bit where steps overlap
    a byte flipped in a copy is found, and its file is named

Exit code 1 if anything of that is not so. Ranks are forked from a process that has read this package already, which
saves most of a round's time; with --torchrun each round starts torchrun anew, and it dies with its ranks.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.results import RESULTS, arguments_given, environment, save
from benchmarks.started_jobs import Forked, Job, Torchrun, kill
from hybrid_runtime.checkpoint import folders
from hybrid_runtime.checkpoint.reader import check_whole
from hybrid_runtime.errors import CheckpointError

STEPS = 10**6
START_S = 120  # from torchrun to the first step
MOST_STEPS_S = 1.5  # of stepping before a kill
MOST_STARTING_S = 1.0  # before a kill while the job starts


class Round(NamedTuple):
    """What a killed job left.

    Attributes:
        resumed: the step from which it went on; None if it was killed before it said so.
        losses: by step, counted over all rounds.
        saving: it was killed while files of a checkpoint were being written.
    """

    resumed: int | None
    losses: dict[int, str]
    saving: bool

    @property
    def done(self) -> int:
        return (self.resumed or 0) + len(self.losses)


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
    result: dict[str, Any] = {"environment": environment(arguments_given(), "kills"), "seed": options.seed}
    print(f"seed {options.seed}", flush=True)
    work = Path(tempfile.mkdtemp(prefix="kills-"))
    start_s = time.monotonic()
    try:
        rounds, problems = _rounds(options, work)
    finally:
        if not options.keep_files:
            shutil.rmtree(work)
    for problem in problems:
        print(f"WRONG: {problem}")
    sentence = _sentence(options, rounds, problems)
    print(sentence)
    if options.save:
        seconds = round(time.monotonic() - start_s, 1)
        result |= {"seconds": seconds, "summary": sentence, "problems": problems, "rounds": rounds}
        print(f"saved {save('kills', result, sentence, options.results).name}")
    return 1 if problems else 0


def _sentence(options: argparse.Namespace, rounds: list[dict[str, Any]], problems: list[str]) -> str:
    saving, starting = (sum(row[name] for row in rounds) for name in ("saving", "starting"))
    most = max((row["lost"] for row in rounds), default=0)
    flipped = sum(row["flip_found"] for row in rounds)
    return (
        f"{len(rounds)} kills, {saving} of them while saving, {starting} while starting; at most {most} steps lost, "
        f"one checkpoint every {options.every}; {rounds[-1]['newest']} steps kept in the end; {flipped} flipped bytes "
        f"found and named; {len(problems)} problems"
    )


def _rounds(options: argparse.Namespace, work: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """What was seen in every round, and what was wrong."""
    chance = random.Random(options.seed)
    checkpoints = work / "checkpoints"
    file = work / "deployment.json"
    values = deployment(checkpoints, options.ranks, options.every, asynchronous=not options.synchronous)
    file.write_text(json.dumps(values))
    known: dict[int, str] = {}
    newest, rounds, problems = 0, list[dict[str, Any]](), list[str]()
    for number in range(options.kills):
        killed = _killed(work, file, options, number, newest, chance)
        problems += _compare(number, killed, newest, known)
        newest, problems_here = _look(number, checkpoints, newest, killed, options)
        problems += problems_here
        missed = _flip(checkpoints / folders.name_of(newest), work / "flipped", chance) if newest else None
        if missed is not None:
            problems.append(f"round {number}: {missed}")
        row = {
            "resumed": killed.resumed,
            "done": killed.done,
            "newest": newest,
            "lost": max(0, killed.done - newest),
            "saving": killed.saving,
            "starting": not killed.losses,
            "flip_found": newest > 0 and missed is None,
        }
        rounds.append(row)
        print(
            f"kill {number + 1}/{options.kills}: {killed.resumed} -> {killed.done} steps, "
            f"{'while saving, ' if killed.saving else ''}step {newest} is whole",
            flush=True,
        )
    return rounds, problems


def _killed(
    work: Path, file: Path, options: argparse.Namespace, number: int, newest: int, chance: random.Random
) -> Round:
    """Starts the job, lets it run for a while, and kills all of it at once."""
    run, log = work / f"run{number}", work / f"log{number}.txt"
    arguments = [str(file), "--run-folder", str(run), "--quiet", *(["--resume", "latest"] if newest else [])]
    start = Torchrun if options.torchrun else Forked
    started_s = time.time()
    job: Job = start(arguments, options.ranks, log)
    pids: list[int] = []
    try:
        if number % 8 == 6:
            time.sleep(chance.uniform(0, MOST_STARTING_S))
        else:
            _wait(lambda: bool(_lines(run)), job, START_S)
        pids = job.pids()  # asked for now, so that later all die at one instant
        if number % 8 != 6:
            time.sleep(chance.uniform(0, MOST_STEPS_S))
        if number % 2:
            _wait(lambda: any((work / "checkpoints").glob(".partial-*/*.safetensors")), job, START_S, poll_s=0)
            time.sleep(chance.uniform(0, 0.02))
    finally:
        kill(pids or job.pids())
        job.wait()
    written = (work / "checkpoints").glob(".partial-*/*.safetensors")
    saving = any(path.stat().st_mtime > started_s for path in written)
    losses = {newest + line["step"]: repr(line["loss"]) for line in _lines(run)}
    return Round(_resumed(run), losses, saving)


def _wait(happened: Any, job: Job, limit_s: float, poll_s: float = 0.01) -> None:
    until_s = time.monotonic() + limit_s
    while not happened():
        if not job.runs() or time.monotonic() > until_s:
            raise SystemExit("bench kills: the job ended by itself or took too long; see its log with --keep-files")
        time.sleep(poll_s)


def _lines(run: Path) -> list[dict[str, Any]]:
    """The finished steps; the last line may be cut off."""
    try:
        text = (run / "progress.jsonl").read_text()
    except OSError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _resumed(run: Path) -> int | None:
    try:
        header = (run / "records" / "rank0.jsonl").read_text().partition("\n")
    except OSError:
        return None
    return int(json.loads(header[0])["trained_before"]) if header[1] else None


def _compare(number: int, killed: Round, newest: int, known: dict[int, str]) -> list[str]:
    """Where it went on, and that steps done again have the same losses."""
    problems = []
    if killed.resumed not in (None, newest):
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
    parser.add_argument("--torchrun", action="store_true", help="start every round with torchrun; takes longer")
    parser.add_argument("--save", action="store_true", help="keep the result in benchmarks/results")
    parser.add_argument("--results", type=Path, default=RESULTS, help=argparse.SUPPRESS)
    parser.add_argument("--keep-files", action="store_true", help="keep logs and checkpoints in the temporary folder")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
