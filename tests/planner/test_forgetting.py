"""What forgetting costs in time: as calibrated where it was measured, else by FLOPs and said so."""

from __future__ import annotations

from fractions import Fraction

import pytest

from hybrid_runtime.calibration import Calibration, UnitTimes
from hybrid_runtime.planner.calibrated import CalibratedCosts
from hybrid_runtime.planner.request import model_of
from hybrid_runtime.planner.work import Unit
from tests.planner.planning import calibration, deployment, spread


def forgetting(found: Calibration, unit: str, *, longer_us: float = 0.0) -> UnitTimes:
    """The whole unit as it forgets: its own times and so much more, or less in F and W."""
    kept = max((row for row in found.units if (row.unit, row.microbatch_size) == (unit, 1)), key=lambda row: row.parts)
    return kept.model_copy(
        update={
            "recompute": "full",
            "forward": spread(kept.forward.p50_ns / 1e3 - 10),
            "backward": spread(kept.backward.p50_ns / 1e3 + longer_us),
            "input_grad": spread(kept.input_grad.p50_ns / 1e3 + longer_us + 20),
            "weight_grad": spread(kept.weight_grad.p50_ns / 1e3 - 5),
        }
    )


def planned(found: Calibration, size: int) -> tuple[CalibratedCosts, Unit]:
    """The costs, and the first MLP of their line."""
    model = model_of(deployment(), found)
    assert isinstance(model, CalibratedCosts)
    return model, model.line(2, size).units[2]


@pytest.mark.parametrize("size", [1, 2])
def test_what_was_measured_is_added_at_every_size_and_width(size: int) -> None:
    found = calibration(deployment())
    found = found.model_copy(update={"forgetting": (forgetting(found, "mlp", longer_us=150.0),)})
    model, keeps = planned(found, size)
    forgets = keeps.recomputing("full")
    (one,) = [row for row in found.units if (row.unit, row.microbatch_size, row.parts) == ("mlp", 1, keeps.cost.parts)]
    (here,) = [
        row for row in found.units if (row.unit, row.microbatch_size, row.parts) == ("mlp", size, keeps.cost.parts)
    ]
    scale = Fraction(here.forward.p50_ns, one.forward.p50_ns)  # collectives are in F, too, and are not done again
    expected = {"forward": -10, "backward": 150, "input_grad": 170, "weight_grad": -5}
    for name, us in expected.items():
        longer = getattr(forgets.whole, name) - getattr(keeps.whole, name)
        assert longer == pytest.approx(1000 * us * scale, abs=20), name
    half = keeps.cost.parts // 2
    piece, kept = forgets.piece(0, half), keeps.piece(0, half)
    share = Fraction(kept.forward, keeps.whole.forward)
    assert piece.backward - kept.backward == pytest.approx(150_000 * scale * share, abs=20)
    assert model.notes == ()


def test_what_was_not_measured_is_taken_from_flops_and_said() -> None:
    found = calibration(deployment())
    found = found.model_copy(update={"forgetting": (forgetting(found, "attn"),)})
    model, keeps = planned(found, 1)
    assert model.notes == ()
    again = keeps.recomputing("full").whole
    assert again.backward - keeps.whole.backward == int(Fraction(2, 3) * keeps.whole.forward)
    assert again.forward == keeps.whole.forward
    (note,) = model.notes
    assert note.endswith("recomputation of mlp, taken as that part of F which has its FLOPs")
