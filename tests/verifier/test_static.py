"""The static checks as functions: exact limits in any spelling, rows where the file says something, quick."""

from __future__ import annotations

import subprocess
import sys
import time
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_runtime.deployment import Deployment, parse_deployment
from hybrid_runtime.errors import PlanError
from hybrid_runtime.plan import UnitCost
from hybrid_runtime.planner.costs import unit_costs
from hybrid_runtime.planner.make import make_plan
from hybrid_runtime.schedule.files import save_lists
from hybrid_runtime.schedule.registry import generate_cells
from hybrid_runtime.verdict import StaticCheck
from hybrid_runtime.verifier.static import static_checks
from hybrid_runtime.verifier.static_declared import declared_range
from hybrid_runtime.verifier.static_rows import Facts

TINY = {"model": {"preset": "tiny"}}
BATCH = {"batch": {"global_batch_size": 8, "microbatch_size": 1, "sequence_length": 128}}


def deployment(**tables: Any) -> Deployment:
    return parse_deployment({"name": "test"} | tables, source="test")


def rows(**tables: Any) -> dict[str, StaticCheck]:
    return {check.id: check for check in static_checks(deployment(**tables))}


def outcomes(**tables: Any) -> dict[str, str]:
    return {name: str(check.outcome) for name, check in rows(**tables).items()}


def gap_outcome(shares: list[str], limit: Fraction) -> str:
    facts = Facts(deployment(), None, ())
    texts = {f"gpu_{index}": text for index, text in enumerate(shares)}
    return str(declared_range(facts, "time_share_range", texts, limit, "targets.compute_balance_pp").outcome)


# --- exact limits -----------------------------------------------------------------------------------------------------


def test_all_pairs_of_four_digit_shares_exactly_one_hundredth_apart_pass() -> None:
    """Binary floats reject 7973 of these 9901 pairs."""
    for low in range(9901):
        high = low + 100
        texts = [f"{low // 100}.{low % 100:02d}%", f"{high // 100}.{high % 100:02d}%"]
        assert gap_outcome(texts, Fraction(1, 100)) == "PASS", texts


@st.composite
def spellings(draw: st.DrawFn) -> tuple[Decimal, Decimal, int]:
    """A share in percent, a limit in pp, and how many zeros are written behind the share."""
    low = Decimal(draw(st.integers(0, 50 * 10**9))).scaleb(-draw(st.integers(9, 12)))
    limit = Decimal(draw(st.integers(1, 10**8))).scaleb(-draw(st.integers(6, 9)))
    return low, limit, draw(st.integers(0, 6))


@given(spellings())
def test_exactly_the_limit_passes_in_any_spelling_and_a_billionth_more_fails(
    case: tuple[Decimal, Decimal, int],
) -> None:
    low, limit, zeros = case
    point = "" if "." in f"{low + limit:f}" else "."
    high = f"{low + limit:f}{point if zeros else ''}{'0' * zeros}%"
    assert gap_outcome([f"{low:f}%", high], Fraction(limit) / 100) == "PASS"
    over = low + limit * (1 + Decimal("1e-9"))
    assert gap_outcome([f"{low:f}%", f"{over:f}%"], Fraction(limit) / 100) == "FAIL"


# --- rows appear where the file says something ------------------------------------------------------------------------


def test_a_file_that_says_nothing_gets_no_row() -> None:
    assert outcomes() == {}


def test_a_plan_without_promises_gets_the_plan_rows() -> None:
    assert outcomes(**TINY, **BATCH, parallel={"tp_degree": 2, "pp_degree": 3}) == {
        "world_size_product": "NOT_APPLICABLE",
        "model_shape": "PASS",
        "heads_divisible": "PASS",
        "kv_heads_divisible": "PASS",
        "ffn_divisible": "PASS",
        "batch_divisible": "PASS",
        "stage_cover": "PASS",
        "schedule": "PASS",
    }


