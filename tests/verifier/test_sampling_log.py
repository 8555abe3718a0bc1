"""sampling.json cannot be used to change what is judged, or how strictly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hybrid_runtime.errors import RecordsError
from hybrid_runtime.verifier.judge import judge
from tests.verifier.synthetic import MS, append_steps, bare_step, deployment, steady, write_run

LOG: dict[str, Any] = {
    "looks_allowed": 3, "alpha_per_look": "0.0166667", "budget_s": 900, "stopped": "decided",
    "looks": [{"blocks": 1, "elapsed_s": "9.9", "undecided": []}],
}  # fmt: skip


def sampled(folder: Path, baseline: bool = False, **changes: Any) -> Path:
    """A run of one bare block with its log, some of whose values are replaced."""
    settings = deployment(baseline={"kind": "pp_only"})
    write_run(folder, steady([10 * MS] * 3), settings, baseline=steady([10 * MS] * 3) if baseline else None)
    append_steps(folder, [bare_step(20 * MS, k * 10**9, 3, 0) for k in range(10)])
    (folder / "sampling.json").write_text(json.dumps(LOG | changes))
    return folder


def test_an_honest_log_is_taken_over(tmp_path: Path) -> None:
    verdict = judge(sampled(tmp_path))
    assert verdict.sampling is not None
    assert verdict.sampling.model_dump(mode="json") == LOG


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"looks_allowed": 1, "looks": []}, "1 looks and 900 s, but the deployment allows 3 and 900 s"),
        ({"looks_allowed": 0}, "greater than or equal to 1"),
        ({"looks_allowed": 10**400}, "not a log of looks"),
        ({"budget_s": 10**6}, "1000000 s, but the deployment allows"),
        ({"looks": LOG["looks"] * 4}, "4 looks were made, 3 are allowed"),
        ({"stopped": "self-test only"}, "only the instrument is said to have been tested"),
    ],
)
def test_an_edited_log_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(RecordsError, match=says):
        judge(sampled(tmp_path, **changes))


def test_claims_do_not_vanish_behind_a_self_test(tmp_path: Path) -> None:
    with pytest.raises(RecordsError, match="claims were measured"):
        judge(sampled(tmp_path, baseline=True, stopped="self-test only", looks=[]))


def test_a_sampled_run_without_its_log_is_refused(tmp_path: Path) -> None:
    folder = sampled(tmp_path)
    (folder / "sampling.json").unlink()
    with pytest.raises(RecordsError, match="is missing, but the records are of a sampled run"):
        judge(folder)
