"""What a compute action waits for.

    kF needs (k-1)F                      kI and kB need kF, and (k+1)I or (k+1)B
    0F needs nothing                     kW needs kI;  on the last stage kI and kB need kF only

The rules are those of every synchronous pipeline schedule; I and W are the two halves of B (Qi et al. 2023,
"Zero Bubble Pipeline Parallelism", arXiv 2401.10241, section 2).
"""

from __future__ import annotations

from hybrid_runtime.schedule.actions import Action, Kind


def needs(action: Action, num_stages: int) -> tuple[tuple[Action, ...], ...]:
    """Actions that must have ended before a compute action starts.

    Returns:
        One tuple per dependency; each lists alternatives of which one must have ended (`1I0` or `1B0`).
    """
    stage, kind, microbatch = action
    assert kind.is_compute, action
    if kind is Kind.F:
        return ((Action(stage - 1, Kind.F, microbatch),),) if stage > 0 else ()
    if kind is Kind.W:
        return ((Action(stage, Kind.I, microbatch),),)
    own_forward = (Action(stage, Kind.F, microbatch),)
    if stage == num_stages - 1:
        return (own_forward,)
    return own_forward, (Action(stage + 1, Kind.I, microbatch), Action(stage + 1, Kind.B, microbatch))
