"""Linear warm-up, then a cosine or a line down to the final learning rate, or none of it.

peak       .---.            cosine    .---- constant
          /     '.         \\ linear
0        /        '--.  final \\_
         warmup_steps         decay_steps
"""

from __future__ import annotations

import math
from collections.abc import Callable

from hybrid_runtime.deployment import Optimizer

# What is left of the way from the peak to the final rate, when `done` (0 to 1) of the steps after the warm-up are.
_LEFT: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
    "constant": lambda done: 1.0,
}


def learning_rate(
    step: int, *, peak: float, final: float, warmup_steps: int, steps: int, schedule: str = "cosine"
) -> float:
    """Learning rate of 0-based `step`.

    Step `warmup_steps - 1` is the first at the peak; step `steps - 1` is at `final`; later steps stay there.

    Args:
        schedule: "cosine", "linear", or "constant", which stays at the peak.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    left = max(steps - 1 - warmup_steps, 1)
    done = min((step - warmup_steps) / left, 1.0)
    return final + (peak - final) * _LEFT[schedule](done)


def rate_at(trained: int, settings: Optimizer, steps: int) -> float:
    """The learning rate of a model that was trained `trained` steps. It depends on nothing else, so a resumed run goes
    on with the right one; to train longer in the end, give the schedule its own length (`decay_steps`).

    Args:
        steps: length of a schedule that has none of its own: that of a plain run.
    """
    return learning_rate(
        trained,
        peak=float(settings.learning_rate),
        final=float(settings.final_learning_rate),
        warmup_steps=settings.warmup_steps,
        steps=settings.decay_steps or steps,
        schedule=settings.schedule,
    )
