"""Which ranks share a host: tensor-parallel groups that cross hosts pay for it in every layer."""

from __future__ import annotations

from hybrid_runtime.verifier.metrics import Metrics


def placement_warnings(metrics: Metrics) -> list[str]:
    """A sentence where tensor-parallel peers are on different hosts, naming the first such group."""
    hosts = {rank.header.rank: rank.header.host for rank in metrics.side.ranks}
    mesh = metrics.side.plan.mesh
    apart = [group for group in mesh.tp_groups() if len({hosts[rank].name for rank in group}) > 1]
    if not apart:
        return []
    where = ", ".join(f"rank {rank} on {hosts[rank].name}" for rank in apart[0])
    return [
        f"{len(apart)} of {len(mesh.tp_groups())} tensor-parallel groups cross the network between hosts in every "
        f"layer ({where}); start a number of ranks on each machine that tp_degree = {mesh.tp_degree} divides"
    ]
