"""Where a model's flat list of units is cut into stages.

even       equally many layers per stage, embedding on the first, head on the last
balanced   the largest stage has as few FLOPs as cuts between units allow
explicit   one "first..last" of unit names per stage, both ends included; an end may be a piece of a unit (pieces.py),
           "embedding..3.mlp[:96]" and "3.mlp[96:]..head", where what is left out is the unit's own end

A rank may hold several stages. "balanced" then makes the stages equal, not yet the sums of each rank.

units      embedding | 0.attn | 0.mlp | 1.attn | 1.mlp | head
even, 2    [embedding  0.attn   0.mlp] [1.attn   1.mlp   head]
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate

from hybrid_runtime.errors import PlanError
from hybrid_runtime.pieces import Piece, read_piece, unit_of
from hybrid_runtime.plan import UnitCost
from hybrid_runtime.planner.balance import balanced_sizes

Stages = tuple[tuple[str, ...], ...]

_WRITTEN_PIECE = re.compile(r"(?P<unit>[^\[\]]+)\[\s*(?P<start>\d{0,12})\s*:\s*(?P<stop>\d{0,12})\s*\]")
_LAYER = re.compile(r"(\d+)\..+")


def cut_units(cuts: str | Sequence[str], costs: Sequence[UnitCost], num_stages: int) -> Stages:
    """Names of the units of every stage.

    Args:
        cuts: "even", "balanced", or one range of names per stage. Ranges are only read here; whether they cover the
            model is `stage_cover`'s to say.
        costs: of all units in model order. Where no FLOPs are known, "balanced" cuts evenly.

    Raises:
        PlanError: more stages than units.
    """
    names = [cost.name for cost in costs]
    if not isinstance(cuts, str):
        parts = {cost.name: cost.parts for cost in costs}
        return tuple(_read_range(text, parts) for text in cuts)
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


def _read_range(text: str, parts: Mapping[str, int]) -> tuple[str, ...]:
    """Names of "first..last" or of a single one; unknown names are kept as they are, a backward range is empty.

    Args:
        parts: of every unit, in model order.
    """
    names = list(parts)
    first, dots, last = (_read_end(end.strip(), parts) for end in text.partition(".."))
    last = last if dots else first
    if unit_of(first) not in names or unit_of(last) not in names:
        return (first, last) if dots else (first,)
    begin, end = names.index(unit_of(first)), names.index(unit_of(last))
    if begin == end:
        return (first,) if first == last else _joined(first, last, parts)
    return (first, *names[begin + 1 : end], last) if begin < end else ()


def _read_end(text: str, parts: Mapping[str, int]) -> str:
    """The name that an end of a range means: of a piece in its full form, or of the whole unit."""
    written = _WRITTEN_PIECE.fullmatch(text)
    if written is None or written["unit"] not in parts:
        return text
    unit, whole = written["unit"], parts[written["unit"]]
    return _name(Piece(unit, int(written["start"] or 0), int(written["stop"] or whole)), whole)


def _joined(first: str, last: str, parts: Mapping[str, int]) -> tuple[str, ...]:
    """Two pieces of one unit on one stage are one piece where they meet."""
    one, other = read_piece(first), read_piece(last)
    if one is None or other is None or one.stop != other.start:
        return first, last
    return (_name(one._replace(stop=other.stop), parts[one.unit]),)


def _name(piece: Piece, parts: int) -> str:
    return piece.unit if (piece.start, piece.stop) == (0, parts) else str(piece)
