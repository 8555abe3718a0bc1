"""An embedding sharded over the pipeline ranks trains, starts and weighs as the whole one does."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
import torch

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.errors import PlanError, UsageError
from hybrid_runtime.job import run_step
from hybrid_runtime.job_orders import Order
from hybrid_runtime.job_parts import Parts, assemble, build, join_mesh
from hybrid_runtime.models.build import build_units, model_costs, model_units
from hybrid_runtime.models.unit import BuildContext, sharded_specs
from hybrid_runtime.pipeline.build import build_lookups
from hybrid_runtime.planner.make import make_plan
from hybrid_runtime.telemetry.ledger import ByteLedger
from hybrid_runtime.telemetry.recorder import NullRecorder
from tests.parity import VOCABULARY, History, assert_same, deployment, joined_rows, one_process, source, this_rank
from tests.ranks import run_ranks

CPU = torch.device("cpu")
OWNER = "embedding.tokens.weight"
TIED = "head.output.weight"
VOCABULARY_51 = 51  # two tensor ranks pad it
ONLY_EMBEDDING = ["embedding", "0.attn..1.attn", "1.mlp..head"]  # stage 0 hands the sum on as it is

PP3, TP2_PP2, PP2_DP2 = (1, 3, 1), (2, 2, 1), (1, 2, 2)  # tp, pp, dp
# mesh, tied, sequence_parallel, pipeline
THREE_RANKS: list[tuple[tuple[int, int, int], bool, bool, dict[str, Any]]] = [
    (PP3, False, False, {"schedule": "1f1b", "embedding_rows": [20, 0, 31], "cuts": ONLY_EMBEDDING}),
    (PP3, True, False, {"schedule": "1f1b", "embedding_rows": [0, 20, 31]}),
    (PP3, False, False, {"schedule": "zb_v", "embedding_rows": [0, 51, 0]}),
    (PP3, True, False, {"schedule": "zb_v", "embedding_rows": "equal"}),
    (PP3, True, False, {"schedule": "1f1b", "embedding_rows": [51, 0, 0]}),
]
FOUR_RANKS: list[tuple[tuple[int, int, int], bool, bool, dict[str, Any]]] = [
    (TP2_PP2, False, True, {"schedule": "zb_v", "embedding_rows": "equal"}),
    (TP2_PP2, True, True, {"schedule": "1f1b", "embedding_rows": [10, 42]}),
    (TP2_PP2, True, False, {"schedule": "auto", "embedding_rows": [0, 52]}),
    (PP2_DP2, False, False, {"schedule": "zb_v", "embedding_rows": "equal"}),
    (PP2_DP2, True, False, {"schedule": "1f1b", "embedding_rows": [20, 31]}),
]


def compare(
    mesh: tuple[int, int, int], tied: bool, sequence_parallel: bool, pipeline: dict[str, Any], oracle: History
) -> None:
    tp, pp, dp = mesh
    parallel = {"tp_degree": tp, "pp_degree": pp, "dp_degree": dp, "sequence_parallel": sequence_parallel}
    settings = deployment(model=model(tied), parallel=parallel, pipeline={"cuts": "even", **pipeline})
    plan, _, run = this_rank(settings)
    assert plan.embedding_pieces
    if tied:  # rows elsewhere hold the very gradients of the head's
        for name in (name for name in run.gradients if name.startswith("embedding[")):
            held = run.gradients[name].any(1)
            torch.testing.assert_close(run.gradients[name][held], run.gradients[TIED][held])
        run.gradients[OWNER] = run.gradients[TIED]
    assert_same(run._replace(gradients=joined_rows(run.gradients)), oracle, tied=(TIED,))


def model(tied: bool) -> dict[str, Any]:
    return {"tie_embeddings": tied, "vocab_size": VOCABULARY_51}


def oracles() -> dict[bool, History]:
    return {tied: one_process(deployment(model=model(tied))) for tied in (False, True)}


def three_ranks(rank: int) -> None:
    """All in one world, because starting processes costs seconds."""
    wanted = oracles()
    for mesh, tied, sequence_parallel, pipeline in THREE_RANKS:
        compare(mesh, tied, sequence_parallel, pipeline, wanted[tied])
    weighed_and_exact()


def four_ranks(rank: int) -> None:
    wanted = oracles()
    for mesh, tied, sequence_parallel, pipeline in FOUR_RANKS:
        compare(mesh, tied, sequence_parallel, pipeline, wanted[tied])


@pytest.mark.ranks
def test_three_ranks() -> None:
    """Equal to one process; bytes repeat; forwards are exact."""
    run_ranks(3, three_ranks, timeout_s=240)


@pytest.mark.ranks
def test_four_ranks() -> None:
    """Equal to one process: tensor parallel, with sequence parallelism, and with replicas."""
    run_ranks(4, four_ranks, timeout_s=240)


def parts_of(pipeline: dict[str, Any], **changes: Any) -> tuple[Parts, ByteLedger]:
    settings = deployment(pipeline=pipeline, parallel={"pp_degree": 3}, **changes)
    specs = model_units(settings.model, settings.shape)
    plan = make_plan(settings, model_costs(settings, specs))
    groups = join_mesh(plan, specs, device=CPU, backend="gloo", timeout=timedelta(seconds=60))
    built = build(settings, plan, specs, groups)
    return assemble(settings, plan, groups, built, source(), NullRecorder(CPU)), built.ledger


def weighed_and_exact() -> None:
    """Bytes repeat exactly, step by step and run by run; losses of forwards are those of the whole embedding."""
    found = []
    for _ in range(2):
        parts, ledger = parts_of({"schedule": "zb_v", "embedding_rows": [4, 6, 40]})
        for step in range(3):
            with ledger.watching():
                run_step(parts, Order(step, step))
            found.append(tuple(ledger.peaks))
    assert len({*found[1:3], *found[4:]}) == 1, found
    losses = []
    for pipeline in ({"embedding_rows": [10, 0, 40]}, {}):
        parts, _ = parts_of(pipeline, workload={"kind": "forward", "steps": 2})
        losses.append([run_step(parts, Order(step, step))[0] for step in range(2)])
    assert losses[0] == losses[1]


def own_model(tied: bool, **tables: Any) -> Deployment:
    options = {"vocab_size": VOCABULARY, "width": 8, "tied": tied}
    return deployment(model={"units": "tests.own_model:units", "options": options}, **tables)


def plain_modules(rows: Sequence[int], tied: bool) -> None:
    """A user's plain modules, tied or not: rows are drawn as the whole table's, and copies are summed with the head."""
    settings = own_model(tied, parallel={"pp_degree": 2}, pipeline={"embedding_rows": list(rows)})
    _, _, run = this_rank(settings)
    owner, copy = "embedding.table.weight", "head.project.weight"
    if tied:
        run.gradients[owner] = run.gradients[copy]
    run = run._replace(gradients=joined_rows(run.gradients, owner))
    assert_same(run, one_process(settings), tied=(copy,), owner=owner)


def no_rows_and_no_zeros() -> None:
    """Only the rank that lacks something says so; nobody waits in what comes before."""
    settings = own_model(False, parallel={"pp_degree": 2}, pipeline={"embedding_rows": [0, 50]})
    specs = model_units(settings.model, settings.shape)
    plan = make_plan(settings, model_costs(settings, specs))
    groups = join_mesh(plan, specs, device=CPU, backend="gloo", timeout=timedelta(seconds=60))
    built = build(settings, plan, specs, groups)
    if groups.place.pp == 0:
        with pytest.raises(UsageError, match=r"has no method zeros\(tokens\); add it, or give that rank rows"):
            build_lookups(plan, built.units, groups)


def two_ranks(rank: int) -> None:
    plain_modules((20, 30), False)
    plain_modules((50, 0), True)
    no_rows_and_no_zeros()


@pytest.mark.ranks
def test_plain_modules() -> None:
    run_ranks(2, two_ranks)


def test_a_second_copy_beside_a_tied_weight_is_refused() -> None:
    """Rows of plain modules on the head's own rank cannot share its weight unless they say how."""
    specs = model_units(own_model(True).model, None)
    with pytest.raises(UsageError, match=r"'embedding\[20:50\]' lies on the rank of the tied weight"):
        build_units(sharded_specs(specs, ("embedding[0:20]", "embedding[20:50]"), 1)[1:], BuildContext())


def test_a_unit_without_rows_is_refused() -> None:
    specs = model_units(own_model(False).model, None)
    with pytest.raises(PlanError, match="cannot be sharded by rows; leave pipeline"):
        sharded_specs(specs[1:], ("0.block[0:1]",), 0)