def test_without_a_batch_the_model_is_still_judged() -> None:
    found = rows(**TINY, parallel={"pp_degree": 3}, targets={"utilisation_percent": 90})
    assert found["stage_cover"].outcome == "PASS"
    assert found["compute_busy_min"].reason == "not_given"
    assert "at least 18 microbatches" in found["compute_busy_min"].detail


def test_a_user_model_is_judged_once_its_units_are_known() -> None:
    own = deployment(model={"units": "mine:units"}, parallel={"pp_degree": 2}, **BATCH)
    names = ["embedding", "0.block", "1.block", "head"]
    units = [
        UnitCost(name=name, forward_flops=6, input_grad_flops=6, weight_grad_flops=6, parameters=9) for name in names
    ]
    before = {check.id: check for check in static_checks(own)}
    after = {check.id: check for check in static_checks(own, units)}
    assert (before["stage_cover"].outcome, before["stage_cover"].reason) == ("INCONCLUSIVE", "not_given")
    assert after["stage_cover"].detail == "4 units: embedding..0.block | 1.block..head"
    assert "free of deadlock" in after["schedule"].detail


# --- hardware ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "kind", "bytes_per_parameter"),
    [("float32", "train", 16), ("bfloat16", "train", 18), ("float32", "forward", 4), ("bfloat16", "forward", 2)],
)
def test_memory_is_a_lower_bound_that_fails_one_byte_above(dtype: str, kind: str, bytes_per_parameter: int) -> None:
    parameters = 6 * (4 * 96 * 96 + 3 * 96 * 256 + 2 * 96) + 2 * 256 * 96 + 96
    exact = parameters * bytes_per_parameter
    tables = {"model": {"preset": "tiny", "dtype": dtype}, "workload": {"kind": kind}}
    fits = rows(**tables, hardware={"memory_per_device": f"{exact} B"})["device_memory_bytes"]
    fails = rows(**tables, hardware={"memory_per_device": f"{exact - 1} B"})["device_memory_bytes"]
    assert (fits.outcome, fails.outcome) == ("PASS", "FAIL")
    assert "lower bound" in fits.detail


def test_shared_devices_hold_the_states_of_all_their_ranks() -> None:
    hardware = {"devices": 1, "oversubscribe": True, "memory_per_device": "6 MB"}
    assert rows(**TINY, parallel={"pp_degree": 3}, hardware=hardware)["device_memory_bytes"].outcome == "FAIL"
    assert (
        rows(**TINY, parallel={"pp_degree": 3}, hardware=hardware | {"devices": 3})["device_memory_bytes"].outcome
        == "PASS"
    )


def test_links_that_cover_the_plan_still_wait_for_a_run() -> None:
    hardware = {"interconnect": "nvlink", "link_pairs": [[0, 1], [1, 2]], "min_link_bandwidth": "300 GB/s"}
    link = rows(parallel={"pp_degree": 3}, hardware=hardware | {"devices": 3})["link_present"]
    assert (link.outcome, link.reason) == ("INCONCLUSIVE", "not_measured")
    assert "names one device twice" in rows(hardware=hardware | {"link_pairs": [[1, 1]]})["link_present"].detail
    assert "devices 0 to 1" in rows(hardware=hardware | {"devices": 2})["link_present"].detail


@pytest.mark.parametrize(
    ("assignment", "parallel", "words"),
    [
        ({"a": ["part_0"], "b": ["part_1"]}, {"pp_degree": 2}, None),
        ({"a": ["part_0"], "b": ["part_0"]}, {"tp_degree": 2}, None),
        ({"a": ["part_0"], "b": ["part_0"]}, {"pp_degree": 2}, "part_0 on 2"),
        ({"a": ["part_0", "part_1"], "b": []}, {"pp_degree": 2}, "b holds nothing"),
        ({"a": ["part_0"]}, {"pp_degree": 2}, "1 devices are assigned, but the deployment is for 2"),
    ],
)
def test_device_assignment(assignment: dict[str, list[str]], parallel: dict[str, int], words: str | None) -> None:
    found = rows(parallel=parallel, hardware={"devices": 2}, declared={"device_assignment": assignment})[
        "rank_device_map"
    ]
    assert found.outcome == ("FAIL" if words else "PASS")
    assert (words or "") in found.detail


