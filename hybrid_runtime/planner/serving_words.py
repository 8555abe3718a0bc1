"""What is said about a serving plan: why it and not the others, where it would be cut otherwise, how much would fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hybrid_runtime.errors import PlanError
from hybrid_runtime.planner.cuts import Stages
from hybrid_runtime.planner.serving_evaluate import EvaluatedServing, capacity_tokens
from hybrid_runtime.planner.serving_layout import PHASES, cut
from hybrid_runtime.planner.serving_search import Dropped, FoundServing, line_of_round


def why_not(other: EvaluatedServing, chosen: EvaluatedServing) -> str:
    """Which limit it does not keep, or how much longer or slower it is."""
    if broken := list(other.broken_limits()):
        return "; ".join(broken)
    longer = 100 * (other.latency_ns / max(1, chosen.latency_ns) - 1)
    more = 100 * float(other.tokens_per_s / chosen.tokens_per_s - 1)
    words = chosen.asked.latency.replace("_", " ")
    return (
        f"{words} latency {other.latency_ns / 1e9:.4g} s ({longer:+.1f} %), {float(other.tokens_per_s):.4g} tokens/s "
        f"({more:+.1f} %)"
    )


def reasons(best: Sequence[EvaluatedServing], found: FoundServing) -> Iterator[str]:
    """One line per mesh that was not chosen or cannot serve; the others of the chosen one in a line, too.

    Args:
        best: of every mesh, the chosen layout first.
    """
    chosen = best[0]
    for one in best:
        count = sum(other.layout.mesh == one.layout.mesh for other in found.evaluated) - 1
        if one is not chosen:
            more = f" (and {count} more of this mesh)" if count else ""
            yield f"{one.layout}{more}: {why_not(one, chosen)}"
        elif count:
            second = next(other for other in found.evaluated[1:] if other.layout.mesh == one.layout.mesh)
            yield f"{second.layout} (and {count - 1} more of the chosen mesh): {why_not(second, chosen)}"
    groups: dict[str, list[Dropped]] = {}
    for dropped in found.dropped:
        groups.setdefault(f"{dropped.mesh} {dropped.why.split(':')[0]}", []).append(dropped)
    for group in groups.values():
        first = min(group, key=lambda one: one.lacking_bytes)
        yield f"{first.what}{f' (and {len(group) - 1} more like it)' if group[1:] else ''}: {first.why}"


def sentences(chosen: EvaluatedServing) -> Iterator[str]:
    """What speaks for and against the chosen layout, and where figures come from."""
    asked, layout = chosen.asked, chosen.layout
    if layout.mesh.pp_degree > 1:
        yield f"this cut: {_imbalance(chosen)}"
        yield from _phase_cuts(chosen)
    wanted = asked.slots * asked.setting.sequence_length
    rooms = [room for stage in range(len(chosen.memory)) if (room := capacity_tokens(chosen, stage)) is not None]
    fits = f"; {min(rooms)} would fit beside the weights" if rooms else "; hardware.memory_per_device states no limit"
    yield f"cache: {asked.slots} sequences of {asked.setting.sequence_length} tokens, {wanted} in all{fits}"
    yield from asked.costs.notes


def _imbalance(chosen: EvaluatedServing) -> str:
    """How much more than the mean the slowest rank does, of prefills and of decodes."""
    found = []
    for phase in PHASES:
        times = [getattr(rank, f"{phase}_ns") for rank in chosen.served.ranks]
        if sum(times):
            found.append(
                f"the slowest rank does {100 * (max(times) * len(times) / sum(times) - 1):.1f} % more than the "
                f"mean of {phase}"
            )
    return ", ".join(found)


def _phase_cuts(chosen: EvaluatedServing) -> Iterator[str]:
    """What would be cut for each phase alone."""
    asked, layout = chosen.asked, chosen.layout
    way = "whole" if layout.cuts == "whole" else "fractional"
    for phase in PHASES:
        line = line_of_round(asked, layout.mesh, layout.microbatch_size, layout.chunk_tokens, (phase,))
        if not line.total.forward:
            continue
        try:
            stages = cut(line, layout.mesh.pp_degree, way)
        except PlanError:  # too few units have work in this phase
            continue
        where = "like this" if stages == layout.stages else " | ".join(cut_words(stages))
        yield f"{phase} alone would be cut {where}"


def cut_words(stages: Stages) -> list[str]:
    """Stages as `pipeline.cuts` has them, "first..last" of each."""
    return [names[0] if len(names) == 1 else f"{names[0]}..{names[-1]}" for names in stages]
