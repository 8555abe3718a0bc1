"""Text files for node_exporter, read with prometheus_client's parser."""

from __future__ import annotations

import importlib
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hybrid_runtime.mesh import Mesh
from hybrid_runtime.report.prometheus_textfile import WRITE_INTERVAL_S, Family, PrometheusTextfile, exposition
from hybrid_runtime.run_folder import RunFolder
from tests.report.examples import NASTY, verdict
from tests.report.running import line, load, write_members

NAME, LABEL = r"[a-z_][a-z0-9_]*", r'[a-z_]+="(\\[\\"n]|[^\\"\n])*"'
NUMBER = r"(-?[0-9.]+(e[+-]?[0-9]+)?|NaN|[+-]Inf)"
LINE = re.compile(  # stricter than the parser, which forgives much
    rf"# HELP {NAME} ([^\n\\]|\\[n\\])+|# TYPE {NAME} (gauge|counter)|{NAME}\{{{LABEL}(,{LABEL})*\}} {NUMBER}"
)
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Samples:
    """Every sample by name and labels; each family once, with HELP and TYPE, and no sample twice."""
    assert text.endswith("\n")
    assert [row for row in text.split("\n")[:-1] if not LINE.fullmatch(row)] == []
    module: Any = importlib.import_module("prometheus_client.parser")
    samples: Samples = {}
    names: set[str] = set()
    for family in module.text_string_to_metric_families(text):
        assert family.name not in names
        assert family.documentation
        assert family.type in ("gauge", "counter")
        names.add(family.name)
        for sample in family.samples:
            key = sample.name.removeprefix("hybrid_runtime_"), frozenset(sample.labels.items())
            assert sample.name.startswith("hybrid_runtime_")
            assert key not in samples
            samples[key] = sample.value
    assert samples
    return samples


def found(samples: Samples, name: str, **labels: str) -> list[float]:
    return [value for (other, given), value in samples.items() if other == name and labels.items() <= set(given)]


class Case:
    """One run's file, with a clock that only a test moves."""

    def __init__(self, tmp_path: Path, *, run: str = "demo-1", host: str = "vm", whole_run: bool = True) -> None:
        self.now_s = 1_000_000.0
        self.folder = tmp_path / "textfile"
        self.folder.mkdir(exist_ok=True)
        self.roster = write_members(RunFolder(tmp_path / "run"), Mesh(tp_degree=2))
        self.file = PrometheusTextfile(
            self.folder, run, "demo", host, whole_run=whole_run, clock=lambda: self.now_s
        )  # fmt: skip
        self.path = self.folder / f"hybrid_runtime-{run}-{host}.prom"

    def step(self, step: int, **changes: object) -> None:
        self.file.show(line(step, **{"ranks": (load(0), load(1)), "grad_norm": 2.0} | changes), self.roster)

    def read(self) -> Samples:
        return parsed(self.path.read_text())


def test_a_running_deployment(tmp_path: Path) -> None:
    case = Case(tmp_path)
    assert found(case.read(), "run_active", run="demo-1", deployment="demo") == [1]
    case.step(3)
    case.step(2, side="baseline", loss=math.nan, ranks=(load(0),))
    case.file.flush()
    samples = case.read()
    rank = {"run": "demo-1", "side": "candidate", "rank": "1", "stage": "0", "device": "vm:rank1"}
    assert samples["compute_busy_ratio", frozenset(rank.items())] == 0.51
    assert samples["wait_ratio", frozenset(rank.items())] == 0.2
    assert samples["memory_bytes", frozenset(rank.items())] == 3_565_158
    assert found(samples, "tokens_per_second", side="candidate") == [5342.7]
    assert found(samples, "step_seconds", side="candidate") == [0.3834]
    assert found(samples, "steps_total", side="candidate") == [3]
    assert found(samples, "steps_total", side="baseline") == [2]
    assert found(samples, "loss", side="candidate") == [2.5126]
    assert math.isnan(found(samples, "loss", side="baseline")[0])
    assert found(samples, "last_step_timestamp_seconds", side="candidate") == [1_000_000]
    assert found(samples, "compute_busy_ratio", side="baseline") == [0.5]


