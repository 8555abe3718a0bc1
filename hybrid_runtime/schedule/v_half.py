"""V-Half: about half the activations of 1F1B's first rank, on every rank (Qi et al. 2024, arXiv 2405.15362).

    rank 0 | 0F0 3F0 0F1 3I0 3W0 3F1 0F2 0I0 3I1 0W0 3F2 3W1 0F3 0I1 3I2 0W1 3F3 3W2 0I2 3I3 0W2 3W3 0I3 0W3
    rank 1 | 1F0 2F0 1F1 2F1 2I0 2W0 1I0 1W0 1F2 2F2 2I1 2W1 1I1 1W1 1F3 2F3 2I2 2W2 1I2 1W2 2I3 2W3 1I3 1W3

Every rank holds (pp_degree + 2) // 2 microbatches.
"""

from __future__ import annotations

from hybrid_runtime.schedule.actions import ActionList
from hybrid_runtime.schedule.v_block import Offsets, repeat_block


def v_half(pp_degree: int, num_microbatches: int) -> tuple[ActionList, ...]:
    """One list per rank, two stages per rank; any num_microbatches >= 1."""
    shift = 0 if pp_degree % 2 else 3  # keeps two actions of a rank from the same tick
    block = [
        Offsets(
            forward_near=2 * rank,
            forward_far=3 * pp_degree - 2 - rank,
            input_far=3 * pp_degree + shift + 2 * rank - 1,
            input_near=6 * pp_degree + shift - rank - 2,
        )
        for rank in range(pp_degree)
    ]
    return repeat_block(block, num_microbatches)
