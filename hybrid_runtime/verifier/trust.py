"""When a clock may not be believed: reasons that turn a time claim INCONCLUSIVE whatever its figure says.

asked for GPUs, ran on CPUs ............ hardware_mismatch
ranks share a device ................... oversubscribed   (balance has a second clock: thread CPU time)
others ran on the ranks' own cores ..... contended        (most steps; fewer: a warning)
the driver saw something ............... throttled, clock_spread, foreign_process
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.verdict import Reason
from hybrid_runtime.verifier.metrics import Metrics, percent

# A core that two busy threads share is switched a few hundred times a second; an idle neighbour costs a handful.
SWITCHES_PER_S = 50
SWITCHES_ALLOWED = 2  # a short step with one or two switches is not contended


class Blocker(NamedTuple):
    """Why a time claim is not decided."""

    reason: Reason
    note: str


def asks_for_gpus(deployment: Deployment) -> bool:
    """Whether the deployment is for GPUs, by its device or by what only a GPU has."""
    hardware = deployment.hardware
    links = hardware.interconnect or hardware.link_pairs or hardware.min_link_bandwidth
    return hardware.device == "cuda" or bool(links) or (hardware.device != "cpu" and bool(hardware.memory_per_device))


def mismatch(deployment: Deployment, metrics: Metrics) -> Blocker | None:
    """The records are of another kind of device than the deployment is for."""
    if asks_for_gpus(deployment) and metrics.kind == "cpu":
        return Blocker("hardware_mismatch", "the deployment is for GPUs, the run was on CPUs")
    if deployment.hardware.device == "cpu" and metrics.kind == "cuda":
        return Blocker("hardware_mismatch", "the deployment is for CPUs, the run was on GPUs")
    return None


def oversubscription(metrics: Metrics) -> Blocker | None:
    """Ranks share devices: no wall-clock time belongs to one of them."""
    if not metrics.oversubscribed:
        return None
    host = metrics.side.ranks[0].header.host
    unit = "devices" if metrics.kind == "cuda" else f"{host.available_cores} cores of a host"
    ranks = [rank for rank, owned in enumerate(metrics.owned) if not owned]
    return Blocker(
        "oversubscribed",
        f"{metrics.side.role}: {len(ranks)} of {len(metrics.owned)} ranks share {unit}; times are shown, not judged",
    )


def contended_share(metrics: Metrics) -> Fraction:
    """Share of measured steps in which a rank was pushed off its own core more often than an idle machine does it."""
    windows = metrics.windows_ns
    if metrics.hardware != "cpu" or not windows:
        return Fraction()
    columns = [[step.switches for step in rank.measured()] for rank in metrics.side.ranks]
    worst = [max(row) for row in zip(*columns, strict=True)]
    affected = [
        switches > SWITCHES_ALLOWED and switches * 10**9 > SWITCHES_PER_S * window
        for switches, window in zip(worst, windows, strict=True)
    ]
    return Fraction(sum(affected), len(affected))


def contention(metrics: Metrics) -> Blocker | None:
    """More than half of the measured steps were disturbed by others on the same cores."""
    share = contended_share(metrics)
    if share <= Fraction(1, 2):
        return None
    note = f"{metrics.side.role}: in {percent(share, 1, 0)} % of the steps other processes ran on the ranks' cores"
    return Blocker("contended", note)


def time_blocker(deployment: Deployment, sides: Sequence[Metrics], driver: Blocker | None) -> Blocker | None:
    """The first reason why wall-clock times of these sides decide nothing; `driver` is what NVML records say."""
    for side in sides:
        found = mismatch(deployment, side) or oversubscription(side) or contention(side)
        if found:
            return found
    return driver


def contention_warnings(sides: Sequence[Metrics]) -> list[str]:
    """Sides whose steps were disturbed, but not most of them."""
    shares = [(side.side.role, contended_share(side)) for side in sides]
    return [
        f"{role}: {percent(share, 1, 0)} % of the measured steps were disturbed by other processes on the ranks' cores"
        for role, share in shares
        if share
    ]
