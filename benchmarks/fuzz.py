"""Damaged deployment files and run folders: whatever is in them, a command ends with a sentence and a documented code.

    scripts/bench fuzz [--deployments 10000] [--runs 1000] [--seed N] [--base RUN_FOLDER ...]
    scripts/bench fuzz --seed N --only runs:17           one case again

`hybrid-runtime check FILE` and `hybrid-runtime verify --recheck RUN_FOLDER` are called in process, on all cores. A case
fails when an exception escapes, the exit code is not a documented one, nothing is said, it takes longer than a minute,
or a folder that was judged and then changed is not refused with code 4.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from rich.progress import Progress

from benchmarks.fuzz_mutations import damage_folder, damaged_bytes, damaged_values
from hybrid_runtime import cli
from hybrid_runtime.verifier.judge import hash_raw
from tests.verifier.runs import judged_runs

ROOT = Path(__file__).parents[1]
CODES = (0, 1, 2, 3, 4)
JUDGED_AND_CHANGED = 4
MOST_S = 60
MOST_BYTES = 6 * 2**30  # of address space: a figure from a file must not fill the memory
MOST_DAMAGES = 3


class Failure(NamedTuple):
    """A case that did not end as it must: which, the damages that suffice, and what happened."""

    case: str
    damages: tuple[str, ...]
    what: str


class Done(NamedTuple):
    """How one case ended: exit code, or the failure."""

    code: int
    failure: Failure | None


class TooLong(Exception):
    """A case took longer than a minute."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all cases; returns 1 if any failed, after printing how to see it again."""
    options = _options(arguments)
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        bases = [*judged_runs(Path(scratch) / "bases"), *options.base]
        works: list[tuple[str, Callable[[int], Done], range]] = [
            ("deployments", partial(deployment_case, options.seed), range(options.deployments)),
            ("runs", partial(run_case, options.seed, tuple(bases)), range(options.runs)),
        ]
        if options.only:
            kind, _, number = options.only.partition(":")
            works = [(name, case, range(int(number), int(number) + 1)) for name, case, _ in works if name == kind]
        failures = [failure for name, case, numbers in works for failure in _run_all(name, case, numbers)]
    for failure in failures[:20]:
        print(f"\n{failure.case}: {failure.what}\n  damages that suffice:")
        print("".join(f"    {damage}\n" for damage in failure.damages), end="")
        print(f"  again: scripts/bench fuzz --seed {options.seed} --only {failure.case}")
    return 1 if failures else 0


def deployment_case(seed: int, number: int) -> Done:
    """`check` of a damaged deployment file."""
    files = sorted(
        [*ROOT.glob("configs/*.*ml"), *ROOT.glob("configs/*.json"), *ROOT.glob("tests/fixtures/deployments/*.toml")]
    )
    chance = random.Random(f"{seed} deployments {number}")
    file = chance.choice(files)
    steps = [chance.randrange(2**32) for _ in range(chance.randint(1, MOST_DAMAGES))]
    structured = chance.random() < 0.6

    def attempt(folder: Path, steps: Sequence[int]) -> tuple[list[str], str | None, int]:
        said = [f"{file.relative_to(ROOT)}"]
        content, suffix = file.read_bytes(), file.suffix
        values = tomllib.loads(content.decode()) if suffix == ".toml" else json.loads(content)
        for step in steps:
            again = random.Random(step)
            if structured:
                values, what = damaged_values(values, again)
            else:
                content, what = damaged_bytes(content, again)
            said.append(what)
        path = folder / f"file{'.json' if structured else suffix}"
        path.write_bytes(json.dumps(values).encode() if structured else content)
        code, problem = call(["check", str(path)])
        return said, problem, code

    return _minimal(f"deployments:{number}", attempt, steps)


def run_case(seed: int, bases: Sequence[Path], number: int) -> Done:
    """`verify --recheck` of a damaged run folder: half of them judged before, half of them never."""
    chance = random.Random(f"{seed} runs {number}")
    base, judged = chance.choice(bases), chance.random() < 0.5
    steps = [chance.randrange(2**32) for _ in range(chance.randint(1, MOST_DAMAGES))]

    def attempt(folder: Path, steps: Sequence[int]) -> tuple[list[str], str | None, int]:
        run = folder / "run"
        shutil.copytree(base, run)
        if not judged:
            (run / "verdict.json").unlink()
        said = [base.name, "judged before" if judged else "not judged before"]
        before = _state(run)
        said += [damage_folder(run, random.Random(step)) for step in steps]
        changed = judged and _state(run) != before and (run / "verdict.json").exists()
        code, problem = call(["verify", "--recheck", str(run)])
        if problem is None and changed and code != JUDGED_AND_CHANGED:
            problem = f"was changed after it was judged, and ended with exit code {code}"
        return said, problem, code

    return _minimal(f"runs:{number}", attempt, steps)


