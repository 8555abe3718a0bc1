"""A layout that fits, improved by what its choices left over: a stage that need not forget so much after all, replicas
that had better share the optimizer's state, or not.

One change at a time is cut, replayed and kept if it fits and is faster, until none is.
"""

from __future__ import annotations

from dataclasses import replace

from hybrid_runtime.errors import PlanError
from hybrid_runtime.planner.bounds import LONG
from hybrid_runtime.planner.evaluate import Evaluated, as_run, broken_promises, evaluate
from hybrid_runtime.planner.layout import Layout, Setting, may_share
from hybrid_runtime.planner.losers import Loser, too_large, why_not
from hybrid_runtime.planner.staged import stage
from hybrid_runtime.planner.step_model import StepModel
from hybrid_runtime.planner.who_forgets import ByOrder, forgetting_enough, forgetting_otherwise, held_by_rank, may_fit

MOST_TRIED = 100  # changes of one layout that are cut anew
MOST_ACTIONS = 150_000  # of all steps that are replayed for one layout


def settled(
    found: Evaluated, setting: Setting, model: StepModel, *, beside_another: bool = False
) -> tuple[Evaluated, list[Loser]]:
    """The layout as its ranks run it, or what became of it, and what sharing the optimizer's state otherwise would have
    come to. It may turn out not to fit: a search counts messages roughly.

    Args:
        beside_another: another, faster one is settled already: small steps that take long are not worth it.
    """
    shared, losers = _shared_otherwise(found, setting, model)
    run = as_run(shared, setting, model)
    if setting.memory_bytes is None or (beside_another and _fits(run, setting) and len(run.step.rows.actions) > LONG):
        return run, losers
    beyond = max(0, run.peak_bytes - shared.peak_bytes)
    room = replace(setting, memory_bytes=setting.memory_bytes - beyond)
    begun = shared if _fits(shared, room) else _forgetting_more(shared, room, model)
    if begun is None:
        return run, losers
    best = _improved(begun, room, model)
    if best is shared:
        return run, losers
    # steps were compared by a rough replay: what counts is how their ranks run them
    fitting = [one for one in (run, as_run(best, setting, model)) if _fits(one, setting)]
    if not fitting:
        fitting = [one for one in (as_run(begun, setting, model),) if _fits(one, setting)]
    return min(fitting, key=lambda one: _value(one, setting), default=run), losers


def _improved(best: Evaluated, setting: Setting, model: StepModel) -> Evaluated:
    """After all small steps that make it faster."""
    tried = {best.layout}
    most = min(MOST_TRIED, MOST_ACTIONS // len(best.step.rows.actions))
    # cuts that know the memory may be better where a stage forgets more; all others lose by it
    changed = bool(setting.recomputes) and (set(best.layout.recomputes) != {"none"} or best.layout.cuts == "whole")
    while changed:
        changed = False
        for layout in forgetting_otherwise(best.layout, setting):
            if layout in tried or len(tried) > most:
                continue
            tried.add(layout)
            one = _tried(layout, best, setting, model)
            if one is not None and _value(one, setting) < _value(best, setting):
                best, changed = one, True
                break
    return best


def _forgetting_more(found: Evaluated, setting: Setting, model: StepModel) -> Evaluated | None:
    """The layout forgetting so much more that it fits, if one step of choosing and cutting is enough."""
    more = forgetting_enough(found.staged, setting, model, ByOrder(found.step.rows, setting, model))
    return None if more is None else _tried(more, found, setting, model)


def _value(found: Evaluated, setting: Setting) -> tuple[int, int]:
    return len(broken_promises(found, setting)), found.step_ns


def _tried(layout: Layout, before: Evaluated, setting: Setting, model: StepModel) -> Evaluated | None:
    """The layout with the order of actions of the one before; None where it does not fit."""
    order = before.step.rows
    try:
        staged = stage(layout, setting, model)
        if not may_fit(held_by_rank(staged, ByOrder(order, setting, model)), setting):
            return None
        found = evaluate(layout, setting, model, order, staged)
    except PlanError:
        return None
    return found if _fits(found, setting) else None


def _fits(found: Evaluated, setting: Setting) -> bool:
    return setting.memory_bytes is None or found.peak_bytes <= setting.memory_bytes


def _shared_otherwise(found: Evaluated, setting: Setting, model: StepModel) -> tuple[Evaluated, list[Loser]]:
    """The better of two: replicas share the optimizer's state, or each has all of it."""
    layout = found.layout
    if not may_share(layout, setting):
        return found, []
    other = replace(layout, shard_optimizer=not layout.shard_optimizer)
    try:
        one = evaluate(other, setting, model, found.step.rows)
    except PlanError as problem:
        return found, [Loser(str(other), f"{_how(other)}: {problem}", other)]
    lacking = one.peak_bytes - (setting.memory_bytes or one.peak_bytes)
    if lacking > 0:
        loser = too_large(other, lacking, setting, "the fullest rank")
        return found, [replace(loser, why=f"{_how(other)}: {loser.why}", peak_bytes=one.peak_bytes)]
    best, beaten = (one, found) if _value(one, setting) < _value(found, setting) else (found, one)
    why = f"{_how(beaten.layout)}: {why_not(beaten, best, setting)}"
    return best, [Loser(str(beaten.layout), why, beaten.layout, beaten.step_ns, beaten.peak_bytes)]


def _how(layout: Layout) -> str:
    return "optimizer sharded" if layout.shard_optimizer else "optimizer whole on every replica"
