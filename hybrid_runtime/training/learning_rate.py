"""Linear warm-up, then a cosine down to the final learning rate."""

from __future__ import annotations

import math


def learning_rate(step: int, *, peak: float, final: float, warmup_steps: int, steps: int) -> float:
    """Learning rate of 0-based `step`.

    Step `warmup_steps - 1` is the first at the peak; step `steps - 1` is at `final`; later steps stay there.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    left = max(steps - 1 - warmup_steps, 1)
    done = min((step - warmup_steps) / left, 1.0)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * done))
