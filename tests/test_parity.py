"""Every mesh trains exactly as one process does: five steps, losses, gradient norms and every gathered gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from hybrid_runtime.schedule.choose import AUTO
from hybrid_runtime.schedule.registry import SCHEDULES
from tests.parity import BATCH, VOCABULARY, assert_same, deployment, one_process, this_rank
from tests.ranks import run_ranks

# tp, pp, dp
MESHES = [(1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 3, 1), (4, 1, 1), (1, 4, 1), (2, 2, 2)]
# Those two run in every mesh above.
KINDS = ("none", "selective", "full")
NEW = (*(name for name in SCHEDULES if name not in ("gpipe", "1f1b")), AUTO)


def compare(rank: int, tp: int, pp: int, dp: int) -> None:
    """All variants of one mesh in one world, because starting processes costs seconds."""
    for tied in (False, True):
        model: dict[str, Any] = {"tie_embeddings": tied, "qkv_bias": tied}
        oracle = one_process(deployment(model=model))
        for sequence_parallel in (False, True) if tp > 1 else (False,):
            parallel = {"tp_degree": tp, "pp_degree": pp, "dp_degree": dp, "sequence_parallel": sequence_parallel}
            pipeline = {"schedule": "gpipe" if sequence_parallel else "1f1b", "cuts": "balanced" if tied else "even"}
            batch = BATCH | {"microbatch_size": 2 if pp == 1 and dp == 1 else 1}  # fewer, where no pipeline needs them
            settings = deployment(model=dict(model), parallel=parallel, pipeline=pipeline, batch=batch)
            _, _, run = this_rank(settings)
            assert_same(run, oracle, tied=("head.output.weight",))


def compare_schedules(rank: int, tp: int, pp: int, names: Sequence[str]) -> None:
    """All schedules of one mesh in one world. What is computed again takes turns; with tensor parallelism, its variants
    and tied embeddings do, too."""
    oracles = {
        tied: one_process(deployment(model={"tie_embeddings": tied, "qkv_bias": tied})) for tied in (False, True)
    }
    for number, name in enumerate(names):
        for tied in (False, True) if tp == 1 else (number % 4 >= 2,):
            settings = deployment(
                model={"tie_embeddings": tied, "qkv_bias": tied},
                parallel={"tp_degree": tp, "pp_degree": pp, "sequence_parallel": tp > 1 and number % 2 == 0},
                pipeline={"schedule": name, "cuts": "even", "recompute": KINDS[(number + pp) % 3]},
            )
            plan, _, run = this_rank(settings)
            assert plan.schedule == name
            assert_same(run, oracles[tied], tied=("head.output.weight",))


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("tp", "pp", "names"),
    [(1, 2, NEW), (1, 3, NEW), (1, 4, NEW), (2, 2, NEW), (2, 3, ("zb_h1", "zb_v", AUTO))],
    ids=["pp2", "pp3", "pp4", "tp2pp2", "tp2pp3"],
)
def test_schedule_equals_one_process(tp: int, pp: int, names: Sequence[str]) -> None:
    run_ranks(tp * pp, compare_schedules, tp, pp, names, timeout_s=400)


@pytest.mark.ranks
@pytest.mark.parametrize(("tp", "pp", "dp"), MESHES)
def test_mesh_equals_one_process(tp: int, pp: int, dp: int) -> None:
    run_ranks(tp * pp * dp, compare, tp, pp, dp, timeout_s=240)


def compiled_units(rank: int) -> None:
    """Compiled units, with what they forget and what they leave for W: the oracle's are not compiled."""
    model: dict[str, Any] = {"qk_norm": True}
    settings = deployment(
        model=model | {"compile": True},
        parallel={"pp_degree": 2},
        pipeline={"schedule": "zb_h1", "cuts": "even", "recompute": "selective"},
    )
    plan, _, run = this_rank(settings)
    assert plan.compile
    assert_same(run, one_process(deployment(model=model)))


@pytest.mark.ranks
def test_compiled_units_equal_one_process() -> None:
    run_ranks(2, compiled_units, timeout_s=240)


def plain_tied(rank: int) -> None:
    """A user's plain modules with a tied weight on two stages: the copies start equal and stay equal."""
    model = {"units": "tests.own_model:units", "options": {"vocab_size": VOCABULARY, "width": 8, "tied": True}}
    settings = deployment(model=model, parallel={"pp_degree": 2}, pipeline={"recompute": ["full", "none"]})
    _, _, run = this_rank(settings)
    assert_same(run, one_process(settings), tied=("head.project.weight",), owner="embedding.table.weight")


@pytest.mark.ranks
def test_tied_weights_of_plain_modules() -> None:
    run_ranks(2, plain_tied)
