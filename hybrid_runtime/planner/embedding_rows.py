"""`pipeline.embedding_rows`: which pipeline rank looks up which rows of the first unit.

    vocabulary 250, tp 2, rows [64, 128, 58]     rank 0 embedding[0:64]   rank 1 embedding[64:192]   rank 2 ...[192:250]

Rows are counted over the vocabulary padded to a multiple of tp_degree. Each tensor-parallel rank holds the same slice
of its own share (pieces.py), so every number of rows is a multiple of tp_degree. 0 rows are allowed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

from hybrid_runtime.errors import PlanError
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.pieces import Piece, read_piece
from hybrid_runtime.plan import UnitCost
from hybrid_runtime.planner.costs import costs_of_names, piece_cost
from hybrid_runtime.schedule.placement import StageToRank


def padded_rows(embedding: UnitCost, tp_degree: int) -> int:
    """Rows of the embedding, rounded up to a multiple of tp_degree."""
    return -(-embedding.parts // tp_degree) * tp_degree


def rows_problems(rows: str | Sequence[int], embedding: UnitCost, mesh: Mesh) -> Iterator[str]:
    """What is wrong with the rows of a deployment, one sentence each.

    Args:
        rows: "equal", or one number per pipeline rank.
        embedding: cost of the model's first unit.
    """
    if embedding.parts < 2:
        yield f"unit {embedding.name!r} cannot be cut into rows; leave embedding_rows out, or give its UnitSpec `rows`"
        return
    if isinstance(rows, str):
        return
    padded, tp_degree = padded_rows(embedding, mesh.tp_degree), mesh.tp_degree
    if len(rows) != mesh.pp_degree:
        yield f"{len(rows)} numbers of rows are given, but pp_degree {mesh.pp_degree} needs one per pipeline rank"
    uneven = [count for count in rows if count % tp_degree]
    if uneven:
        yield f"{uneven[0]} rows are no multiple of tp_degree {tp_degree}; every rank's number must be one"
    if sum(rows) != padded:
        pad = f", {embedding.parts} padded to a multiple of tp_degree {tp_degree}" if padded != embedding.parts else ""
        yield f"the rows add up to {sum(rows)}, but {embedding.name!r} has {padded}{pad}; give them all, each once"


def embedding_pieces(rows: str | Sequence[int] | None, costs: Sequence[UnitCost], mesh: Mesh) -> tuple[str, ...]:
    """Per pipeline rank, the piece that it looks up, "" for none; empty where stage 0 holds the whole embedding.

    Args:
        rows: of the deployment; None where the embedding is not sharded.

    Raises:
        PlanError: the rows do not hold the embedding.
    """
    return () if rows is None else pieces_of(counted_rows(rows, costs, mesh), costs[0].name)


def counted_rows(rows: str | Sequence[int], costs: Sequence[UnitCost], mesh: Mesh) -> tuple[int, ...]:
    """Rows per pipeline rank.

    Raises:
        PlanError: they do not hold the embedding.
    """
    problems = list(rows_problems(rows, costs[0], mesh))
    if problems:
        raise PlanError("pipeline.embedding_rows: " + "; ".join(problems))
    return tuple(_equal(padded_rows(costs[0], mesh.tp_degree), mesh) if isinstance(rows, str) else rows)


def pieces_of(rows: Sequence[int], unit: str) -> tuple[str, ...]:
    """Contiguous rows per pipeline rank, the lowest ids first: tokenizers tend to give those to frequent tokens."""
    ends = accumulate(rows)
    return tuple(str(Piece(unit, end - count, end)) if count else "" for count, end in zip(rows, ends))


def stage_parameters(
    stages: Sequence[Sequence[str]], stage_to_rank: StageToRank, costs: Sequence[UnitCost], pieces: Sequence[str]
) -> tuple[int, ...]:
    """Parameters per stage; the rows of a sharded embedding count with the first stage of the rank that holds them."""
    held = [sum(cost.parameters for cost in costs_of_names(stage, costs)) for stage in stages]
    if pieces:
        held[0] -= costs[0].parameters
        for rank, piece in enumerate(map(read_piece, pieces)):
            if piece is not None:
                held[list(stage_to_rank).index(rank)] += piece_cost(costs[0], piece).parameters
    return tuple(held)


def _equal(rows: int, mesh: Mesh) -> list[int]:
    """As equal as multiples of tp_degree can be; the first ranks get what is left over."""
    share, rest = divmod(rows // mesh.tp_degree, mesh.pp_degree)
    return [(share + (rank < rest)) * mesh.tp_degree for rank in range(mesh.pp_degree)]
