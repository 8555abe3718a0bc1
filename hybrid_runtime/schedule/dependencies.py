"""What a compute action waits for.

    kF needs (k-1)F                      kI and kB need kF, and (k+1)I or (k+1)B
    0F needs nothing                     kW needs kI;  on the last stage kI and kB need kF only

With an embedding whose rows are sharded (`EF` and `EB`, actions.py), r any stage that names a rank with rows:

    0F needs every rEF                   0EB needs 0I or 0B;  the other rEB need 0EB;  rEF needs nothing

The rules are those of every synchronous pipeline schedule; I and W are the two halves of B (Qi et al. 2023,
"Zero Bubble Pipeline Parallelism", arXiv 2401.10241, section 2).
"""

from __future__ import annotations

from collections.abc import Sequence

from hybrid_runtime.schedule.actions import Action, ActionList, Kind


def needs(action: Action, num_stages: int, lookups: Sequence[int] = ()) -> tuple[tuple[Action, ...], ...]:
    """Actions that must have ended before a compute action starts.

    Args:
        lookups: stages that name the ranks of a sharded embedding (`lookup_stages`).

    Returns:
        One tuple per dependency; each lists alternatives of which one must have ended (`1I0` or `1B0`).
    """
    stage, kind, microbatch = action
    assert kind.is_compute, action
    if kind is Kind.F:
        return ((Action(stage - 1, Kind.F, microbatch),),) if stage > 0 else _looked_up(microbatch, lookups)
    if kind is Kind.EF:
        return ()
    if kind is Kind.EB and stage > 0:
        return ((Action(0, Kind.EB, microbatch),),)
    if kind is Kind.EB:
        return ((Action(0, Kind.I, microbatch), Action(0, Kind.B, microbatch)),)
    if kind is Kind.W:
        return ((Action(stage, Kind.I, microbatch),),)
    own_forward = (Action(stage, Kind.F, microbatch),)
    if stage == num_stages - 1:
        return (own_forward,)
    return own_forward, (Action(stage + 1, Kind.I, microbatch), Action(stage + 1, Kind.B, microbatch))


def lookup_stages(lists: Sequence[ActionList]) -> tuple[int, ...]:
    """The stages that name the ranks of a sharded embedding in these lists; empty where none is sharded."""
    return tuple(sorted({action.stage for actions in lists for action in actions if action.kind is Kind.EF}))


def _looked_up(microbatch: int, lookups: Sequence[int]) -> tuple[tuple[Action, ...], ...]:
    return tuple((Action(stage, Kind.EF, microbatch),) for stage in lookups)
