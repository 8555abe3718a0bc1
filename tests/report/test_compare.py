"""Two verdicts row by row: each run's own figures, absent rows marked, differing provenance listed."""

from __future__ import annotations

import io
from html import unescape
from pathlib import Path

import pytest
from rich.console import Console

from hybrid_runtime.report import pairs
from hybrid_runtime.report.compare import compare_page, compare_tables
from hybrid_runtime.report.run_data import Run
from hybrid_runtime.report.terminal import print_plainly
from hybrid_runtime.verdict import Outcome
from tests.report import examples
from tests.report.runs import small_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return small_run(tmp_path_factory.mktemp("run"))


def plain(first: Run, second: Run, width: int = 160) -> str:
    stream = io.StringIO()
    print_plainly(compare_tables(first, second), Console(file=stream, width=width))
    return stream.getvalue()


def test_claims_stand_side_by_side_and_an_absent_one_is_a_dash() -> None:
    first = examples.verdict()
    changed = examples.CLAIMS[1].model_copy(update={"outcome": Outcome.PASS, "threshold": "8"})
    rows = pairs.claim_pairs(first, examples.verdict(claims=(changed,)))
    assert [row.outcomes[1] for row in rows] == [None, Outcome.PASS, None, None]
    assert rows[1].outcomes[0] is Outcome.FAIL
    assert rows[1].found == ("7.9 pp (exact); required ≤ 1 pp", "7.9 pp (exact); required ≤ 8 pp")
    assert rows[0].found[1] == "-"


def test_only_checks_whose_outcome_differs_are_listed() -> None:
    changed = examples.CHECKS[0].model_copy(update={"outcome": Outcome.PASS})
    (row,) = pairs.check_pairs(examples.verdict(), examples.verdict(static_checks=(changed, *examples.CHECKS[1:])))
    assert row.outcomes == (Outcome.FAIL, Outcome.PASS)


def test_devices_are_paired_in_order() -> None:
    rows = pairs.device_pairs(examples.verdict(), examples.verdict(devices=examples.DEVICES[:1]))
    assert len(rows) == 6
    assert rows[0][0] == "laptop:rank0"
    assert not any(pair.differs for pair in rows[0][1])
    assert rows[1][1][0].values == ("16.50 %", "-")


def test_what_ran_and_where_it_differs() -> None:
    first, second = examples.verdict(), examples.verdict(sides=examples.SIDES[:1])
    rows = {pair.what: pair.values for pair in pairs.side_pairs(first, second)}
    assert rows["candidate: mesh"] == ("tp 2 x pp 3 x dp 1", "tp 2 x pp 3 x dp 1")
    assert rows["baseline: kind"] == ("baseline: pp_only", "-")
    assert "candidate: kind" not in rows


def test_provenance_lists_what_differs_and_nothing_else() -> None:
    other = examples.PROVENANCE.model_copy(update={"versions": {"torch": "2.14.0"}})
    rows = pairs.provenance_pairs(examples.verdict(provenance=examples.PROVENANCE), examples.verdict(provenance=other))
    assert [(pair.what, pair.values) for pair in rows] == [("versions: torch", ("2.13.0", "2.14.0"))]


def test_different_deployments_are_said() -> None:
    first = examples.verdict()
    assert pairs.notice(first, first) == "Both are runs of the same deployment."
    other = examples.verdict(deployment_fingerprint="e" * 64)
    assert pairs.notice(first, other).startswith("These are runs of different deployments (both called demo)")
    assert "demo and other" in pairs.notice(first, other.model_copy(update={"name": "other"}))


def test_the_terminal_table_and_the_page_hold_both(run: Run, tmp_path: Path) -> None:
    changed = run.verdict.model_copy(update={"name": examples.NASTY, "claims": examples.CLAIMS, **examples.METHOD})
    other = Run(tmp_path / "other", changed, run.plan, run.ranks)
    run = Run(run.folder, run.verdict.model_copy(update={"self_test": ()}), run.plan, run.ranks)
    for text in (plain(run, other), unescape(compare_page(run, other))):
        for shown in (run.folder.name, "other", "memory balance", "7.9 pp (exact)", "both sides reach the same loss"):
            assert shown in text
    assert "\x1b" not in plain(run, other)
    assert "</td>|`" not in compare_page(run, other)


def test_runs_in_folders_of_one_name_are_told_apart(run: Run, tmp_path: Path) -> None:
    other = Run(tmp_path / run.folder.name, run.verdict, run.plan, run.ranks)
    assert str(tmp_path) in plain(run, other, 400)
