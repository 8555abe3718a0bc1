"""What is said before a run about exports that cannot work, and that a later failure ends the export, not the run."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

from hybrid_runtime.deployment import parse_deployment
from hybrid_runtime.errors import EnvironmentProblem, UsageError
from hybrid_runtime.report.exports import Exports, open_exports
from hybrid_runtime.report.roster import Roster
from hybrid_runtime.run_folder import RunFolder
from tests.commands import command, small, write_json
from tests.report.running import line


def opened(folder: Path, *, first: bool = True, **telemetry: Any) -> Exports:
    deployment = parse_deployment(small() | {"telemetry": telemetry}, source="test")
    return open_exports(deployment, RunFolder(folder / "run"), first=first)


def test_nothing_is_written_unless_asked_for(tmp_path: Path) -> None:
    with opened(tmp_path) as exports:
        assert not exports
        exports.show(line(1), Roster(RunFolder(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_true_writes_into_the_run_folder_and_a_folder_gets_one_of_the_runs_name(tmp_path: Path) -> None:
    opened(tmp_path, tensorboard=True)
    assert (tmp_path / "run/tensorboard").is_dir()
    opened(tmp_path, tensorboard=str(tmp_path / "all"))
    assert (tmp_path / "all/run").is_dir()
    assert not opened(tmp_path, tensorboard=True, first=False)


def test_unusable_folders_are_said_in_one_sentence_before_anything_runs(tmp_path: Path) -> None:
    file = write_json(tmp_path / "file.json", small())
    (tmp_path / "taken").write_text("")
    for option, folder, words in (
        ("--tensorboard", tmp_path / "taken/x", "cannot be written (Not a directory); name another with --tensorboard"),
        ("--prometheus", tmp_path / "absent", "is no folder; make it, or name the one that node_exporter's"),
        ("--prometheus", "/proc", "cannot be written ("),
    ):
        for verb in ("run", "verify"):
            done = command(verb, file, "--run-folder", tmp_path / "run", option, folder)
            assert (done.code, done.out) == (2, "")
            assert done.err.startswith("hybrid-runtime: ")
            assert words in done.err
            assert done.err.count("\n") == 1
            assert not (tmp_path / "run/records").exists()


def test_a_used_run_folder_is_refused_before_its_exports_are_written_over(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").create()
    (folder.records / "rank0.jsonl").write_text("{}")
    done = command(
        "run", write_json(tmp_path / "file.json", small()), "--run-folder", folder.path, "--prometheus", tmp_path
    )
    assert done.code == 2
    assert "already holds the records of a run" in done.err
    assert list(tmp_path.glob("*.prom")) == []


def test_a_recheck_exports_nothing(tmp_path: Path) -> None:
    done = command("verify", "--recheck", tmp_path, "--prometheus", tmp_path)
    assert done.code == 2
    assert "--recheck runs nothing" in done.err


def test_a_missing_package_is_said_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("tensorboard"):
            raise ModuleNotFoundError("No module named 'tensorboard'", name="tensorboard")
        return genuine(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'hybrid-runtime\[tensorboard\]'"):
        opened(tmp_path, tensorboard=True)
    assert not opened(tmp_path)
    with pytest.raises(UsageError, match="is no folder"):
        opened(tmp_path, prometheus_textfile=str(tmp_path / "absent"))


def test_an_export_that_fails_later_is_given_up_once_and_the_others_go_on(tmp_path: Path) -> None:
    said: list[str] = []

    class Recording:
        name = "good"

        def __init__(self, problem: OSError | None = None) -> None:
            self.problem = problem
            self.calls: list[str] = []

        def show(self, *what: object) -> None:
            self.calls.append("show")
            if self.problem is not None:
                raise self.problem

        def flush(self) -> None:
            self.calls.append("flush")

        def judged(self, verdict: object) -> None:
            self.calls.append("judged")

        def close(self, end: str) -> None:
            self.calls.append(end)

    good, bad = Recording(), Recording(OSError(28, "No space left on device"))
    bad.name = "bad"
    with Exports([bad, good], said.append) as exports:
        for _ in range(3):
            exports.show(line(1), Roster(RunFolder(tmp_path)))
        exports.flush()
        exports.judged(None)
    assert bad.calls == ["show"]
    assert good.calls == ["show", "show", "show", "flush", "finished"]
    assert said == ["bad: cannot be written any more (No space left on device); the run goes on without"]


def test_a_run_that_fails_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "textfile"
    folder.mkdir()
    with pytest.raises(KeyError), opened(tmp_path, prometheus_textfile=str(folder)):
        raise KeyError("a rank failed")
    (file,) = folder.iterdir()
    assert 'result="failed"' in file.read_text()
