"""What a rehearsal says: WOULD PASS or WOULD FAIL by the verifier's own rules, and never PASS."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rich.console import Console

from hybrid_runtime.errors import RecordsError, UsageError
from hybrid_runtime.report.rehearsal_tables import rehearsal_tables
from hybrid_runtime.report.terminal import print_plainly
from hybrid_runtime.run_folder import RunFolder
from hybrid_runtime.verifier.would import judge_rehearsal
from hybrid_runtime.would import RehearsalVerdict
from tests.planner.test_rehearsed import calibration
from tests.rehearsals import deployed, plan_of, rehearsal, write

TARGETS = {
    "compute_balance_pp": 1,
    "memory_balance_pp": 1,
    "utilisation_percent": 50,
    "latency_reduction_percent": 40,
    "throughput_gain_percent": 60,
}


def judged(folder: Path, forward_ns: list[int], peaks: list[int], jitter_ns: int = 0) -> RehearsalVerdict:
    deployment = deployed(targets=TARGETS, baseline={"kind": "naive_pipeline"})
    plan = plan_of(deployment)
    return judge_rehearsal(write(folder, deployment, plan, rehearsal(plan, forward_ns, peaks, jitter_ns=jitter_ns)))


def outcomes(verdict: RehearsalVerdict) -> dict[str, str]:
    return {claim.id: claim.outcome for claim in verdict.claims}


def shown(verdict: RehearsalVerdict) -> str:
    console = Console(width=160)
    with console.capture() as captured:
        console.print(rehearsal_tables(verdict))
    return captured.get()


def test_balanced(tmp_path: Path) -> None:
    verdict = judged(tmp_path, [1000, 1003, 998], [10_000, 10_050, 9_990], jitter_ns=1)
    found = outcomes(verdict)
    assert found["compute_balance"] == found["memory_balance"] == found["utilisation"] == "WOULD PASS"
    assert found["latency_reduction"] == found["throughput_gain"] == "UNDECIDED"
    labels = {claim.id: claim.label for claim in verdict.claims}
    assert labels["compute_balance"] == labels["memory_balance"] == "rehearsed"
    assert labels["utilisation"] == labels["latency_reduction"] == "modelled"


def test_a_share_counts_per_device(tmp_path: Path) -> None:
    """Two tensor ranks share a stage: 2.5 points between pipeline ranks are 1.25 between devices, above 1."""
    verdict = judged(tmp_path, [1000, 1000, 1000], [32_500, 35_000, 32_500])
    (claim,) = (claim for claim in verdict.claims if claim.id == "memory_balance")
    assert (claim.outcome, claim.figure) == ("WOULD FAIL", "1.25")
    assert judged(tmp_path, [1000] * 3, [33_000, 34_501, 32_499]).claims[1].outcome == "WOULD FAIL"
    assert judged(tmp_path, [1000] * 3, [33_000, 34_500, 32_500]).claims[1].outcome == "WOULD PASS"


def test_too_close_is_undecided(tmp_path: Path) -> None:
    """A limit inside the interval decides nothing."""
    verdict = judged(tmp_path, [1000, 1060, 1000], [10_000] * 3, jitter_ns=120)
    assert outcomes(verdict)["compute_balance"] == "UNDECIDED"


def test_against_a_rehearsed_baseline(tmp_path: Path) -> None:
    deployment = deployed(targets=TARGETS, baseline={"kind": "naive_pipeline"})
    plan = plan_of(deployment)
    folder = write(tmp_path, deployment, plan, rehearsal(plan, [1000] * 3, [10_000] * 3))
    other = deployed(batch={"global_batch_size": 6, "microbatch_size": 6, "sequence_length": 64})
    slow = plan_of(other)
    write(folder.baseline.path, other, slow, rehearsal(slow, [6000] * 3, [10_000] * 3))
    verdict = judge_rehearsal(folder)
    fast_ns, slow_ns = 8 * 3000 + 600, 3 * 18000 + 600
    assert verdict.baseline_ns == slow_ns
    figures = {claim.id: claim.figure for claim in verdict.claims}
    assert figures["latency_reduction"] == f"{100 * (1 - fast_ns / slow_ns):.4f}"
    assert outcomes(verdict)["throughput_gain"] == "WOULD PASS"


def test_nothing_says_pass(tmp_path: Path) -> None:
    text = shown(judged(tmp_path, [1000, 1000, 1000], [10_000, 10_000, 10_000]))
    assert "WOULD PASS" in text
    assert not re.search(r"(?<!WOULD )\b(PASS|FAIL)\b", text), text
    for words in ("rehearsed", "modelled", "communication costs nothing"):
        assert words in text


def test_a_calibration_of_another_machine_is_refused(tmp_path: Path) -> None:
    deployment = deployed(targets=TARGETS)
    plan = plan_of(deployment)
    folder = write(tmp_path, deployment, plan, rehearsal(plan, [1000] * 3, [10_000] * 3))
    assert judge_rehearsal(folder, calibration()).network == "calibration.json"
    foreign = calibration().model_copy(update={"fingerprint": {"host": "here", "torch": "2.11.0"}})
    with pytest.raises(UsageError, match=r"torch: 2.13.0 here, 2.11.0 there; calibrate here"):
        judge_rehearsal(folder, foreign)


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    deployment = deployed()
    plan = plan_of(deployment)
    lone = rehearsal(plan, [1000] * 3, [10_000] * 3)
    folder = write(tmp_path, deployment, plan, lone.model_copy(update={"plan_fingerprint": "0"}))
    with pytest.raises(RecordsError, match="another plan"):
        judge_rehearsal(folder)
    write(tmp_path, deployment, plan, lone.model_copy(update={"ranks": lone.ranks[:2]}))
    with pytest.raises(RecordsError, match="every pipeline rank"):
        judge_rehearsal(folder)
    with pytest.raises(UsageError, match="name a folder that rehearse wrote"):
        judge_rehearsal(RunFolder(tmp_path / "nowhere"))


def test_shares_are_those_of_devices_as_the_figure_is(tmp_path: Path) -> None:
    """Two tensor ranks of a pipeline rank hold half of its share each; the range is the figure."""
    claim = judged(tmp_path, [1000] * 3, [11_000, 10_000, 9_000]).claims[1]
    assert claim.detail.startswith("every device of pp rank 0 holds 18.33 %, every device of pp rank 2 holds 15 %: ")
    assert claim.figure == "3.3333"
    assert "range 3.33 pp" in claim.detail


def test_print_plainly_takes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_plainly(rehearsal_tables(judged(tmp_path, [1000] * 3, [10_000] * 3)), Console(width=90))
    assert "made-up, rehearsed: 3 WOULD PASS, 2 UNDECIDED" in capsys.readouterr().out
