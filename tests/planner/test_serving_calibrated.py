"""Measured costs of serving: between sizes, behind sequences, of pieces, and what is said of the rest."""

from __future__ import annotations

import pytest

from hybrid_runtime.calibration import Calibration, ServedHop, ServedItemTimes, ServedUnitTimes, Spread
from hybrid_runtime.errors import PlanError
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.planner.calibrated import CalibratedCosts
from hybrid_runtime.planner.request import model_of
from hybrid_runtime.planner.serving_asked import AskedItem, asked_degrees, asked_items
from hybrid_runtime.planner.serving_calibrated import CalibratedServing
from hybrid_runtime.planner.serving_costs import Added
from hybrid_runtime.planner.serving_items import ItemSize, decode_size, prefill_size
from hybrid_runtime.planner.serving_plan import plan_serving, serving_plan
from hybrid_runtime.planner.serving_stages import ServedStages
from hybrid_runtime.serving.requests import GREEDY, Item, Row
from hybrid_runtime.shapes import PRESETS
from tests.serving.deployments import serving

PARTS = {"embedding": 256, "attn": 6, "mlp": 256, "head": 1}
OF = serving(search={"devices": 2})
ENGINE = (
    ServedItemTimes(ranks="one", rows=1, stage_ns=20, before_ns=100),
    ServedItemTimes(ranks="one", rows=4, stage_ns=50, before_ns=160),
    ServedItemTimes(
        ranks="pipeline",
        rows=4,
        stage_ns=60,
        before_ns=300,
        after_ns=200,
        next_ns=170,
        fetch_ns=180,
        back_ns=150,
        hops=(ServedHop(num_bytes=1000, time_ns=200), ServedHop(num_bytes=3000, time_ns=260)),
    ),
    ServedItemTimes(
        ranks="tensor",
        rows=4,
        stage_ns=40,
        before_ns=250,
        late_ns=190,
        prefill_waits_ppm=50_000,
        decode_waits_ppm=100_000,
    ),
)


def took_ns(unit: str, item: AskedItem, part: float = 1) -> int:
    """What this machine takes: a fixed time, one for each token, one for each pair or cached key."""
    size: ItemSize = (
        decode_size(item.rows, item.start + 1)
        if item.kind == "decode"
        else prefill_size(item.rows, item.start, item.length, item.rows)
    )
    by_pairs = 0 if unit != "attn" else 3 * size.keys if item.kind == "decode" else 2 * size.pairs
    return int(1000 + part * (50 * size.tokens + by_pairs))