def _state(run: Path) -> tuple[object, ...]:
    """What must not change once a run is judged: hashes of the raw files, and what verdict.json says."""
    try:
        return hash_raw(run), json.loads((run / "verdict.json").read_bytes())
    except Exception as problem:  # whatever cannot be read any more was changed
        return (repr(problem),)


def _minimal(
    case: str, attempt: Callable[[Path, Sequence[int]], tuple[list[str], str | None, int]], steps: Sequence[int]
) -> Done:
    """Runs a case; if it fails, leaves out damages as long as it still does."""
    said, problem, code = _in_scratch(attempt, steps)
    if problem is None:
        return Done(code, None)
    kept = list(steps)
    for step in steps:
        fewer = [one for one in kept if one != step]
        if fewer and (shorter := _in_scratch(attempt, fewer))[1] is not None:
            kept, (said, problem, code) = fewer, shorter
    assert problem is not None
    return Done(code, Failure(case, tuple(said), problem))


def _in_scratch(
    attempt: Callable[[Path, Sequence[int]], tuple[list[str], str | None, int]], steps: Sequence[int]
) -> tuple[list[str], str | None, int]:
    with tempfile.TemporaryDirectory() as scratch:
        return attempt(Path(scratch), steps)


def call(arguments: Sequence[str]) -> tuple[int, str | None]:
    """Calls the command in this process: its exit code, and what was wrong with how it ended (None if nothing)."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with (
            patch.object(sys, "argv", ["hybrid-runtime", *arguments]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            _time_limit(MOST_S),
        ):
            cli.main()
    except SystemExit as end:
        return _judged_end(end.code, out.getvalue(), err.getvalue())
    except BaseException as problem:
        lines = traceback.format_exc(limit=-3).splitlines()
        return -1, f"{type(problem).__name__}: {problem}"[:300] + "\n    " + "\n    ".join(lines[-7:-1])
    return -1, "the command returned instead of exiting"  # type: ignore[unreachable]


def _judged_end(code: object, out: str, err: str) -> tuple[int, str | None]:
    if code not in CODES:
        return -1, f"exit code {code!r} is not documented"
    assert isinstance(code, int)
    said = err if code in (2, 4) else out
    if not said.strip():
        return code, f"exit code {code} without a word"
    if "Traceback" in said or (code in (2, 4) and not said.startswith("hybrid-runtime: ")):
        return code, f"exit code {code} with {said[:200]!r} instead of a sentence"
    return code, None


@contextlib.contextmanager
def _time_limit(most_s: int) -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise TooLong(f"longer than {most_s} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(most_s)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    os.environ["COLUMNS"] = "120"


def _run_all(name: str, case: Callable[[int], Done], numbers: range) -> list[Failure]:
    """All cases of a kind on all cores, with a progress bar; prints how often each exit code came."""
    start_s, codes, failures = time.monotonic(), Counter[int](), []
    workers = len(os.sched_getaffinity(0))
    with (
        ProcessPoolExecutor(workers, mp_context=get_context("fork"), initializer=_limit_memory) as pool,
        Progress(disable=not sys.stderr.isatty()) as progress,
    ):
        task = progress.add_task(name, total=len(numbers))
        for done in pool.map(case, numbers, chunksize=max(1, min(20, len(numbers) // (4 * workers)))):
            progress.advance(task)
            codes[done.code] += 1
            failures += [done.failure] if done.failure else []
    counts = ", ".join(f"{count} x {code}" for code, count in sorted(codes.items()))
    took_s = time.monotonic() - start_s
    print(f"{name}: {len(numbers)} cases in {took_s:.0f} s, {len(failures)} failed; exit codes: {counts}", flush=True)
    return failures


def _options(arguments: Sequence[str] | None) -> Any:
    parser = argparse.ArgumentParser(prog="scripts/bench fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--deployments", type=int, default=10_000, help="damaged deployment files")
    parser.add_argument("--runs", type=int, default=1_000, help="damaged run folders")
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, which is printed")
    parser.add_argument("--base", type=Path, action="append", default=[], help="a judged run folder to damage as well")
    parser.add_argument("--only", help="one case, for example runs:17")
    options = parser.parse_args(arguments)
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(10**6)
    for base in options.base:
        if not (base / "verdict.json").is_file():
            parser.error(f"--base {base}: holds no verdict.json; name a judged run folder")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
