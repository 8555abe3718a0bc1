"""Where a model's flat list of units is cut into stages.

even       equally many layers per stage, embedding on the first, head on the last
balanced   the largest stage has as few FLOPs as cuts between units allow
explicit   one "first..last" of unit names per stage, both ends included

A rank may hold several stages. "balanced" then makes the stages equal, not yet the sums of each rank.

units      embedding | 0.attn | 0.mlp | 1.attn | 1.mlp | head
even, 2    [embedding  0.attn   0.mlp] [1.attn   1.mlp   head]
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate

from hybrid_runtime.errors import PlanError
from hybrid_runtime.plan import UnitCost
from hybrid_runtime.planner.balance import balanced_sizes

Stages = tuple[tuple[str, ...], ...]

_LAYER = re.compile(r"(\d+)\..+")


def cut_units(cuts: str | Sequence[str], costs: Sequence[UnitCost], num_stages: int) -> Stages:
    """Names of the units of every stage.

    Args:
        cuts: "even", "balanced", or one range of unit names per stage. Ranges are only read here; whether they cover
            the model is `stage_cover`'s to say.
        costs: of all units in model order. Where no FLOPs are known, "balanced" cuts evenly.

    Raises:
        PlanError: more stages than units.
    """
    names = [cost.name for cost in costs]
    if not isinstance(cuts, str):
        return tuple(_read_range(text, names) for text in cuts)
    if num_stages > len(names):
        raise PlanError(
            f"{num_stages} pipeline stages need at least as many units, but the model has {len(names)}: "
            f"lower pp_degree (or the stages per rank) to {len(names)} stages or less in all"
        )
    assert cuts in ("even", "balanced"), cuts
    flops = [cost.flops for cost in costs]
    balanced = balanced_sizes(flops, num_stages) if cuts == "balanced" and any(flops) else None
    return _slices(names, balanced or even_sizes(names, num_stages))


def _slices(names: Sequence[str], sizes: Sequence[int]) -> Stages:
    return tuple(tuple(names[end - size : end]) for size, end in zip(sizes, accumulate(sizes)))


def even_sizes(names: Sequence[str], num_stages: int) -> list[int]:
    """Units per stage: equally many layers; equally many units if there are no layers or a stage would stay empty.

    What stands before the first layer joins the first stage, what stands after the last layer joins the last.
    """
    layers = _units_per_layer(names)
    first, last = _outside_layers(names)
    counts = _split_evenly(len(layers), num_stages)
    sizes = [sum(layers[end - count : end]) for count, end in zip(counts, accumulate(counts))]
    sizes[0] += first
    sizes[-1] += last
    return sizes if layers and all(sizes) else _split_evenly(len(names), num_stages)


def _layer_of(name: str) -> str | None:
    match = _LAYER.fullmatch(name)
    return match[1] if match else None


def _outside_layers(names: Sequence[str]) -> tuple[int, int]:
    """Units before the first and after the last unit of a layer."""
    inside = [index for index, name in enumerate(names) if _layer_of(name) is not None]
    return (inside[0], len(names) - 1 - inside[-1]) if inside else (0, 0)


def _units_per_layer(names: Sequence[str]) -> list[int]:
    """Units of every layer; a unit without a layer number between two layers belongs to the one before it."""
    first, last = _outside_layers(names)
    units: list[int] = []
    current: str | None = None
    for name in names[first : len(names) - last]:
        layer = _layer_of(name) or current
        if layer is None:
            return []  # no unit is part of a layer
        units += [0] if layer != current else []
        units[-1] += 1
        current = layer
    return units


def _split_evenly(count: int, parts: int) -> list[int]:
    """`count` things in `parts` runs; the remainder goes to the middle, which has neither embedding nor head."""
    share, rest = divmod(count, parts)
    from_the_middle = sorted(range(parts), key=lambda part: (abs(2 * part - (parts - 1)), part))
    return [share + (part in from_the_middle[:rest]) for part in range(parts)]


def _read_range(text: str, names: Sequence[str]) -> tuple[str, ...]:
    """Units of "first..last" or of a single name; unknown names are kept as they are, a backward range is empty."""
    first, dots, last = (part.strip() for part in text.partition(".."))
    last = last if dots else first
    if first not in names or last not in names:
        return (first, last) if dots else (first,)
    return tuple(names[names.index(first) : names.index(last) + 1])
