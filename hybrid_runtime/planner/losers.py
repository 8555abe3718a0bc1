"""Why a layout was not chosen, one sentence each; and what no layout keeps, where none is possible."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from hybrid_runtime.planner.evaluate import Evaluated, broken_promises
from hybrid_runtime.planner.layout import MEMORY_SAFETY, Layout, Setting


@dataclass(frozen=True)
class Loser:
    """A layout that was not chosen.

    Attributes:
        step_ns, peak_bytes: None where it was not replayed.
        lacking_bytes: above the memory limit.
    """

    what: str
    why: str
    layout: Layout | None = None
    step_ns: int | None = None
    peak_bytes: int | None = None
    lacking_bytes: int = 0


def why_slower(other: Evaluated, chosen: Evaluated) -> str:
    """One sentence: how much slower than the chosen layout, and where the time goes."""
    more = Fraction(other.step_ns, max(1, chosen.step_ns)) - 1
    parts = {
        "bubble": other.bubble,
        "tensor-parallel collectives": _tp_share(other),
        "gradient sums": Fraction(max(other.data_parallel_ns), max(1, other.step_ns)),
    }
    largest = max(parts, key=lambda name: parts[name])
    return f"{float(100 * more):.1f} % slower: {largest} {float(100 * parts[largest]):.0f} %"


def _tp_share(found: Evaluated) -> Fraction:
    works = [found.staged.rank_work(rank) for rank in range(found.layout.mesh.pp_degree)]
    of_one = max(work.tp_forward + max(work.tp_backward, work.tp_input_grad) for work in works)
    spent = of_one * found.layout.num_microbatches
    return Fraction(spent, max(1, found.step_ns))


def why_not(other: Evaluated, chosen: Evaluated, setting: Setting) -> str:
    """One sentence: which promise a layout breaks that the chosen one keeps, or how much slower it is and why."""
    broken = broken_promises(other, setting)
    if len(broken) > len(broken_promises(chosen, setting)):
        return "; ".join(broken)
    return why_slower(other, chosen)


def too_large(layout: Layout, lacking_bytes: int, setting: Setting, where: str) -> Loser:
    """A layout that does not fit its devices."""
    why = f"out of memory: {where}: {lacking_bytes / 1e9:.3g} GB more than {setting.limit_text}"
    return Loser(str(layout), why, layout, lacking_bytes=lacking_bytes)


def infeasible(losers: Sequence[Loser], setting: Setting) -> str:
    """Which limit no layout keeps, by how much, and what would make one fit."""
    short = [loser for loser in losers if loser.lacking_bytes]
    if not short:
        shown = "; ".join(list(dict.fromkeys(loser.why for loser in losers))[:3]) or "[search] allows none"
        return (
            f"{setting.name}: no layout of {setting.num_devices} devices is possible: {shown}; let more vary in "
            "[search], or change the batch"
        )
    nearest = min(short, key=lambda loser: loser.lacking_bytes)
    assert setting.memory_bytes is not None
    needed = setting.memory_bytes + nearest.lacking_bytes
    devices = math.ceil(Fraction(needed, setting.memory_bytes) * setting.num_devices)
    return (
        f"{setting.name}: hardware.memory_per_device is too little: no layout fits {setting.limit_text}; the nearest "
        f"of {len(short)} ({nearest.what}) lacks {nearest.lacking_bytes / 1e9:.3g} GB per device; it would fit "
        f"{needed / float(1 - MEMORY_SAFETY) / 1e9:.3g} GB, or some {devices} devices instead of "
        f"{setting.num_devices}; else use a smaller model or shorter sequences"
    )