def test_steps_that_measure_less_keep_what_was_known(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.step(3)
    case.step(4, ranks=(load(1, busy_percent=None, memory_bytes=7),))
    case.file.flush()
    assert found(case.read(), "compute_busy_ratio", rank="1") == [0.51]
    assert found(case.read(), "memory_bytes", rank="1") == [7]
    assert found(case.read(), "compute_busy_ratio", rank="0") == [0.5]


def test_it_is_written_every_two_seconds_and_always_whole(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.step(1)
    case.file.flush()
    case.step(2)
    case.file.flush()
    assert found(case.read(), "steps_total") == [1]
    before = case.path.stat().st_ino
    case.now_s += WRITE_INTERVAL_S
    case.file.flush()
    assert found(case.read(), "steps_total") == [2]
    assert case.path.stat().st_ino != before  # another file took its name: a reader has the old one or the new one
    assert os.listdir(case.folder) == [case.path.name]
    written = case.path.stat().st_mtime_ns
    case.now_s += 100
    case.file.flush()
    assert case.path.stat().st_mtime_ns == written


def test_the_end_says_how_and_when_and_what_was_judged_and_nothing_of_ranks(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.step(3)
    case.file.judged(verdict())
    case.now_s += 60
    case.file.close("finished")
    samples = case.read()
    assert found(samples, "run_active") == [0]
    assert found(samples, "run_end_timestamp_seconds", result="finished") == [1_000_060]
    assert found(samples, "steps_total") == [3]
    outcomes = {
        labels["claim"]: labels["outcome"]
        for name, given in samples
        if name == "claim_outcome"
        for labels in [dict(given)]
    }
    assert outcomes == {claim.id: claim.outcome.value for claim in verdict().claims}
    assert found(samples, "verdict", outcome=verdict().verdict.value) == [1]
    live = {"compute_busy_ratio", "wait_ratio", "memory_bytes", "tokens_per_second", "step_seconds"}
    assert not live & {name for name, _ in samples}


def test_other_machines_tell_of_their_own_ranks_only(tmp_path: Path) -> None:
    case = Case(tmp_path, host="elsewhere", whole_run=False)
    case.step(3)
    case.file.flush()
    assert {name for name, _ in case.read()} == {"run_active"}
    case = Case(tmp_path, host="vm", whole_run=False)
    case.step(3)
    case.file.flush()
    assert {name for name, _ in case.read()} == {
        "run_active", "compute_busy_ratio", "wait_ratio", "memory_bytes", "rank_tokens_per_second"
    }  # fmt: skip


def test_files_of_ended_runs_of_this_deployment_go_when_the_next_begins(tmp_path: Path) -> None:
    Case(tmp_path, run="ended").file.close("failed")
    Case(tmp_path, run="going on")
    Case(tmp_path, run="other-host", host="far").file.close("finished")
    (tmp_path / "textfile/hybrid_runtime-foreign-vm.prom").write_text('hybrid_runtime_run_active{deployment="x"} 0\n')
    Case(tmp_path, run="next")
    assert sorted(os.listdir(tmp_path / "textfile")) == [
        "hybrid_runtime-foreign-vm.prom",
        "hybrid_runtime-going-on-vm.prom",
        "hybrid_runtime-next-vm.prom",
        "hybrid_runtime-other-host-far.prom",
    ]


@pytest.mark.parametrize("text", [NASTY, 'a"b', "a\\b", "a\nb", 'a\\"b', "{},=", "ü漢字", ""])
def test_label_values_are_escaped(text: str) -> None:
    family = Family("f", "gauge", "what\nit \\ means", [({"a": text, "b": "x"}, 1.0)])
    assert parsed(exposition(iter([family]))) == {("f", frozenset({("a", text), ("b", "x")})): 1.0}


def test_numbers_are_written_as_prometheus_reads_them() -> None:
    def families() -> Iterator[Family]:
        for number, value in enumerate((0.5, 12.0, 2.0**60, 1e-9, math.inf, -math.inf, math.nan)):
            yield Family(f"f{number}", "gauge", "a number", [({"a": "b"}, value)])
        yield Family("empty", "gauge", "no samples", [])

    text = exposition(families())
    assert "NaN" in text
    assert "+Inf" in text
    assert "empty" not in text
    values = [value for _, value in sorted((name, value) for (name, _), value in parsed(text).items())]
    assert values[:6] == [0.5, 12, 2.0**60, 1e-9, math.inf, -math.inf]
    assert math.isnan(values[6])
