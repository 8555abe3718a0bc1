"""ZB-H2: ZB-H1 with a warm-up and a lag twice as long (Qi et al. 2023, arXiv 2401.10241, section 2).

    rank 0 | F0 F1 F2 I0 W0 F3 I1 W1 I2 W2 I3 W3
    rank 1 | F0 I0 F1 I1 F2 I2 W0 F3 I3 W1 W2 W3

At F = I = W no rank waits between its first and its last action, but a step that ends together is no shorter than with
ZB-H1: idle (pp_degree - 1) F per rank. Every rank holds 2 pp_degree - 1 microbatches if W frees what F kept.
"""

from __future__ import annotations

from hybrid_runtime.schedule.actions import ActionList
from hybrid_runtime.schedule.zb_h1 import deferred_weights


def zb_h2(pp_degree: int, num_microbatches: int) -> tuple[ActionList, ...]:
    """One list per rank, one stage per rank; any num_microbatches >= 1."""
    return tuple(
        deferred_weights(rank, num_microbatches, warm_up=2 * (pp_degree - rank) - 1, lag=2 * rank)
        for rank in range(pp_degree)
    )
