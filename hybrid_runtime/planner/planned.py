"""A deployment planned: the search's answer as plans, with everything that is said about them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from hybrid_runtime.calibration import Calibration
from hybrid_runtime.deployment import Deployment
from hybrid_runtime.plan import Plan
from hybrid_runtime.planner.choose_plan import choose
from hybrid_runtime.planner.compared import baselines
from hybrid_runtime.planner.doubts import doubts
from hybrid_runtime.planner.evaluate import Evaluated
from hybrid_runtime.planner.layout import Setting
from hybrid_runtime.planner.losers import Loser, why_not
from hybrid_runtime.planner.packed import packing
from hybrid_runtime.planner.request import model_of, setting_of, space_of
from hybrid_runtime.planner.residuals import residuals
from hybrid_runtime.planner.step_model import StepModel
from hybrid_runtime.planner.write_plan import write_plan
from hybrid_runtime.predicted import Alternative

SHOWN_ALTERNATIVES = 3


@dataclass(frozen=True)
class Planned:
    """What was chosen and what was not.

    Attributes:
        best: the chosen layout and the next best.
        plan: of the first of them.
        sentences: what speaks against it, what balance is left undone, where figures come from.
        why_not: one line per group of losers.
    """

    best: tuple[Evaluated, ...]
    setting: Setting
    model: StepModel
    plan: Plan
    sentences: tuple[str, ...]
    why_not: tuple[str, ...]

    def plan_of(self, found: Evaluated, alternatives: Sequence[Alternative] = ()) -> Plan:
        """The plan of one of the best."""
        return write_plan(found, self.setting, self.model, baselines(found, self.setting, self.model), alternatives)


def plan_deployment(
    deployment: Deployment,
    calibration: Calibration | None,
    *,
    keep: int = 1 + SHOWN_ALTERNATIVES,
    progress: Callable[[str, float], None] | None = None,
) -> Planned:
    """Plans a deployment. Equal arguments give equal plans.

    Args:
        calibration: measured costs of this machine; None for formulas and declared rates.
        keep: how many of the best to return.

    Raises:
        PlanError: nothing can be planned for; or no layout is possible, or none fits: says what would make one fit.
    """
    setting, model = setting_of(deployment), model_of(deployment, calibration)
    found = choose(space_of(deployment), setting, model, keep=keep, annealed=deployment.search.top, progress=progress)
    chosen = found.best[0]
    others = [
        Alternative(
            description=str(one.layout),
            step_time_ns=one.step_ns,
            peak_bytes=one.peak_bytes,
            why_not=why_not(one, chosen, setting),
        )
        for one in found.best[1 : 1 + SHOWN_ALTERNATIVES]
    ]
    plan = write_plan(chosen, setting, model, baselines(chosen, setting, model), others)
    assert plan.predicted is not None, "a plan that was searched has a prediction"
    told = (*_sharing(deployment, chosen), *packing(deployment, chosen, model))
    sentences = (*doubts(plan.predicted), *residuals(chosen), *told, *model.notes)
    return Planned(tuple(found.best), setting, model, plan, sentences, tuple(grouped(found.losers)))


def _sharing(deployment: Deployment, chosen: Evaluated) -> Iterable[str]:
    """What a file that names the optimizer's sharding must be told where there is nothing to share."""
    named = "vary" in deployment.search.model_fields_set and "shard_optimizer" in deployment.search.vary
    if chosen.layout.mesh.dp_degree == 1 and (named or deployment.parallel.shard_optimizer):
        yield "shard_optimizer changes nothing: one replica has nobody to share the optimizer's state with"


def grouped(losers: Iterable[Loser]) -> list[str]:
    """One line per kind of reason: how many layouts, the nearest to being chosen first, and its own reason."""
    groups: dict[str, list[Loser]] = {}
    for loser in losers:
        groups.setdefault(_kind(loser), []).append(loser)
    lines = []
    for group in groups.values():
        first = min(group, key=lambda loser: (loser.lacking_bytes, loser.step_ns or 0, loser.what))
        more = f" (and {len(group) - 1} more like it)" if group[1:] else ""
        lines.append(f"{first.what}{more}: {first.why}")
    return lines


def _kind(loser: Loser) -> str:
    """Losers of one mesh and reason are told once."""
    if loser.layout is None:
        return loser.what.split()[0]
    words = loser.why.split()
    reason = " ".join(word for word in words[:4] if not any(letter.isdigit() for letter in word))
    return f"{loser.layout.mesh} {reason}"
