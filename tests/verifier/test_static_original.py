"""The original three-GPU deployment: a row for each of its requirements, and the two ways of editing it to pass."""

from __future__ import annotations

import json
from pathlib import Path

from hybrid_runtime.deployment import Deployment, load_deployment, parse_deployment
from hybrid_runtime.verdict import StaticCheck, count, overall
from hybrid_runtime.verifier.static import stated_requirements, static_checks

CONFIGS = Path(__file__).parents[2] / "configs"

# row by row, in the order in which the original analysis listed its thirteen requirements; then the coherence of two
ORIGINAL = """
device_count            FAIL
device_memory_bytes     INCONCLUSIVE not_given
link_present            INCONCLUSIVE not_given
parallel_axes           PASS
world_size_product      FAIL
rank_device_map         FAIL
stage_cover             FAIL
latency_reduction       INCONCLUSIVE not_measured
throughput_gain         INCONCLUSIVE not_measured
compute_busy_min        INCONCLUSIVE not_given
time_share_range        PASS
alloc_peak_share_range  PASS
claim_count             FAIL
coherence               FAIL
"""


def load(name: str) -> Deployment:
    return load_deployment(CONFIGS / name)


def table(checks: tuple[StaticCheck, ...]) -> list[list[str]]:
    return [[check.id, str(check.outcome), *([check.reason] if check.reason else [])] for check in checks]


def by_id(checks: tuple[StaticCheck, ...]) -> dict[str, StaticCheck]:
    assert len({check.id for check in checks}) == len(checks)
    return {check.id: check for check in checks}


def test_every_requirement_has_its_row_and_outcome() -> None:
    checks = static_checks(load("original_three_gpu.json"))
    assert table(checks) == [line.split() for line in ORIGINAL.strip().splitlines()]
    assert overall(check.outcome for check in checks) == ("FAIL", 1)


def test_rows_say_why_with_the_numbers() -> None:
    rows = by_id(static_checks(load("original_three_gpu.json")))
    for name in ("device_count", "world_size_product", "rank_device_map"):
        assert "tp 1 x pp 3 x dp 1, tp 3 x pp 1 x dp 1, tp 1 x pp 1 x dp 3" in rows[name].detail
        assert "tp 2 x pp 3 x dp 1 itself needs 6 devices" in rows[name].detail
    assert "2 * 3 * 1 = 6, not 3" in rows["world_size_product"].detail
    assert "3 mod 2 = 1" in rows["rank_device_map"].detail
    assert "3 parts for 3 devices contradict tp 2" in rows["stage_cover"].detail
    assert "at least 38 microbatches" in rows["compute_busy_min"].detail
    assert "exactly 1 pp; their rounding admits a true gap of 0 to 2 pp" in rows["time_share_range"].detail
    assert "0.949025 to 0.971025" in rows["coherence"].detail
    assert "12 separate requirements" in rows["claim_count"].detail


def test_counts_are_derived_from_the_file() -> None:
    deployment = load("original_three_gpu.json")
    assert len(stated_requirements(deployment)) == 12
    honest = {"passed": 10, "failed": 2, "total": 12}
    declared = deployment.declared.model_dump(exclude_none=True) | {"requirements": honest}
    values = deployment.model_dump(exclude_none=True, exclude={"declared"}) | {"declared": declared}
    rows = by_id(static_checks(parse_deployment(values, source="honest counts")))
    assert rows["claim_count"].outcome == "PASS"
    assert count(row.outcome for row in rows.values())["total"] == len(rows)


def test_canonical_form_is_judged_like_the_file() -> None:
    """A run folder holds the canonical form, with every default written out."""
    for path in sorted(CONFIGS.iterdir()):
        deployment = load(path.name)
        again = parse_deployment(json.loads(deployment.canonical_json()), source="canonical")
        assert static_checks(again) == static_checks(deployment), path.name


def test_editing_the_declared_shares_changes_one_figure_and_no_outcome() -> None:
    before = static_checks(load("original_three_gpu.json"))
    after = static_checks(load("original_three_gpu_option2_no_model.json"))
    assert table(after) == table(before)
    assert "exactly 0.01 pp" in by_id(after)["time_share_range"].detail


def test_edited_shares_are_caught_where_a_model_is_given() -> None:
    checks = static_checks(load("original_three_gpu_option2.json"))
    rows = by_id(checks)
    assert rows["work_share_range"].outcome == "PASS"  # what is declared is balanced
    assert rows["declared_computation"].reason == "declaration_not_plan"  # and is not what the plan does
    assert "gpu_0 is declared as 33.33%_computation and has 33.7239 %" in rows["declared_computation"].detail
    assert {check.id for check in checks if check.outcome == "FAIL"} == {"declared_computation"}
