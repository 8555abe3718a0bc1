from __future__ import annotations

from pathlib import Path

import pytest

from hybrid_runtime.calibration import read_calibration
from hybrid_runtime.errors import PlanError, UsageError
from hybrid_runtime.planner.request import model_of
from hybrid_runtime.planner.work import Position
from tests.planner.planning import SHARES, UNIT_US, calibration, deployment


def test_measured_figures_come_back() -> None:
    file = deployment()
    model = model_of(file, calibration(file))
    mlp = model.line(2, 1).units[2]
    assert mlp.whole.forward == int(1000 * UNIT_US["mlp"] / 2 * SHARES["F"])
    assert mlp.whole.saved == model_of(file, None).line(2, 1).units[2].whole.saved
    assert mlp.whole.flops == mlp.cost.flops
    assert model.state.total == 16
    assert model.action_ns == 30_000
    assert (model.source, dict(model.fingerprint)) == ("calibration", {"host": "somewhere"})


def test_between_measured_widths_and_sizes() -> None:
    file = deployment()
    model = model_of(file, calibration(file, sizes=(1, 3)))
    line = model.line(2, 2)
    one, three = (model.line(2, size).units[1].whole.forward for size in (1, 3))
    assert line.units[1].whole.forward == (one + three) // 2
    mlp = model.line(2, 1).units[2]
    quarter, half, piece = (mlp.piece(0, parts) for parts in (64, 128, 96))
    assert piece.forward == (quarter.forward + half.forward) // 2
    assert model.notes == ()
    assert mlp.piece(0, 16).forward == quarter.forward // 4
    assert model.notes == ("not measured here: pieces of mlp narrower than 64 parts, taken as proportional to that",)


def test_a_later_piece_keeps_the_normed_input_only() -> None:
    file = deployment()
    line = model_of(file, calibration(file)).line(2, 1)
    mlp = line.units[2]
    scale = 4 * 64  # float32, of every token's norm
    assert mlp.piece(0, 128).saved - mlp.piece(128, 256).saved == line.carry_bytes + scale
    assert mlp.piece(0, 128).until_w == mlp.piece(128, 256).until_w  # W needs neither, but a gradient of the sum
    assert mlp.piece(0, 128).tp_forward == 0 < mlp.piece(128, 256).tp_forward
    assert mlp.piece(128, 256).tp_input_grad == 0 < mlp.piece(0, 128).tp_input_grad
    assert mlp.piece(0, 128).tp_backward == 0  # the sum of dX is over before the weight gradient is
    assert line.work(Position(2, 128), Position(3)).saved == mlp.piece(128, 256).saved


@pytest.mark.parametrize(
    ("tp_degree", "size", "words"),
    [
        (1, 1, "at tp_degree = 1, float32 was not measured, only at 2; calibrate it"),
        (2, 4, "was measured with microbatches of 1, 2, not of 4, and is not extrapolated; calibrate it"),
    ],
)
def test_nothing_is_extrapolated(tp_degree: int, size: int, words: str) -> None:
    file = deployment()
    with pytest.raises(PlanError, match=words):
        model_of(file, calibration(file)).line(tp_degree, size)


def test_other_lengths_are_refused() -> None:
    file = deployment(batch={"global_batch_size": 6, "microbatch_size": 1, "sequence_length": 32})
    with pytest.raises(PlanError, match="with sequences of 64 tokens, not of 32"):
        model_of(file, calibration(file)).line(2, 1)


def test_collectives_and_messages() -> None:
    file = deployment()
    model = model_of(file, calibration(file))
    assert model.collective_ns("all_reduce", 2, 1, same_host=True) == 41_024
    assert model.collective_ns("all_reduce", 2, 1 << 21, same_host=True) == pytest.approx(2_137_000, rel=0.01)
    with pytest.raises(PlanError, match="measured up to 4194304 bytes, not 4194305"):
        model.collective_ns("all_reduce", 2, (1 << 22) + 1, same_host=True)
    model.collective_ns("all_gather", 2, 1 << 20, same_host=True)
    assert model.notes == (
        "not measured here (one host): all_gather of 2 ranks inside a node, modelled from declared rates",
    )
    hop = model.hop(same_host=True)
    assert hop.latency == pytest.approx(60_000, rel=0.01)
    assert hop.transfer(1 << 20) == pytest.approx(524_000, rel=0.01)
    assert model.optimizer_ns(2_000_000) == 6_300_000


def test_intervals_have_the_spread_of_the_units() -> None:
    file = deployment()
    interval = model_of(file, calibration(file)).interval(1_000_000)
    assert interval.p10_ns == pytest.approx(950_000, rel=1e-3)
    assert interval.p90_ns == pytest.approx(1_100_000, rel=1e-3)


def test_a_calibration_of_another_version_is_said_to_be_one(tmp_path: Path) -> None:
    """Whatever its fields are called; another version may have others."""
    file = tmp_path / "calibration.json"
    file.write_text('{"schema_version": "1.0", "served_item": null}')
    with pytest.raises(UsageError, match=r"schema_version 1\.0 is not .*; calibrate again"):
        read_calibration(file)
