"""Where a run keeps its files. Every arrow of the project's flow is one of these.

runs/launches.jsonl   every launch into this folder (launches.py)
runs/predictions.jsonl    how predictions came out (prediction_history.py)
runs/demo-20260101-120000/
  deployment.json     the deployment as used, defaults filled in
  plan.json           written before the run, never edited
  records/            rank<R>.jsonl, nvml-<host>.jsonl: what happened; requests.jsonl, where requests are served
  progress.jsonl      a line per step, for the progress bar
  status/ failures/   what each rank is doing now and did last; why a rank failed
  hang.txt            when no rank came further: who held up whom, and every rank's last actions
  skipped.jsonl       steps whose update was skipped, and the unit that was to blame
  tensorboard/        scalars per side, when asked for
  turns/              whose turn it is, while candidate and baseline alternate
  log.txt             everything torchrun and the ranks printed (log.node1.txt on a second machine)
  sampling.json       looks at the data while sampling went on, and why it stopped
  baseline/           the same files of the baseline, or infeasible.txt
  baselines/KIND/     the same of other baselines that were run for comparison
  rebalanced/         with verify --rebalance: the run of the plan that the records asked for; compare.html shows both
  rehearsal.json      instead of records, where every rank ran alone (rehearsal.py); baseline/ has its own
  verdict.json  report.html  report.md  junit.xml  trace.json
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hybrid_runtime.errors import EnvironmentProblem, UsageError

REBALANCED = "rebalanced"
_RESERVED_BYTES = 8192


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of one side of a run."""

    path: Path

    @property
    def deployment(self) -> Path:
        return self.path / "deployment.json"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def records(self) -> Path:
        return self.path / "records"

    @property
    def requests(self) -> Path:
        return self.records / "requests.jsonl"

    @property
    def progress(self) -> Path:
        return self.path / "progress.jsonl"

    @property
    def name(self) -> str:
        """The run's name: that of its folder."""
        return self.path.resolve().name

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def status(self) -> Path:
        return self.path / "status"

    @property
    def failures(self) -> Path:
        return self.path / "failures"

    @property
    def hang(self) -> Path:
        return self.path / "hang.txt"

    def hang_told_on(self, host: str) -> Path:
        """Made by the first rank of a machine that tells of the hang there."""
        return self.failures / f".hang-{host}"

    @property
    def skipped(self) -> Path:
        return self.path / "skipped.jsonl"

    @property
    def turns(self) -> Path:
        return self.path / "turns"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    def log_of_node(self, node_rank: int | None) -> Path:
        """Every machine of a run has its own log; the first machine's is `log`."""
        return self.path / f"log.node{node_rank}.txt" if node_rank else self.log

    def deployment_of_node(self, node_rank: int | None) -> Path:
        """What this machine was given; the ranks compare it with the others' before they start."""
        return self.path / f"deployment.node{node_rank}.json" if node_rank else self.deployment

    def plan_of_node(self, node_rank: int | None) -> Path:
        """The plan that this machine was given to run; the ranks compare it with the others' before they start."""
        return self.path / f"plan.node{node_rank}.json" if node_rank else self.plan

    @property
    def baseline(self) -> RunFolder:
        return RunFolder(self.path / "baseline")

    def other_baseline(self, kind: str) -> RunFolder:
        """A baseline that was run beside the declared one."""
        return RunFolder(self.other_baselines / kind)

    @property
    def other_baselines(self) -> Path:
        return self.path / "baselines"

    @property
    def rebalanced(self) -> RunFolder:
        """The run of the plan that this run's records asked for: a run of its own, no side of this one."""
        return RunFolder(self.path / REBALANCED)

    @property
    def comparison(self) -> Path:
        return self.path / "compare.html"

    @property
    def infeasible(self) -> Path:
        return self.path / "infeasible.txt"

    @property
    def sampling(self) -> Path:
        return self.path / "sampling.json"

    def sides(self) -> list[RunFolder]:
        """This side first, then those in folders of their own below it (`baseline/`, `baselines/KIND/`), by name."""
        found = (path for pattern in ("*", "*/*") for path in self.path.glob(pattern) if path.is_dir())
        below = sorted(path for path in found if REBALANCED not in path.relative_to(self.path).parts)
        return [self, *(side for side in map(RunFolder, below) if side.raw_files())]

    def raw_files(self) -> list[Path]:
        """The files of this side that a verdict rests on; whatever the judge reads must be among them."""
        single = (self.deployment, self.plan, self.infeasible, self.sampling)
        return [path for path in (*single, *sorted(self.records.glob("*.jsonl"))) if path.is_file()]

    @property
    def verdict(self) -> Path:
        return self.path / "verdict.json"

    @property
    def report(self) -> Path:
        return self.path / "report.md"

    @property
    def page(self) -> Path:
        return self.path / "report.html"

    @property
    def junit(self) -> Path:
        return self.path / "junit.xml"

    @property
    def trace(self) -> Path:
        return self.path / "trace.json"

    def create(self) -> RunFolder:
        """Makes the folder and its sub-folders.

        Raises:
            EnvironmentProblem: it cannot be created or written.
        """
        try:
            for folder in (self.path, self.records, self.status, self.failures):
                folder.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".write-{os.getpid()}"
            probe.write_text("")
            probe.unlink()
        except OSError as problem:
            raise EnvironmentProblem(
                f"{self.path}: the run folder cannot be written ({problem.strerror}); name another with --run-folder"
            ) from None
        return self

    def refuse_used(self) -> None:
        """No rank writes records before all ranks have joined, so records found before that are of another run.

        Raises:
            UsageError: the folder holds the records of a run.
        """
        if self.records.is_dir() and any(self.records.iterdir()):
            raise UsageError(f"{self.path}: already holds the records of a run; name another with --run-folder")


