"""Beside time claims that shared cores leave undecided stands what a replay says, and it never says PASS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hybrid_runtime.mesh import Mesh
from hybrid_runtime.verdict import Claim, Outcome, Verdict
from hybrid_runtime.verifier.judge import judge
from tests.verifier.synthetic import MS, Synthetic, deployment, prediction, steady, write_run

TARGETS = {"utilisation_percent": 30, "latency_reduction_percent": 40, "throughput_gain_percent": 60}


def verdict(folder: Path, candidate: Synthetic, baseline: Synthetic | None = None, **targets: int) -> Verdict:
    deployed = deployment(candidate.shape, targets=TARGETS | targets, baseline={"kind": "pp_only"})
    return judge(write_run(folder, candidate, deployed, baseline=baseline))


def claims(found: Verdict) -> dict[str, Claim]:
    return {claim.id: claim for claim in found.claims}


def shared(compute_ns: list[int], **more: Any) -> Synthetic:
    """Ranks that share cores: the wall shows three times what their threads worked."""
    return steady([3 * time for time in compute_ns], 20, cpu_ns=[compute_ns] * 20, owned=False, **more)


def test_replayed_with_its_own_costs_against_the_baseline_replayed_alike(tmp_path: Path) -> None:
    """One microbatch passes three stages and comes back: nothing overlaps, so a step is the sum of all compute."""
    found = verdict(tmp_path, shared([9 * MS, 10 * MS, 11 * MS]), shared([16 * MS, 16 * MS, 16 * MS]))
    rows = claims(found)
    for row in rows.values():
        assert (row.outcome, row.reason) == (Outcome.INCONCLUSIVE, "oversubscribed")
    shown = {name: (row.modelled.point, row.modelled.would) for name, row in rows.items() if row.modelled}
    assert shown == {
        "utilisation": ("30", "WOULD PASS"),
        "latency_reduction": ("37.5", "WOULD FAIL"),
        "throughput_gain": ("60", "WOULD PASS"),
    }
    assert found.modelled is not None
    own, baseline, *others = found.modelled.steps
    assert (own.kind, own.step_ns, baseline.kind, baseline.step_ns) == (
        "candidate",
        30 * MS,
        "declared baseline",
        48 * MS,
    )
    assert [rank.total_ns for rank in found.modelled.ranks] == [own.step_ns] * 3
    assert {one.kind for one in others} == {"equal layers, 1f1b, m = p", "equal layers, 1f1b, same m"}
    assert found.exit_code == 3


@pytest.mark.parametrize(("limit", "would"), [(30, "WOULD PASS"), (31, "WOULD FAIL")])
def test_the_limit_is_compared_exactly(tmp_path: Path, limit: int, would: str) -> None:
    row = claims(verdict(tmp_path, shared([9 * MS, 10 * MS, 11 * MS]), utilisation_percent=limit))["utilisation"]
    assert row.modelled is not None
    assert (row.modelled.would, row.modelled.exact) == (would, "30")
    assert row.outcome is Outcome.INCONCLUSIVE


def test_without_a_baseline_there_is_nothing_to_be_faster_than(tmp_path: Path) -> None:
    rows = claims(verdict(tmp_path, shared([9 * MS, 10 * MS, 11 * MS])))
    assert [rows[name].modelled for name in ("latency_reduction", "throughput_gain")] == [None, None]


def test_where_every_rank_has_its_core_the_clock_decides_and_nothing_is_modelled(tmp_path: Path) -> None:
    found = verdict(tmp_path, steady([9 * MS, 10 * MS, 11 * MS], 20), steady([16 * MS] * 3, 20))
    assert (found.modelled, [claim.modelled for claim in found.claims]) == (None, [None] * 3)


def test_collectives_are_the_plans_where_it_predicted_them(tmp_path: Path) -> None:
    """The wall cannot tell how long tensor ranks wait, so the plan's figure is replayed, and shown as a term."""
    mesh, compute = Mesh(tp_degree=2, pp_degree=2), [10 * MS, 10 * MS]
    predicted = prediction(40 * MS, compute, [1000, 1000])
    ranks = tuple(
        rank.model_copy(update={"time": rank.time.model_copy(update={"tensor_parallel_ns": 5 * MS})})
        for rank in predicted.ranks
    )
    side = shared([10 * MS] * 4, mesh=mesh, predicted=predicted.model_copy(update={"ranks": ranks}))
    found = verdict(tmp_path, side).modelled
    assert found is not None
    assert "collectives as the plan predicted them" in found.method
    assert [(rank.compute_ns, rank.tensor_parallel_ns, rank.idle_ns) for rank in found.ranks] == [
        (10 * MS, 5 * MS, 15 * MS)
    ] * 2
    alone = next(step for step in found.steps if step.kind == "this plan at tp 1")
    assert (alone.step_ns, alone.utilisation, alone.mesh) == (40 * MS, "50", "tp 1 x pp 2 x dp 1")


@pytest.mark.parametrize(("limit", "would"), [(50, "UNDECIDED"), (51, "WOULD FAIL")])
def test_a_best_case_can_only_show_what_would_fail(tmp_path: Path, limit: int, would: str) -> None:
    """Nobody predicted the collectives, and shared cores hide them: a target that is met so says nothing."""
    side = shared([10 * MS] * 4, mesh=Mesh(tp_degree=2, pp_degree=2))
    row = claims(verdict(tmp_path, side, utilisation_percent=limit))["utilisation"]
    assert row.modelled is not None
    assert (row.modelled.would, row.outcome) == (would, Outcome.INCONCLUSIVE)
