"""When a clock may not be believed: reasons that turn a time claim INCONCLUSIVE whatever its figure says.

asked for GPUs, ran on CPUs ............ hardware_mismatch
ranks share a device ................... oversubscribed   (balance has a second clock: thread CPU time)
others ran on the ranks' own cores ..... contended        (more than 5 % of the time; less: a warning)
the driver saw something ............... throttled, clock_spread, foreign_process
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.exact import decimal_text
from hybrid_runtime.records import StepRecord
from hybrid_runtime.verdict import Reason
from hybrid_runtime.verifier.metrics import Metrics, percent

# Idle virtual machines show 1 to 3 % (ticks, kernel threads, the hypervisor); a neighbour that works shows far more.
# What a smaller load does to balance, the comparison of the two clocks finds.
FOREIGN_ALLOWED = Fraction(1, 20)  # of the measured time, on any rank's cores
FOREIGN_MENTIONED = Fraction(1, 100)


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


def foreign_share(metrics: Metrics) -> Fraction:
    """Share of the measured time in which others were on a rank's own cores: the worst rank's.

    A core's busy time less the CPU time of the rank's whole process. Its own communication threads are no foreigners,
    and what the hypervisor stole is. Zero where ranks own no cores, or where the system does not count.
    """
    if metrics.hardware != "cpu":
        return Fraction()
    return max((_foreign_share(list(rank.measured())) for rank in metrics.side.ranks), default=Fraction())


def _foreign_share(steps: Sequence[StepRecord]) -> Fraction:
    known = [step for step in steps if step.cores_busy_ns >= 0]
    window_ns = sum(step.end_ns - step.start_ns for step in known)
    foreign_ns = sum(step.cores_busy_ns - step.process_ns for step in known)
    return max(Fraction(foreign_ns, window_ns), Fraction()) if window_ns else Fraction()


def contention(metrics: Metrics) -> Blocker | None:
    """Others took more than the allowed share of a rank's cores."""
    share = foreign_share(metrics)
    if share <= FOREIGN_ALLOWED:
        return None
    return Blocker("contended", f"{metrics.side.role}: {_taken(share)}")


def _taken(share: Fraction) -> str:
    return f"others took {percent(share, 1, 1)} % of the time of a rank's own cores"


def time_blocker(deployment: Deployment, sides: Sequence[Metrics], driver: Blocker | None) -> Blocker | None:
    """The first reason why wall-clock times of these sides decide nothing; `driver` is what NVML records say."""
    for side in sides:
        found = mismatch(deployment, side) or oversubscription(side) or contention(side)
        if found:
            return found
    return driver


CLOCK_DOUBT = Fraction(1, 100)  # of a step; bubbles and windows smaller than the doubt about the clocks say nothing


def clock_warnings(sides: Sequence[Metrics]) -> list[str]:
    """Sides whose hosts' clocks are tied together too loosely for their steps."""
    warnings = []
    for side in sides:
        doubt_ns = 2 * max(rank.header.clock_uncertainty_ns for rank in side.side.ranks)
        if side.steps and doubt_ns > CLOCK_DOUBT * side.median_step_ns:
            warnings.append(
                f"{side.side.role}: the hosts' clocks agree to {decimal_text(Fraction(doubt_ns, 1000), 1)} µs only, "
                f"{percent(doubt_ns / side.median_step_ns, 1, 1)} % of a step; smaller bubbles and windows say nothing"
            )
    return warnings


def contention_warnings(sides: Sequence[Metrics]) -> list[str]:
    """Sides whose cores were used by others, much or little."""
    shares = [(side.side.role, foreign_share(side)) for side in sides]
    return [f"{role}: {_taken(share)}" for role, share in shares if share > FOREIGN_MENTIONED]
