"""V-Min: about a third of the activations of 1F1B's first rank, on every rank (Qi et al. 2024, arXiv 2405.15362).

    rank 0 | 0F0 3F0 3I0 3W0 0F1 0I0 0W0 3F1 3I1 3W1 0F2 0I1 0W1 3F2 3I2 3W2 0F3 0I2 0W2 3F3 3I3 3W3 0I3 0W3
    rank 1 | 1F0 2F0 2I0 1I0 1F1 2F1 2W0 1W0 2I1 1I1 1F2 2F2 2W1 1W1 2I2 1I2 1F3 2F3 2W2 1W2 2I3 1I3 2W3 1W3

No rank holds more than (pp_degree + 4) // 3 microbatches. The price is idle time as soon as F, I and W differ, because
every gap of the block is paid again for every microbatch.
"""

from __future__ import annotations

from hybrid_runtime.schedule.actions import ActionList
from hybrid_runtime.schedule.v_block import Offsets, repeat_block


def v_min(pp_degree: int, num_microbatches: int) -> tuple[ActionList, ...]:
    """One list per rank, two stages per rank; any num_microbatches >= 1."""
    shift = 0 if pp_degree % 3 else 2  # keeps two actions of a rank from the same tick
    block = [
        Offsets(
            forward_near=rank,
            forward_far=2 * pp_degree - 1 - rank,
            input_far=2 * pp_degree + shift + rank,
            input_near=4 * pp_degree + shift - 1 - rank,
        )
        for rank in range(pp_degree)
    ]
    return repeat_block(block, num_microbatches)
