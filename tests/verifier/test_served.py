"""Requests judged: limits of latencies at the boundary, balance of prefills and decodes apart, the rows of a side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hybrid_runtime.mesh import Mesh
from hybrid_runtime.planner.model_flops import served_flops
from hybrid_runtime.predicted_serving import LatencyTimes, PredictedServing
from hybrid_runtime.serving.load import asked_of
from hybrid_runtime.verdict import Claim, Outcome, Verdict
from hybrid_runtime.verifier.judge import judge
from tests.verifier.served import alike, noisy_times, serving, write_served
from tests.verifier.synthetic import MS, prediction, rewrite

PASS, FAIL, INCONCLUSIVE = Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE


def row(verdict: Verdict, name: str) -> Claim:
    return next(claim for claim in verdict.claims if claim.id == name)


@pytest.mark.parametrize(
    ("limit", "outcome"), [("0.002", PASS), ("0.001999999", FAIL), ("0.002000001", PASS), ("0.1", PASS)]
)
def test_a_latency_at_its_limit_passes_and_a_nanosecond_over_it_fails(
    tmp_path: Path, limit: str, outcome: Outcome
) -> None:
    targets = {"first_token_s": {"median": limit}}
    found = row(judge(write_served(tmp_path, serving(targets=targets))), "first_token_median")
    assert (found.outcome, found.measured and found.measured.point) == (outcome, "0.002"), found.detail


def test_every_latency_has_its_own_row(tmp_path: Path) -> None:
    targets = {
        "first_token_s": {"median": "0.002", "p90": "0.002"},
        "output_token_s": {"median": "0.0009"},
        "request_latency_s": {"p90": "0.006"},
    }
    verdict = judge(write_served(tmp_path, serving(targets=targets)))
    found = {claim.id: claim.outcome for claim in verdict.claims}
    assert found == {
        "first_token_median": PASS, "first_token_p90": PASS, "output_token_median": FAIL, "request_p90": PASS,
    }  # fmt: skip


@pytest.mark.parametrize(("limit", "outcome"), [("0.003", PASS), ("0.0014", FAIL), ("0.002", INCONCLUSIVE)])
def test_a_median_with_spread_is_decided_by_its_interval(tmp_path: Path, limit: str, outcome: Outcome) -> None:
    targets = {"first_token_s": {"median": limit}}
    found = row(judge(write_served(tmp_path, serving(targets=targets), times=noisy_times(3))), "first_token_median")
    assert found.outcome is outcome, found
    assert found.measured is not None
    assert float(found.measured.lower) < float(found.measured.point) < float(found.measured.upper)
    if outcome is INCONCLUSIVE:
        assert found.steps_needed


def test_a_quantile_says_how_many_requests_it_needs(tmp_path: Path) -> None:
    """12 rounds of 8 requests: enough for a median, four too few for p90."""
    targets = {"first_token_s": {"median": 1, "p90": 1, "p99": 1}}
    verdict = judge(write_served(tmp_path, serving(targets=targets, measurement={"batch_steps": 1}), steps=12))
    assert row(verdict, "first_token_median").outcome is PASS
    few = row(verdict, "first_token_p90")
    assert (few.outcome, few.reason, few.steps_needed) == (INCONCLUSIVE, "too_few_batches", 1)
    assert few.detail == "96 requests, the quantile needs 100: 4 more; about 1 more round needed"
    (side,) = verdict.served
    shown = {(found.latency, found.quantile): found.measured and found.measured.point for found in side.latencies}
    assert shown["first_token", "median"] == "0.002"
    assert shown["request", "p99"] is None
    assert [found.detail for found in side.latencies if found.quantile == "p99"] == ["n/a: needs 1000 requests"] * 3


def test_balance_is_judged_for_prefills_and_for_decodes(tmp_path: Path) -> None:
    """Two ranks that compute equally long in all: the first one in prefills, the second one in decodes."""
    targets = {"compute_balance_pp": 1}
    run = write_served(tmp_path, serving(targets=targets), prefill_ns=(5 * MS, MS), decode_ns=(MS, 2 * MS), steps=120)
    verdict = judge(run)
    found = {claim.id: claim.outcome for claim in verdict.claims}
    assert found == {"compute_balance": PASS, "compute_balance_prefill": FAIL, "compute_balance_decode": FAIL}
    assert [(phase.prefill_share, phase.decode_share) for phase in verdict.served[0].phases] == [
        ("83.33", "33.33"), ("16.67", "66.67"),
    ]  # fmt: skip


def test_utilisation_is_of_whole_rounds_and_the_steady_state_stands_beside_it(tmp_path: Path) -> None:
    verdict = judge(write_served(tmp_path, serving(targets={"utilisation_percent": 9}), prefill_ns=(MS, 3 * MS)))
    assert row(verdict, "utilisation").measured is not None
    assert row(verdict, "utilisation").outcome is PASS  # 10 of 100 ms
    first, second = verdict.served[0].phases
    assert (first.busy, second.busy) == ("10", "14")
    assert float(first.steady_busy) > 99


@pytest.mark.parametrize(("factor", "outcome"), [(2, PASS), (1, FAIL)])
def test_latency_reduction_speaks_of_the_latency_that_the_load_names(
    tmp_path: Path, factor: int, outcome: Outcome
) -> None:
    load = {"requests": 8, "prompt_tokens": 4, "output_tokens": 5, "concurrency": 8, "latency": "first_token"}
    more: dict[str, Any] = {"load": load, "workload": {"kind": "generate"}}
    deployed = serving(targets={"latency_reduction_percent": 40}, baseline={"kind": "single"}, **more)
    single = serving(Mesh(), **more)

    def slower(step: int, request: int) -> tuple[int, int]:
        return factor * 2 * MS, 12 * MS

    found = row(judge(write_served(tmp_path, deployed, baseline=single, baseline_times=slower)), "latency_reduction")
    assert (found.outcome, found.measured and found.measured.point) == (outcome, "50" if factor == 2 else "0"), found
    assert found.text == "a first token takes at least 40 % less time than the baseline's (single)"


def test_one_item_in_flight_is_the_naive_pipeline_of_a_deployment_that_serves(tmp_path: Path) -> None:
    deployed = serving(targets={"throughput_gain_percent": 60}, baseline={"kind": "naive_pipeline"})
    naive = serving(batch={"global_batch_size": 8, "microbatch_size": 4, "sequence_length": 32, "items_in_flight": 1})
    found = row(judge(write_served(tmp_path, deployed, baseline=naive, baseline_times=alike)), "throughput_gain")
    assert (found.outcome, found.reason) == (FAIL, None), found


def test_mfu_counts_what_requests_take(tmp_path: Path) -> None:
    """Against a peak of 1 GFLOP/s on each of two devices: all requests' model FLOPs over the windows."""
    deployed = serving()
    run = write_served(tmp_path, deployed, steps=20)

    def with_peak(rank: int, record: dict[str, Any]) -> dict[str, Any]:
        return record | {"peak_flops_per_s": 10**9} if record["type"] == "header" else record

    rewrite(run, with_peak)
    shape = deployed.shape
    assert shape is not None
    of_round = sum(served_flops(shape, one.prompt_tokens or 0, 5) for one in asked_of(deployed))
    assert float(judge(run).sides[0].mfu) == pytest.approx(100 * of_round / (0.1 * 2e9), abs=0.006)


def test_a_prediction_of_latencies_is_judged(tmp_path: Path) -> None:
    """Predicted are 1.8 ms to the first token (measured 2), and 12 ms to the whole answer (measured 6)."""
    deployed = serving()
    times = LatencyTimes(median_ns=1_800_000, p90_ns=2 * MS, p99_ns=2 * MS)
    request = LatencyTimes(median_ns=12 * MS, p90_ns=12 * MS, p99_ns=12 * MS)
    served = PredictedServing(
        latency="request", request=request, first_token=times, output_token=None, tokens=40, ranks=()
    )
    predicted = prediction(100 * MS, [10 * MS] * 2, [1000] * 2).model_copy(update={"serving": served})
    verdict = judge(write_served(tmp_path, deployed, steps=20, predicted=predicted))
    assert verdict.prediction is not None
    found = {row.id: (row.error, row.verdict.value) for row in verdict.prediction.quantities if row.ranks == ()}
    assert found["first_token"] == ("-10", "PREDICTED")
    assert found["request"] == ("100", "PESSIMISTIC")
    assert "output_token" not in found
