"""What the file alone says of a deployment that serves: requests, caches, samples, and what it cannot have."""

from __future__ import annotations

from typing import Any

import pytest

from hybrid_runtime.errors import DeploymentError, PlanError
from hybrid_runtime.planner.baseline import baseline_deployment
from hybrid_runtime.planner.costs import unit_costs
from hybrid_runtime.planner.make import make_plan
from hybrid_runtime.verdict import Outcome, StaticCheck
from hybrid_runtime.verifier.static import static_checks
from tests.verifier.served import serving
from tests.verifier.synthetic import deployment

LOAD = {"requests": 8, "prompt_tokens": [4, 16], "output_tokens": 5, "concurrency": 8}


def row(name: str, **tables: Any) -> StaticCheck:
    return next(check for check in static_checks(serving(**tables)) if check.id == name)


def test_a_request_must_fit_its_slot() -> None:
    fits = row("requests_fit")
    assert (fits.outcome, fits.requirement) == (
        Outcome.PASS, "8 requests a round (8 clients) fit slots of 32 tokens",
    )  # fmt: skip
    long = row("requests_fit", load=LOAD | {"prompt_tokens": 30})
    assert long.outcome is Outcome.FAIL
    assert long.detail == "30 tokens of prompt and 5 of answer are 35; set sequence_length to 35, or ask for less"


def test_prompts_of_a_file_are_not_read_by_a_check() -> None:
    load = {"requests": 8, "prompts": "there-is-no-such-file.txt"}
    assert row("requests_fit", load=load).reason == "not_given"


def test_the_cache_must_fit_beside_the_parameters() -> None:
    """Keys and values: 2 * 8 slots * 32 tokens * 6 heads * 16 * 4 bytes of three attention units on each rank."""
    cache = row("kv_cache")
    assert 2 * 8 * 32 * 6 * 16 * 4 * 3 == 589_824
    assert (cache.outcome, cache.detail) == (Outcome.PASS, "0.6/0.6 MB (10^6) per rank of each stage")
    small = row("kv_cache", hardware={"memory_per_device": "1 MB"})
    assert small.outcome is Outcome.FAIL
    assert "lower global_batch_size or sequence_length" in small.detail


def test_quantiles_need_requests() -> None:
    few = {"warmup_steps": 4, "blocks": 2, "block_steps": 2, "looks": 1}
    found = row("enough_requests", targets={"first_token_s": {"p99": 1}}, measurement=few)
    assert found.outcome is Outcome.FAIL
    assert found.detail.startswith("2 blocks of 2 rounds of 8 requests give at most 32 in 1 look")


def test_one_item_in_flight_cannot_keep_two_ranks_busy() -> None:
    batch = {"global_batch_size": 8, "microbatch_size": 4, "sequence_length": 32, "items_in_flight": 1}
    found = row("compute_busy_min", batch=batch, targets={"utilisation_percent": 60})
    assert found.outcome is Outcome.FAIL
    assert "1 item under way on 2 pipeline ranks allow at most 50 %" in found.detail
    assert row("compute_busy_min", targets={"utilisation_percent": 60}).outcome is Outcome.PASS


def test_stages_that_are_not_one_on_each_rank_in_order_are_refused() -> None:
    wrong = serving(pipeline={"schedule": "zb_v"})
    (found,) = [check for check in static_checks(wrong) if check.id == "schedule"]
    assert found.outcome is Outcome.FAIL
    assert "requests are served with one stage on each rank, in order" in found.detail
    assert wrong.shape is not None
    costs = unit_costs(wrong.shape, microbatch_size=4, sequence_length=32, workload="forward")
    with pytest.raises(PlanError, match="one stage on each rank"):
        make_plan(wrong, costs)


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"pipeline": {"embedding_rows": "equal"}}, "serves with pipeline.embedding_rows"),
        ({"pipeline": {"schedule": "interleaved_1f1b", "virtual_stages": 2}}, "serves with virtual_stages = 2"),
        ({"parallel": {"dp_degree": 2}}, "serves with dp_degree = 2"),
        ({"parallel": {"tp_degree": 2, "sequence_parallel": True}}, "serves with sequence_parallel"),
        ({"checkpoint": {"folder": "x", "every": 5}}, r"has \[checkpoint\] and \[load\]"),
        ({"workload": {"kind": "train"}}, r"has \[load\], which no training obeys"),
        ({"workload": {"kind": "forward"}, "targets": {"output_token_s": {"p90": 1}}}, "a prefill gives one token"),
        ({"targets": {"first_token_s": {}}}, "limits no quantile"),
        ({"targets": {"first_token_s": {"median": 2, "p90": 1}}}, "allows a lower quantile more than a higher one"),
    ],
)
def test_what_serving_cannot_have_is_said_in_a_sentence(tables: dict[str, Any], words: str) -> None:
    with pytest.raises(DeploymentError, match=words):
        serving(**tables)


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"batch": {"global_batch_size": 8, "microbatch_size": 2, "sequence_length": 8, "items_in_flight": 1}},
         "has batch.items_in_flight and no"),
        ({"targets": {"first_token_s": {"p90": 1}}}, "limits the latency of requests and has no"),
        ({"workload": {"kind": "generate"}}, "has a workload of kind 'generate' and no"),
    ],
)  # fmt: skip
def test_what_only_serving_has_needs_a_load(tables: dict[str, Any], words: str) -> None:
    with pytest.raises(DeploymentError, match=words):
        deployment(**tables)


def test_the_naive_pipeline_has_one_item_in_flight_and_all_else_alike() -> None:
    declared = serving(baseline={"kind": "naive_pipeline"})
    naive = baseline_deployment(declared)
    assert naive.batch is not None
    assert declared.batch is not None
    assert naive.batch == declared.batch.model_copy(update={"items_in_flight": 1})
    assert (naive.mesh, naive.load, naive.pipeline) == (declared.mesh, declared.load, declared.pipeline)
    with pytest.raises(PlanError, match="replicas that serve share nothing"):
        baseline_deployment(declared, "dp_only")
