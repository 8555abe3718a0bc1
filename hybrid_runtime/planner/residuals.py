"""What balance a plan leaves undone, in words: which rank, and of what it is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from hybrid_runtime.pieces import read_piece, unit_of
from hybrid_runtime.planner.analytic import kind_of
from hybrid_runtime.planner.evaluate import Evaluated


def residuals(found: Evaluated) -> list[str]:
    """One sentence on compute and one on memory."""
    if found.layout.mesh.pp_degree == 1:
        return ["one pipeline rank: nothing to balance"]
    busy = [int(time) for time in found.step.busy]
    held = [memory.ledger_peak for memory in found.memory]
    return [_compute(found, busy), _memory(found, held)]


def composition(found: Evaluated, rank: int) -> str:
    """What a rank's stages are made of: "9.5 attn, 10.25 mlp, head, 2 pieces, 51776 rows"."""
    counts: Counter[str] = Counter()
    pieces = 0
    parts = {unit.cost.name: unit.cost.parts for unit in found.staged.line.units}
    whole: dict[str, float] = {}
    for owner, names in zip(found.staged.stage_to_rank, found.staged.names):
        for name in names if owner == rank else ():
            piece, unit = read_piece(name), unit_of(name)
            share = 1.0 if piece is None else piece.parts / parts[unit]
            pieces += piece is not None
            whole[kind_of(unit)] = whole.get(kind_of(unit), 0.0) + share
            counts[kind_of(unit)] += 1
    words = [kind if counts[kind] == 1 == share else f"{share:.4g} {kind}" for kind, share in whole.items()]
    words += [f"{pieces} piece{'s' if pieces > 1 else ''} of cut units"] if pieces else []
    words += [f"{found.rows[rank]} rows"] if found.rows and found.rows[rank] else []
    return ", ".join(words)


def _compute(found: Evaluated, busy: Sequence[int]) -> str:
    most, least = busy.index(max(busy)), busy.index(min(busy))
    excess = max(busy) * len(busy) / max(1, sum(busy)) - 1
    how = "cuts fall at granules" if found.layout.cuts == "fractional" else "cuts fall between units"
    return (
        f"compute: max/mean - 1 is {100 * excess:.3f} %; pp rank {most} ({composition(found, most)}) computes most, "
        f"pp rank {least} ({composition(found, least)}) least; {how}"
    )


def _memory(found: Evaluated, held: Sequence[int]) -> str:
    most, least = held.index(max(held)), held.index(min(held))
    excess = max(held) * len(held) / max(1, sum(held)) - 1
    words = (
        f"memory: max/mean - 1 is {100 * excess:.3f} %; pp rank {most} ({composition(found, most)}) holds "
        f"{max(held) / 1e9:.4g} GB, pp rank {least} {min(held) / 1e9:.4g} GB"
    )
    if not found.rows:
        return f"{words}; {why_no_rows(found)}"
    if all(found.rows):
        return f"{words}; rows fill every rank to one level, to a block of rows"
    full = [rank for rank, rows in enumerate(found.rows) if rows == 0]
    return f"{words}; the embedding has too few rows to lift the others to pp rank {', '.join(map(str, full))}"


def why_no_rows(found: Evaluated) -> str:
    """Why the embedding is not spread over the pipeline."""
    costs = {unit.cost.name: unit.cost for unit in found.staged.line.units}
    head = costs.get("head")
    if head is not None and head.parameters == head.fixed_parameters + _norm(found) and found.staged.line.units:
        return "the embedding is tied to the head, so its rows cannot be spread to even memory out"
    return "the embedding stays on the first stage"


def _norm(found: Evaluated) -> int:
    """Parameters of a norm: what a tied head has of its own."""
    return next((unit.cost.fixed_parameters for unit in found.staged.line.units if unit.cost.fixed_parameters), 0)
