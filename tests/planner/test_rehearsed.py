"""From a rehearsal to a prediction: parts that add up, communication as the network says, samples' interval."""

from __future__ import annotations

from fractions import Fraction

import pytest

from hybrid_runtime.calibration import Calibration, CollectiveTime, MessageTime, Spread
from hybrid_runtime.deployment import Hardware
from hybrid_runtime.planner.network import CalibratedNetwork, DeclaredNetwork, FreeNetwork, network_of
from hybrid_runtime.planner.rehearsed import busy_ns, predicted_step, rehearsed_costs
from hybrid_runtime.schedule.actions import Kind
from tests.rehearsals import MICROBATCHES, deployed, plan_of, rehearsal

PLAN = plan_of(deployed())


def spread(ns: int) -> Spread:
    return Spread(p10_ns=ns, p50_ns=ns, p90_ns=ns, samples=1)


def calibration() -> Calibration:
    return Calibration(
        taken_utc="2026-01-01",
        fingerprint={"host": "here", "torch": "2.13.0"},
        model="",
        units=(),
        collectives=tuple(
            CollectiveTime(
                kind="shared_all_reduce", ranks=2, num_bytes=size, time=spread(ns), own_cpu_ns=10, lone_cpu_ns=7
            )
            for size, ns in ((100, 30), (2000, 68))
        ),
        messages=(MessageTime(num_bytes=500, one_way=spread(40), both_ways=spread(50), post_ns=4),),
        action_ns=0,
        step_ns=0,
        optimizer_fixed_ns=0,
        optimizer_per_million_ns=0,
        optimizer_bytes_per_parameter=8,
        gradient_bytes_per_parameter=4,
        not_measured={"all_reduce of 6 ranks": "6 ranks, but this machine has 2 cores"},
    )


def test_equal_stages_without_communication() -> None:
    """1F1B of equal stages: (m + p - 1) forwards and backwards, then the update."""
    found = predicted_step(rehearsal(PLAN, [100] * 3, [1000] * 3), PLAN, FreeNetwork())
    assert found.pipeline_ns == (MICROBATCHES + 2) * 300
    assert found.step_time.p50_ns == found.pipeline_ns + 600
    assert found.source == "rehearsal"
    for rank in found.ranks:
        assert rank.time.total_ns == found.step_time.p50_ns
        assert (rank.time.forward_ns, rank.time.backward_ns, rank.time.optimizer_ns) == (600, 1200, 600)
        assert rank.time.idle_ns == 2 * 300
        assert rank.memory.ledger_peak == 1000
    assert found.bound_ns <= found.pipeline_ns


def test_overhead_and_collectives_occupy_a_rank_and_are_no_compute() -> None:
    lone = rehearsal(PLAN, [100] * 3, [1000] * 3, overhead_ns=7)
    costs = rehearsed_costs(lone, PLAN, CalibratedNetwork(calibration()))
    between = 20 + (58 - 20) * 900 // 1900  # a straight line between two sizes, the rank's own part taken out
    assert costs.durations[1, Kind.F] == 100 + 10 - 7
    assert costs.tensor_parallel[1, Kind.F] == 7 + 4 // 2 + between  # one message sent for two actions
    assert costs.hop_of((0, 1)).latency == 40
    found = predicted_step(lone, PLAN, CalibratedNetwork(calibration()))
    assert found.pipeline_ns > (MICROBATCHES + 2) * (300 + 2 * (9 + 3 + between))
    for rank in found.ranks:
        assert rank.time.total_ns == found.step_time.p50_ns
        assert rank.time.compute_ns == MICROBATCHES * (300 + 2 * 3)
        assert rank.time.tensor_parallel_ns == 2 * MICROBATCHES * between
        assert rank.time.overhead_ns == 2 * MICROBATCHES * 9
        assert rank.time.idle_ns > 0


def test_the_interval_is_that_of_the_steps() -> None:
    lone = rehearsal(PLAN, [100] * 3, [1000] * 3, jitter_ns=30)
    found = predicted_step(lone, PLAN, FreeNetwork()).step_time
    assert busy_ns(lone.ranks[0]) == MICROBATCHES * 300 + 600
    busy, change = busy_ns(lone.ranks[0]), 30 * MICROBATCHES
    low, high = Fraction(busy - change, busy), Fraction(busy + change, busy)
    assert found.p10_ns == pytest.approx(found.p50_ns * low, abs=2)
    assert found.p90_ns == pytest.approx(found.p50_ns * high, abs=2)


def test_what_a_calibration_lacks_is_said_and_not_made_up() -> None:
    network = CalibratedNetwork(calibration())
    assert network.collective_ns("all_reduce", 6, 4) == 0
    assert network.message_ns(5000) == 400
    assert network.collective_ns("shared_all_reduce", 2, 4) == 20
    assert network.missing() == (
        "all_reduce of 6 ranks: not in calibration.json (6 ranks, but this machine has 2 cores); counted as 0",
        "messages of 5000 bytes: extrapolated from 500 bytes",
    )


def test_the_best_known_network_is_taken() -> None:
    declared = network_of(None, Hardware(min_link_bandwidth="2 GB/s"))
    assert isinstance(declared, DeclaredNetwork)
    assert declared.message_ns(2000) == 1000
    assert declared.collective_ns("all_reduce", 4, 2000) == 1500
    assert declared.collective_ns("all_gather", 4, 2000) == 750
    assert isinstance(network_of(calibration(), Hardware(min_link_bandwidth="2 GB/s")), CalibratedNetwork)
    assert isinstance(network_of(None, Hardware()), FreeNetwork)