def test_strategy_words() -> None:
    axes = {"tp_degree": 2, "pp_degree": 2}
    assert outcomes(parallel=axes, declared={"strategy": "TP+PP"})["parallel_axes"] == "PASS"
    assert outcomes(parallel=axes, declared={"strategy": "tensor_data"})["parallel_axes"] == "FAIL"
    assert outcomes(parallel=axes, declared={"strategy": "hybrid"})["parallel_axes"] == "INCONCLUSIVE"


# --- promises and declarations ----------------------------------------------------------------------------------------


def test_a_baseline_replaces_the_rows_of_latency_and_throughput() -> None:
    targets = {"latency_reduction_percent": 30, "throughput_gain_percent": 50}
    without, with_it = (
        outcomes(**TINY, **BATCH, targets=targets),
        rows(**TINY, **BATCH, targets=targets, baseline={"kind": "single"}),
    )
    assert (without["latency_reduction"], without["throughput_gain"]) == ("INCONCLUSIVE", "INCONCLUSIVE")
    assert not {"latency_reduction", "throughput_gain"} & set(with_it)
    assert with_it["baseline"].detail == "tp 1 x pp 1 x dp 1, 1f1b, 8 microbatches"


def test_a_baseline_that_cannot_be_is_inconclusive() -> None:
    hardware = {"devices": 8, "memory_per_device": "80 GB"}
    model = {"preset": "llama-3-8b"}
    single = rows(model=model, **BATCH, parallel={"tp_degree": 8}, hardware=hardware, baseline={"kind": "single"})[
        "baseline"
    ]
    assert single.reason == "baseline_infeasible"
    assert "128.484 GB of 80 GB" in single.detail
    deep = rows(**TINY, **BATCH, baseline={"kind": "pp_only", "devices": 99})["baseline"]
    assert deep.reason == "baseline_infeasible"
    assert rows(baseline={"kind": "single"})["baseline"].reason == "not_given"


def test_a_reported_utilisation_that_is_possible_waits_for_a_measurement() -> None:
    found = rows(**TINY, **BATCH, declared={"utilisation": "95%"})["compute_busy_min"]
    assert (found.outcome, found.reason) == ("INCONCLUSIVE", "not_measured")


def test_shares_of_work_count_every_rank() -> None:
    shares = {f"gpu_{rank}": "25%" for rank in range(4)}
    tables = {**TINY, **BATCH, "targets": {"compute_balance_pp": 1}, "declared": {"computation_distribution": shares}}
    assert rows(**tables, parallel={"tp_degree": 2, "dp_degree": 2})["declared_computation"].outcome == "PASS"
    assert "the plan has 2 ranks" in rows(**tables, parallel={"tp_degree": 2})["declared_computation"].detail


def test_declared_shares_without_a_limit_are_not_judged() -> None:
    found = rows(declared={"memory_distribution": {"a": "50%", "b": "50%"}})["alloc_peak_share_range"]
    assert (found.outcome, found.reason) == ("INCONCLUSIVE", "not_given")
    assert "targets.memory_balance_pp" in found.detail


# --- several stages on a rank -----------------------------------------------------------------------------------------

V = {"parallel": {"pp_degree": 2}, "pipeline": {"schedule": "dualpipe_v"}}


