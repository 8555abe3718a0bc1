"""Facts of a plan that groups and optimizer need."""

from __future__ import annotations

import pytest

from hybrid_runtime.errors import PlanError
from hybrid_runtime.models.build import model_costs, model_units
from hybrid_runtime.pipeline.build import find_tie
from hybrid_runtime.plan import StagePlan
from hybrid_runtime.planner.make import make_plan
from tests.parity import deployment


def test_the_tie_is_found_across_pieces_of_other_units() -> None:
    cuts = ["embedding..1.mlp[:20]", "1.mlp[20:]..head"]
    model = {"tie_embeddings": True}
    settings = deployment(model=model, parallel={"pp_degree": 2}, pipeline={"cuts": cuts})
    specs = model_units(settings.model, settings.shape)
    plan = make_plan(settings, model_costs(settings, specs))
    tie = find_tie(plan, specs)
    assert tie is not None
    assert (tie.unit, tie.pp_rank) == ("head", 1)
    assert [(copy.unit, copy.pp_rank) for copy in tie.copies] == [("embedding", 0)]
    cut_head = StagePlan(index=1, pp_rank=1, units=("1.mlp[20:48]", "head[0:1]"))
    with pytest.raises(PlanError, match="unit 'head' has a tied weight and cannot be cut"):
        find_tie(plan.model_copy(update={"stages": (plan.stages[0], cut_head)}), specs)