def new_run_folder(name: str, parent: Path = Path("runs")) -> RunFolder:
    """A folder name that does not exist yet, from the deployment's name and the time (UTC)."""
    words = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    path = parent / f"{words}-{stamp}"
    serial = 2
    while path.exists():
        path = parent / f"{words}-{stamp}-{serial}"
        serial += 1
    return RunFolder(path)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a rank failed, in one sentence.

    Attributes:
        monotonic_ns: orders failures on one host.
        lost_peer: it only lost the connection to another rank, which failed or was killed before.
    """

    rank: int
    message: str
    exit_code: int
    monotonic_ns: int
    lost_peer: bool = False


def reserve_failure(folder: RunFolder, rank: int) -> None:
    """Takes the room for a failure's sentence now: the failure may be that the disk is full.

    Raises:
        EnvironmentProblem: it is full already.
    """
    try:
        _reserved(folder, rank).write_bytes(b" " * _RESERVED_BYTES)
    except OSError as problem:
        raise EnvironmentProblem(
            f"{folder.path}: the run folder cannot be written ({problem.strerror}); free space, or name a --run-folder "
            "on another disk"
        ) from None


def write_failure(folder: RunFolder, failure: Failure, details: str) -> None:
    """Leaves the sentence (and the traceback in a file of its own) for whoever launched the rank.

    Raises:
        OSError: the traceback, or a sentence for which no room was reserved, cannot be written.
    """
    folder.failures.mkdir(parents=True, exist_ok=True)
    values = {name: getattr(failure, name) for name in Failure.__dataclass_fields__}
    text, target = json.dumps(values), folder.failures / f"rank{failure.rank}.json"
    reserved = _reserved(folder, failure.rank)
    if reserved.is_file() and len(text) < _RESERVED_BYTES:
        with reserved.open("r+b") as file:  # written over in place, which takes no more of the disk
            file.write(text.encode("ascii"))
            file.truncate()
        reserved.replace(target)
    else:
        write_whole(target, text)
    (folder.failures / f"rank{failure.rank}.traceback.txt").write_text(details)


def _reserved(folder: RunFolder, rank: int) -> Path:
    return folder.failures / f".rank{rank}.reserved"


def read_failures(folder: RunFolder) -> list[Failure]:
    """All failures, the earliest first; those that only follow from another rank's end come last."""
    files = sorted(folder.failures.glob("rank*.json"))
    found = [Failure(**json.loads(file.read_text())) for file in files]
    return sorted(found, key=lambda failure: (failure.lost_peer, failure.monotonic_ns))


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that a reader sees all of it or the old one; a device or pipe is written to, not replaced."""
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def sync(path: Path) -> None:
    """What a file holds, or the names in a folder, are on the disk when this returns."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