def test_stages_are_counted_and_not_ranks() -> None:
    found = rows(**TINY, **BATCH, **V)
    assert found["stage_cover"].requirement == "4 parts with every unit once"
    assert found["stage_cover"].detail.count(" | ") == 3
    assert found["schedule"].detail == ("8 microbatches: complete, free of deadlock; microbatches held at once 2.5/2.5")
    wrong = rows(
        **TINY, **BATCH, **(V | {"pipeline": {"schedule": "zb_v", "cuts": ["embedding..2.mlp", "3.attn..head"]}})
    )
    assert wrong["stage_cover"].detail == "2 stages are given, but pp_degree 2 with 2 stages on each rank asks for 4"
    parts = rows(**TINY, **BATCH, **V, declared={"num_parts": 2})["stage_cover"].detail
    assert parts.startswith("2 parts are declared, but pp_degree 2 with 2 stages on each rank makes 4 stages")


def test_what_a_schedule_does_not_accept_is_a_row() -> None:
    few = {"batch": {"global_batch_size": 3, "microbatch_size": 1, "sequence_length": 128}}
    found = rows(**TINY, **few, **V)["schedule"]
    assert (found.outcome, found.detail) == (
        "FAIL",
        "dualpipe_v on 2 pipeline ranks needs at least 4 microbatches, not 3",
    )
    many = {"batch": {"global_batch_size": 10**8 + 1, "microbatch_size": 1, "sequence_length": 128}}
    loop = {"parallel": {"pp_degree": 8}, "pipeline": {"schedule": "interleaved_1f1b", "virtual_stages": 1}}
    assert "accepts 100000000 or 100000008" in rows(**TINY, **many, **loop)["schedule"].detail
    no_file = rows(**TINY, **BATCH, pipeline={"schedule": "none.csv"})["schedule"]
    assert (no_file.outcome, "none.csv: cannot be read" in no_file.detail) == ("FAIL", True)


def test_the_bound_of_utilisation_is_the_schedules_own() -> None:
    promise = {"targets": {"utilisation_percent": 95}, "parallel": {"pp_degree": 4}}
    batch = {"batch": {"global_batch_size": 16, "microbatch_size": 1, "sequence_length": 128}}

    def outcome(schedule: str, virtual_stages: int | None = None) -> str:
        pipeline = {"schedule": schedule, "virtual_stages": virtual_stages}
        return rows(**TINY, **batch, **promise, pipeline=pipeline)["compute_busy_min"].outcome

    assert [outcome(name) for name in ("1f1b", "zb_h1", "zb_h2", "v_half")] == ["FAIL"] * 4
    assert [outcome(name) for name in ("zb_v", "dualpipe_v", "interleaved_zb")] == ["PASS"] * 3
    assert [outcome("interleaved_1f1b", per_rank) for per_rank in (2, 4)] == ["FAIL", "PASS"]


def test_utilisation_of_a_file_of_lists(tmp_path: Path) -> None:
    save_lists(tmp_path / "zb_v.csv", generate_cells("zb_v", 2, 8, "train"))
    pipeline = {"schedule": str(tmp_path / "zb_v.csv")}
    for promised, outcome in ((97, "PASS"), (99, "FAIL")):  # 24 of 24.5
        targets = {"utilisation_percent": promised}
        found = rows(**TINY, **BATCH, parallel={"pp_degree": 2}, pipeline=pipeline, targets=targets)["compute_busy_min"]
        assert found.outcome == outcome
        assert "8 microbatches allow at most 97.96 %" in found.detail


def test_shares_and_memory_are_summed_over_the_stages_of_a_rank() -> None:
    shares = {"gpu_0": "40%", "gpu_1": "60%"}
    declared = {"targets": {"compute_balance_pp": 40}, "declared": {"computation_distribution": shares}}
    one_layer_each = {"model": {"preset": "tiny", "num_layers": 2, "vocab_size": 16}}
    cuts = {"schedule": "zb_v", "cuts": ["embedding..0.attn", "0.mlp", "1.attn", "1.mlp..head"]}
    detail = rows(**one_layer_each, **BATCH, **declared, parallel={"pp_degree": 2}, pipeline=cuts)[
        "declared_computation"
    ].detail
    assert detail.count("is declared as") == 2  # of two ranks, not of four stages
    assert "gpu_1 is declared as 60% and has 49.6945 %" in detail