def calibration() -> Calibration:
    rows = []
    for tp in asked_degrees(OF):
        for item in asked_items(OF):
            for unit, parts in PARTS.items():
                for here in (
                    (parts, parts // 2)
                    if unit in ("attn", "mlp") and item == AskedItem("decode", 1, 7, 1)
                    else (parts,)
                ):
                    ns = took_ns(unit, item, here / parts / tp)
                    time = Spread(p10_ns=ns * 9 // 10, p50_ns=ns, p90_ns=ns * 12 // 10, samples=9)
                    rows.append(
                        ServedUnitTimes(
                            unit=unit,
                            tp_degree=tp,
                            dtype="float32",
                            parts=here,
                            kind=item.kind,
                            rows=item.rows,
                            start=item.start,
                            length=item.length,
                            time=time,
                            host=time,
                        )
                    )
    return Calibration(
        taken_utc="2026-01-01T00:00:00",
        fingerprint={"host": "somewhere"},
        model="",
        units=(),
        action_ns=70,
        step_ns=0,
        optimizer_fixed_ns=0,
        optimizer_per_million_ns=0,
        optimizer_bytes_per_parameter=8,
        gradient_bytes_per_parameter=4,
        served=tuple(rows),
        served_items=ENGINE,
    )


def costs() -> CalibratedServing:
    measured = calibration()
    network = model_of(OF, measured)
    assert isinstance(network, CalibratedCosts)
    return CalibratedServing(measured, network, "float32")


def total(unit: str, size: ItemSize, tp: int = 1) -> int:
    return sum(costs().unit(unit, tp, size))


def test_what_is_asked_for() -> None:
    items = asked_items(OF)
    assert [item for item in items if item.kind == "decode"] == [
        AskedItem("decode", rows, start, 1) for rows in (1, 2, 4) for start in (7, 62)
    ]
    assert AskedItem("prefill", 1, 0, 8) in items  # a whole prompt
    assert AskedItem("prefill", 4, 0, 8) in items  # all of a microbatch's
    assert asked_degrees(OF) == (1, 2)
    assert asked_degrees(serving(search={"devices": 2, "vary": []}, parallel={"pp_degree": 2})) == (1,)


@pytest.mark.parametrize(
    "item",
    [
        AskedItem("decode", 3, 30, 1),  # between rows, and between short and full
        AskedItem("decode", 1, 20, 1),
        AskedItem("prefill", 1, 0, 6),
        AskedItem("prefill", 1, 30, 4),
        AskedItem("prefill", 2, 0, 8),
    ],
)
def test_between_measured_sizes(item: AskedItem) -> None:
    """Exact where time is a straight line; in tokens it is not quite, with pairs growing as their square."""
    size = (
        decode_size(item.rows, item.start + 1)
        if item.kind == "decode"
        else prefill_size(item.rows, item.start, item.length, 1)
    )
    for unit in ("attn", "mlp"):
        assert total(unit, size) == pytest.approx(took_ns(unit, item), rel=0.02)


def test_the_head_by_wanted_rows() -> None:
    assert total("head", prefill_size(2, 0, 8, 0)) == 0
    assert total("head", prefill_size(2, 0, 8, 2)) == total("head", decode_size(2, 40)) == 1000 + 2 * 50


def test_what_does_not_halve_with_a_unit() -> None:
    assert costs().unit("mlp", 1, decode_size(2, 10)).fixed_ns == pytest.approx(1000, abs=3)
    assert costs().unit("embedding", 1, decode_size(2, 10)).fixed_ns == 0


def test_larger_ones_are_proportional_and_said_to_be() -> None:
    found = costs()
    largest = found.unit("mlp", 1, prefill_size(4, 0, 8, 4))
    assert sum(found.unit("mlp", 1, prefill_size(8, 0, 8, 8))) == 2 * sum(largest)
    assert "not measured here: mlp with more than 32 tokens in an item, taken as proportional" in found.notes


def test_what_was_not_measured_is_refused() -> None:
    with pytest.raises(PlanError, match=r"attn at tp_degree = 4 was not measured with requests, only at 1, 2"):
        costs().unit("attn", 4, decode_size(1, 5))
    bare = calibration().model_copy(update={"served": ()})
    with pytest.raises(PlanError, match="was not taken with requests"):
        plan_serving(OF, bare)


def test_what_the_engine_adds() -> None:
    """Between rows it is on a line; stages of several ranks have what either way of having two ranks adds."""
    found = costs()
    assert found.added(Mesh(), 2) == Added(stage_ns=30, before_ns=120)
    assert found.added(Mesh(pp_degree=2), 2) == Added(60, 300, 200, 170, 180)
    assert found.added(Mesh(tp_degree=2), 1) == Added(stage_ns=40, before_ns=250, late_ns=190)
    assert found.added(Mesh(tp_degree=2, pp_degree=2), 1) == Added(60, 300, 200, 170, 180, late_ns=190)
    bare = CalibratedServing(calibration().model_copy(update={"served_items": ()}), found.network, "float32")
    assert bare.added(Mesh(), 1) == Added()
    assert "not measured here: what the engine adds to an item, counted as 0" in bare.notes


def test_messages_and_waits() -> None:
    found = costs()
    assert found.message_ns(2000, same_host=True) == 230
    assert found.message_ns(5000, same_host=True) == 320
    assert found.back_ns(4, same_host=True) == 150
    assert found.waits_ns(2, decode_size(4, 10), 1000) == 100
    assert found.waits_ns(2, prefill_size(1, 0, 8, 1), 1000) == 50


def test_logits_to_draw_from_are_gathered_beside_measured_waits() -> None:
    """Waits are measured greedy."""
    item = Item("decode", 0, tuple(Row(slot, 9, 1, slot, 1) for slot in range(4)), (1,) * 4, (GREEDY,) * 4)
    names = PRESETS["tiny"].unit_names()
    greedy, drawn = (
        ServedStages(
            PRESETS["tiny"], "float32", Mesh(tp_degree=2, pp_degree=2), (names[:7], names[7:]), (False,), costs(), how
        )
        .times_of(item)
        .stages
        for how in (True, False)
    )
    gathered = costs().all_gather(2, 4 * 8 * PRESETS["tiny"].vocab_size)
    assert sum(gathered) > 0
    more = [one.tensor_parallel_ns - other.tensor_parallel_ns for one, other in zip(drawn, greedy, strict=True)]
    assert more == [0, sum(gathered)]  # only the head's stage


def test_intervals() -> None:
    times = costs().interval(1000)
    assert (times.p10_ns, times.p50_ns, times.p90_ns) == pytest.approx((900, 1000, 1200), abs=2)


def test_a_pipeline_waits_for_the_slower_core() -> None:
    """Items take half or twice the usual on either stage: as much work on both, but a longer round."""
    even, uneven = (
        plan_serving(
            serving(pp=2, search={"vary": []}, load={"output_tokens": 40}, hardware={"devices": 2}),
            calibration().model_copy(update={"served_paces": paces}),
        ).best[0]
        for paces in ((), (500_000, 500_000, 2_000_000))
    )
    busy, paced = (sum(rank.decode_ns for rank in one.served.ranks) for one in (even, uneven))
    assert paced == pytest.approx(busy, rel=0.02)
    assert uneven.round_ns > 1.15 * even.round_ns
    for rank in serving_plan(uneven, [uneven]).predicted.ranks:  # type: ignore[union-attr]
        assert rank.time.idle_ns > 0


def test_one_stage_is_never_idle_whatever_its_paces() -> None:
    measured = calibration().model_copy(update={"served_paces": (700_001, 900_003, 1_700_007)})
    for tp in (1, 2):
        file = serving(tp=tp, search={"vary": []}, hardware={"devices": tp})
        predicted = plan_serving(file, measured).plan.predicted
        assert predicted is not None
        assert all(0 <= rank.time.idle_ns <= 8 for rank in predicted.ranks)  # what means leave


def test_a_plan_from_measured_costs() -> None:
    plan = plan_serving(OF, calibration()).plan
    predicted = plan.predicted
    assert predicted is not None
    assert predicted.source == "calibration"
    assert predicted.fingerprint == {"host": "somewhere"}
    assert predicted.ranks[0].time.overhead_ns > 0
    assert PRESETS["tiny"].num_layers == 6
