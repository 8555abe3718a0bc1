"""The command `report`: what it writes where, that it trusts no edited folder, and one sentence for bad input."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from hybrid_runtime.measure import judge_and_report
from hybrid_runtime.run_folder import RunFolder
from tests.commands import command, run
from tests.report.runs import small_run

REPORTS = ("report.html", "report.md", "junit.xml", "trace.json")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    small_run(tmp_path / "run")
    return RunFolder(tmp_path / "run")


def test_it_writes_four_reports_into_the_run_folder_and_names_them(folder: RunFolder) -> None:
    done = command("report", folder.path)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [str(folder.path / name) for name in REPORTS]
    assert folder.page.read_text().startswith("<!doctype html>")
    assert folder.report.read_text().startswith("# ")
    assert ElementTree.parse(folder.junit).getroot().tag == "testsuites"
    assert json.loads(folder.trace.read_text())["traceEvents"]


def test_the_files_go_where_the_options_say(folder: RunFolder, tmp_path: Path) -> None:
    targets = [tmp_path / name for name in ("page.html", "summary.md", "tests.xml")]
    done = command("report", folder.path, "--html", targets[0], "--markdown", targets[1], "--junit", targets[2])
    assert done.code == 0
    assert done.out.splitlines()[:3] == list(map(str, targets))
    assert all(path.stat().st_size for path in targets)
    assert not folder.page.exists()


def test_a_run_that_was_never_judged_is_judged(folder: RunFolder) -> None:
    folder.verdict.unlink()
    assert command("report", folder.path).code == 0
    assert folder.verdict.exists()
    assert folder.page.exists()


def test_a_run_and_its_report_are_written_by_the_same_call(folder: RunFolder) -> None:
    judge_and_report(folder)
    assert all((folder.path / name).exists() for name in (*REPORTS, "verdict.json"))
    steps = json.loads(folder.trace.read_text())["otherData"]["steps"]
    assert steps[0] == 0
    assert steps[-1] == 23


def test_the_report_keeps_the_options_that_the_run_was_judged_with(folder: RunFolder) -> None:
    verdict = judge_and_report(folder, {"inconclusive": "pass"})
    assert verdict.overrides
    folder.page.unlink()
    assert command("report", folder.path).code == 0
    assert "inconclusive counts as pass in the exit code" in folder.page.read_text()


def test_records_that_were_edited_get_no_report(folder: RunFolder) -> None:
    path = folder.records / "rank0.jsonl"
    path.write_bytes(path.read_bytes()[:-1] + b" \n")
    done = command("report", folder.path)
    assert (done.code, done.out) == (4, "")
    assert "was changed since it was judged" in done.err
    assert not folder.page.exists()


def test_two_runs_side_by_side(folder: RunFolder, tmp_path: Path) -> None:
    small_run(tmp_path / "other")
    page = tmp_path / "both.html"
    before = sorted(folder.path.rglob("*"))
    done = command("report", "--compare", folder.path, tmp_path / "other", "--html", page)
    assert (done.code, done.err) == (0, "")
    assert "Both are runs of the same deployment." in done.out
    assert "claims" in done.out
    assert "what ran" in done.out
    assert done.out.splitlines()[-1] == f"page: {page}"
    assert page.read_text().startswith("<!doctype html>")
    assert sorted(folder.path.rglob("*")) == before, "nothing is written into the runs"


def test_without_an_option_the_page_is_written_here(folder: RunFolder, tmp_path: Path) -> None:
    done = run("report", "--compare", folder.path, folder.path, folder=tmp_path)
    assert done.code == 0, done.err
    assert (tmp_path / "compare.html").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["report"], "report takes one run folder, not 0"),
        (["report", "--predictions", "RUN", "RUN"], "takes the folder that holds the runs"),
        (["report", "--predictions", "RUN"], "holds no judged prediction"),
        (["report", "/no/such/run"], "/no/such/run"),
        (["report", "RUN", "RUN"], "report takes one run folder, not 2"),
        (["report", "--compare", "RUN"], "takes two run folders, not 1"),
        (["report", "--compare", "RUN", "RUN", "--junit", "a.xml"], "leave --markdown and --junit out"),
        (["report", "RUN", "--html", "/no/such/folder/a.html"], "--html /no/such/folder/a.html: cannot be written"),
        (["report", "--compare", "RUN", "/no/such/run"], "/no/such/run"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], sentence: str, folder: RunFolder) -> None:
    done = command(*(str(folder.path) if word == "RUN" else word for word in arguments))
    assert done.code in (2, 4)
    assert sentence in done.err
    assert len(done.err.splitlines()) == 1


def test_a_report_that_cannot_be_written_is_said(folder: RunFolder) -> None:
    folder.page.mkdir()  # root may write everywhere, but not over a folder
    done = command("report", folder.path)
    assert done.code == 4
    assert f"{folder.page}: cannot be written" in done.err
    assert len(done.err.splitlines()) == 1