def test_a_loop_closes_over_the_last_link() -> None:
    hardware = {"devices": 4, "interconnect": "nvlink", "link_pairs": [[0, 1], [1, 2], [2, 3]]}
    ring = {"parallel": {"pp_degree": 4}, "hardware": hardware}
    assert rows(**ring, pipeline={"schedule": "zb_v"})["link_present"].outcome == "INCONCLUSIVE"
    found = rows(**ring, pipeline={"schedule": "interleaved_zb"})["link_present"]
    assert (found.outcome, "link_pairs lacks: (0, 3)" in found.detail) == ("FAIL", True)


def test_a_baseline_whose_schedule_needs_more_microbatches_is_inconclusive() -> None:
    found = rows(**TINY, **BATCH, **V, baseline={"kind": "pp_only", "devices": 5})["baseline"]
    assert found.reason == "baseline_infeasible"
    assert "dualpipe_v on 5 pipeline ranks needs at least 10 microbatches, not 8" in found.detail


# --- the checks agree with the planner, and are quick -----------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    tp=st.integers(1, 7),
    pp=st.integers(1, 16),
    dp=st.integers(1, 3),
    heads=st.sampled_from([4, 6, 8]),
    kv_heads=st.sampled_from([1, 2, 4]),
    batch=st.integers(1, 24),
    microbatch=st.integers(1, 3),
    cuts=st.sampled_from(["even", "balanced", ["embedding..2.mlp", "3.attn..head"]]),
    schedule=st.sampled_from(["1f1b", "zb_v", "dualpipe_v", "interleaved_zb", "none.csv"]),
    virtual_stages=st.sampled_from([None, None, 1, 2, 3]),
)
def test_what_the_planner_refuses_fails_here(
    tp: int,
    pp: int,
    dp: int,
    heads: int,
    kv_heads: int,
    batch: int,
    microbatch: int,
    cuts: str | list[str],
    schedule: str,
    virtual_stages: int | None,
) -> None:
    plan = deployment(
        model={"preset": "tiny", "num_heads": heads, "num_kv_heads": kv_heads, "hidden_size": 96, "ffn_size": 840},
        parallel={"tp_degree": tp, "pp_degree": pp, "dp_degree": dp},
        pipeline={"cuts": cuts, "schedule": schedule, "virtual_stages": virtual_stages},
        batch={"global_batch_size": batch, "microbatch_size": microbatch, "sequence_length": 16},
    )
    failed = {check.id for check in static_checks(plan) if check.outcome == "FAIL"}
    assert plan.shape is not None
    costs = unit_costs(plan.shape, microbatch_size=microbatch, sequence_length=16, workload="train")
    try:
        make_plan(plan, costs)
        refused = False
    except PlanError:
        refused = True
    assert refused == bool(failed & {"batch_divisible", "stage_cover", "schedule"})
    assert ("heads_divisible" in failed) == (heads % tp != 0)
    assert ("model_shape" in failed) == (heads % kv_heads != 0)


def test_sizes_at_their_limits_are_judged_within_a_second() -> None:
    start = time.perf_counter()
    found = rows(
        model={"preset": "llama-3-70b"},
        parallel={"tp_degree": 8, "pp_degree": 16},
        batch={"global_batch_size": 10**9, "microbatch_size": 1, "sequence_length": 4096},
        hardware={"devices": 10**9},
    )
    assert "32000000000 actions" in found["schedule"].detail  # 2 * 16 * 10^9, counted and never listed
    assert time.perf_counter() - start < 1


def test_checking_needs_no_torch() -> None:
    code = "import hybrid_runtime.verifier.static, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
