"""What a plan.json cannot say if it is as it was written: it is edited by hand, or its writer has a bug.

Only what would otherwise come out as a crash or a wrong figure long after; whether stages hold the model and lists are
right is looked at where the model and the lists are understood (`planner/given.py`, `schedule/check.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from hybrid_runtime.deployment_fields import MAX_RANKS
from hybrid_runtime.pieces import Piece, read_piece
from hybrid_runtime.plan import Plan
from hybrid_runtime.predicted import LABELS, PredictedStep

_MOST = dict.fromkeys(("tp_degree", "pp_degree", "dp_degree"), MAX_RANKS) | dict.fromkeys(
    ("global_batch_size", "microbatch_size", "num_microbatches", "sequence_length"), 10**9
)
_LOOKUP = re.compile(r"\d+E[FB]\d+")


def contradictions(plan: Plan) -> Iterator[str]:
    """What no plan that was written whole says, the first first; of lists, only whether they look rows up."""
    for name, most in _MOST.items():
        if not 1 <= (found := getattr(plan, name)) <= most:
            yield f"{name} = {found} is not between 1 and {most}"
    if plan.mesh.world_size > MAX_RANKS:
        yield f"{plan.mesh} makes {plan.mesh.world_size} ranks, at most {MAX_RANKS} are supported"
    if not plan.stages or not plan.units:
        yield f"holds {len(plan.stages)} stages and {len(plan.units)} units"
        return
    if plan.predicted is not None:
        yield from _of_prediction(plan.predicted, plan.pp_degree)
    yield from _of_embedding(plan)


def _of_embedding(plan: Plan) -> Iterator[str]:
    pieces = [read_piece(name) for name in plan.embedding_pieces]
    held = [piece for piece in pieces if piece is not None]
    unit = plan.units[0].name
    if plan.embedding_pieces and (
        len(pieces) != plan.pp_degree
        or len(held) != sum(map(bool, plan.embedding_pieces))
        or not held
        or not _are_rows(held, unit)
    ):
        yield (
            f"embedding_pieces must name for each of the {plan.pp_degree} pipeline ranks its rows of {unit!r}, from 0 "
            "on and one piece after the other, or ''"
        )
    ranks = {rank for rank, piece in enumerate(pieces) if piece} | ({plan.stages[0].pp_rank} if held else set())
    looking = {rank for rank, row in enumerate(plan.actions) if any(_LOOKUP.fullmatch(action) for action in row)}
    if ranks != looking:
        words = f"of pipeline ranks {sorted(looking)} look" if looking else "of no rank looks"
        yield f"rows of the embedding are on pipeline ranks {sorted(ranks)}, but the list {words} rows up"


def _are_rows(pieces: Sequence[Piece], unit: str) -> bool:
    """Whether they are the unit's parts from 0 on, none left out or held twice."""
    ends = [0, *(piece.stop for piece in pieces)]
    return all(piece.unit == unit and piece.start == end < piece.stop for piece, end in zip(pieces, ends))


def _of_prediction(predicted: PredictedStep, pp_degree: int) -> Iterator[str]:
    """A prediction is judged rank by rank, and a part of a step cannot take less than no time."""
    if [rank.pp_rank for rank in predicted.ranks] != list(range(pp_degree)):
        yield f"predicted.ranks are not the {pp_degree} pipeline ranks"
    right = LABELS[predicted.source]
    for name in sorted({*right, *predicted.labels}):
        if predicted.labels.get(name) != right.get(name):
            said, made = predicted.labels.get(name, "nothing"), right.get(name, "no such figure")
            yield f"predicted.labels: {name} is said to be {said}, but from {predicted.source!r} it is {made}"
    if predicted.source in ("calibration", "rehearsal") and not predicted.fingerprint:
        yield f"predicted.fingerprint: costs of source {predicted.source!r} hold on one machine, and none is named"
    time = predicted.step_time
    if not 0 <= time.p10_ns <= time.p50_ns <= time.p90_ns:
        yield "predicted.step_time: p10, p50 and p90 are not in order"
    for rank in predicted.ranks:
        below = [name for part in (rank.time, rank.memory) for name, value in part if value is not None and value < 0]
        if below:
            yield f"predicted: {below[0]} of pipeline rank {rank.pp_rank} is below 0"
