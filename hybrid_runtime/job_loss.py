"""The mean loss of a global batch, from what the ranks of the last stage know."""

from __future__ import annotations

from collections.abc import Sequence

from hybrid_runtime.plan import Plan


def mean_loss(everyone: Sequence[Sequence[float]], plan: Plan, num_targets: int) -> float | None:
    """The replicas' sums, each taken from the first rank of its last stage, over the number of targets.

    Args:
        everyone: of every rank, 1 if it knows its replica's sum of losses, and that sum.

    Returns:
        None where a replica's sum is not known.
    """
    mesh, last = plan.mesh, plan.stage_to_rank[-1]
    rows = [everyone[mesh.rank(dp=dp, pp=last, tp=0)] for dp in range(mesh.dp_degree)]
    known = all(row[0] == 1.0 for row in rows)
    return sum(row[1] for row in rows) / num_targets if known else None
