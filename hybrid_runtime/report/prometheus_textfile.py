"""Prometheus text for node_exporter's textfile collector: one file per run and machine, always whole.

    FOLDER/hybrid_runtime-<run>-<host>.prom
      while it runs    per rank of this machine: busy, wait, memory; per side: steps, and what figures.py lists
      afterwards       no figures of a rank or rates any more; steps, loss, claims, how and when the run ended

The format is the text exposition format 0.0.4. A file that says its run is over is removed when the next run of the
same deployment begins; one that a killed command left behind still says `run_active 1`, and its
`hybrid_runtime_last_step_timestamp_seconds` tells how old it is.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from hybrid_runtime.errors import UsageError
from hybrid_runtime.report.exports import End
from hybrid_runtime.report.figures import RANK_FIGURES, STEP_FIGURES
from hybrid_runtime.report.progress import ProgressLine, RankLoad
from hybrid_runtime.report.roster import Roster
from hybrid_runtime.run_folder import write_whole
from hybrid_runtime.verdict import Verdict

WRITE_INTERVAL_S = 2.0
_PREFIX = "hybrid_runtime_"
Sample = tuple[Mapping[str, str], float]


class Family(NamedTuple):
    """One metric: name without the prefix, "gauge" or "counter", what it means, and its samples."""

    name: str
    kind: str
    meaning: str
    samples: Sequence[Sample]


class PrometheusTextfile:
    """Keeps the file of one run on one machine up to date.

    Args:
        folder: what node_exporter's --collector.textfile.directory names; it must be there.
        run, deployment: names for the labels.
        host: only ranks of this host are told.
        whole_run: tell also what belongs to no rank; one machine of a run does.
        clock: seconds since 1970; exchanged in tests.

    Raises:
        UsageError: the folder is missing or cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        run: str,
        deployment: str,
        host: str,
        *,
        whole_run: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = f"Prometheus folder {folder}"
        self._path = folder / f"hybrid_runtime-{_for_a_name(run)}-{_for_a_name(host)}.prom"
        self._run, self._deployment, self._host, self._whole_run = run, deployment, host, whole_run
        self._clock = clock
        self._lines: dict[str, tuple[ProgressLine, float]] = {}
        self._loads: dict[tuple[str, int], tuple[Mapping[str, str], RankLoad]] = {}
        self._verdict: Verdict | None = None
        self._end: End | None = None
        self._changed, self._written_s = True, 0.0
        self._begin(folder)

    def show(self, line: ProgressLine, roster: Roster) -> None:
        """Takes in a step; `flush` writes."""
        self._changed = True
        newest, _ = self._lines.get(line.side, (None, 0.0))
        self._lines[line.side] = line.known_since(newest), self._clock()
        for load in line.ranks:
            member = roster.member(load.rank)
            if member is None or member.host.partition("@")[0] != self._host:  # "@": of two machines of one name
                continue
            labels = self._labels(side=line.side, rank=str(load.rank), stage=member.stages, device=member.device)
            _, before = self._loads.get((line.side, load.rank), (None, None))
            self._loads[line.side, load.rank] = labels, load.known_since(before)

    def flush(self) -> None:
        now_s = self._clock()
        if self._changed and now_s - self._written_s >= WRITE_INTERVAL_S:
            self._changed, self._written_s = False, now_s
            self._write()

    def judged(self, verdict: Verdict) -> None:
        self._verdict = verdict

    def close(self, end: End) -> None:
        self._end = end
        self._write()

    def _begin(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UsageError(
                f"{self.name}: is no folder; make it, or name the one that node_exporter's "
                "--collector.textfile.directory names"
            )
        try:
            for old in folder.glob("hybrid_runtime-*.prom"):
                if self._is_over(old):
                    old.unlink(missing_ok=True)
            self._write()
        except OSError as problem:
            raise UsageError(
                f"{self.name}: cannot be written ({problem.strerror}); give this user the right to, or name another"
            ) from None

    def _is_over(self, path: Path) -> bool:
        """Whether the file is of this deployment on this host, from a run that has ended."""
        if not path.name.endswith(f"-{_for_a_name(self._host)}.prom"):
            return False
        if not os.access(path, os.R_OK):  # somebody else's
            return False
        text = path.read_text(encoding="utf-8", errors="replace")
        return re.search(rf'^{_PREFIX}run_active\{{.*{re.escape(_label("deployment", self._deployment))}\}} 0$',
                         text, re.MULTILINE) is not None  # fmt: skip

    def _write(self) -> None:
        write_whole(self._path, exposition(self._families()))

    def _labels(self, **more: str) -> dict[str, str]:
        return {"run": self._run, **more}

    def _families(self) -> Iterator[Family]:
        over = {**self._labels(), "deployment": self._deployment}
        yield Family(
            "run_active", "gauge", "1 while the run goes on, 0 when it is over.", [(over, float(not self._end))]
        )
        if self._end is not None:
            ended = [(self._labels(result=self._end), self._clock())]
            yield Family("run_end_timestamp_seconds", "gauge", "When the run ended, and whether it failed.", ended)
        else:
            yield from self._of_ranks()
        if self._whole_run:
            yield from self._of_sides()
            yield from self._of_claims()

    def _of_ranks(self) -> Iterator[Family]:
        loads = [self._loads[key] for key in sorted(self._loads)]
        for figure in RANK_FIGURES:
            values = [(labels, figure.of(load)) for labels, load in loads]
            yield Family(figure.metric, "gauge", figure.meaning, _known(values))

    def _of_sides(self) -> Iterator[Family]:
        sides = [(self._labels(side=side), line, when_s) for side, (line, when_s) in sorted(self._lines.items())]
        steps = [(labels, float(line.step)) for labels, line, _ in sides]
        newest = [(labels, when_s) for labels, _, when_s in sides]
        yield Family("steps_total", "counter", "Finished steps, warm-up included.", steps)
        yield Family("last_step_timestamp_seconds", "gauge", "When the newest step was heard of.", newest)
        for figure in STEP_FIGURES:
            if self._end is None or not figure.live:
                values = [(labels, figure.of(line)) for labels, line, _ in sides]
                yield Family(figure.metric, "gauge", figure.meaning, _known(values))

    def _of_claims(self) -> Iterator[Family]:
        if self._verdict is None:
            return
        rows = [(self._labels(claim=row.id, outcome=row.outcome.value), 1.0) for row in self._verdict.claims]
        overall = [(self._labels(outcome=self._verdict.verdict.value), 1.0)]
        yield Family("claim_outcome", "gauge", "1 for the outcome of each claim.", rows)
        yield Family("verdict", "gauge", "1 for the outcome of the whole run.", overall)


def exposition(families: Iterator[Family]) -> str:
    """The text exposition format; a family without samples is left out, and equal labels count once."""
    lines: list[str] = []
    for family in families:
        samples = {_braced(labels): value for labels, value in family.samples}
        if samples:
            name = _PREFIX + family.name
            lines += [f"# HELP {name} {_escaped(family.meaning)}", f"# TYPE {name} {family.kind}"]
            lines += [f"{name}{labels} {_number(value)}" for labels, value in samples.items()]
    return "".join(f"{line}\n" for line in lines)


def _known(values: Sequence[tuple[Mapping[str, str], float | None]]) -> list[Sample]:
    return [(labels, float(value)) for labels, value in values if value is not None]


def _braced(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(_label(name, value) for name, value in labels.items()) + "}"


def _label(name: str, value: str) -> str:
    quoted = _escaped(value).replace('"', r"\"")
    return f'{name}="{quoted}"'


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _number(value: float) -> str:
    """As Prometheus reads numbers: 0.5, 12, NaN, +Inf, -Inf."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(value)


def _for_a_name(text: str) -> str:
    """The end of a run's name is its time, so the end is what stays of a long one."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[-150:]
