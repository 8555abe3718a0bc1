"""A layout cut into stages, with what the units of every stage cost together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from hybrid_runtime.deployment_fields import RecomputeKind
from hybrid_runtime.errors import PlanError
from hybrid_runtime.pieces import read_piece
from hybrid_runtime.plan import Plan
from hybrid_runtime.planner.cut_linear import at_units, fractional_cut, whole_cut
from hybrid_runtime.planner.cut_v import Weigh, fractional_v_cut, whole_units_v
from hybrid_runtime.planner.cuts import even_sizes
from hybrid_runtime.planner.layout import Layout, Setting, in_flight
from hybrid_runtime.planner.state_bytes import StateBytes
from hybrid_runtime.planner.step_model import StepModel
from hybrid_runtime.planner.work import (
    NOTHING,
    Boundaries,
    Line,
    Load,
    Position,
    Work,
    plus,
    stage_works,
)


@dataclass(frozen=True)
class Staged:
    """A layout with its cuts.

    Attributes:
        lines: what was cut, as each stage runs it; a sharded embedding's unit only sums what the ranks looked up.
        lookup: what looking up rows costs a rank that has any; nothing where the embedding is whole.
        lookers: pipeline ranks that have rows.
        works: per stage, lookups not included.
        tied_parameters: of the copy that the head's rank holds of a tied embedding on another rank.
    """

    layout: Layout
    lines: tuple[Line, ...]
    lookup: Work
    lookers: frozenset[int]
    boundaries: Boundaries
    works: tuple[Work, ...]
    stage_to_rank: tuple[int, ...]
    tied_parameters: int

    @property
    def line(self) -> Line:
        """For what no stage changes: units, their names and whole carries, the head."""
        return self.lines[0]

    @property
    def names(self) -> tuple[tuple[str, ...], ...]:
        """Units and pieces of every stage."""
        return tuple(self.line.names(a, b) for a, b in zip(self.boundaries, self.boundaries[1:]))

    def rank_work(self, rank: int) -> Work:
        """What a rank's stages and lookups cost for one microbatch."""
        found = self.lookup if rank in self.lookers else NOTHING
        for stage, work in enumerate(self.works):
            if self.stage_to_rank[stage] == rank:
                found = plus(found, work)
        return found

    def rank_parameters(self, rank: int) -> int:
        """Parameters of a rank, the rows of a sharded embedding not included."""
        tied = self.tied_parameters if rank == self.stage_to_rank[-1] else 0
        return self.rank_work(rank).parameters + tied

    @property
    def loads(self) -> tuple[int, ...]:
        """Compute time of every rank for one microbatch."""
        load = load_of(self.layout)
        return tuple(load(self.rank_work(rank)) for rank in range(self.layout.mesh.pp_degree))


def load_of(layout: Layout) -> Load:
    """What counts as a rank's work under a schedule."""
    return _fused_load if layout.is_fused else _split_load


def _fused_load(work: Work) -> int:
    return work.forward + work.backward  # as `Work.fused_load`, which a search asks for millions of times


def _split_load(work: Work) -> int:
    return work.forward + work.input_grad + work.weight_grad


def stage(layout: Layout, setting: Setting, model: StepModel, lookers: frozenset[int] | None = None) -> Staged:
    """Cuts a layout.

    Args:
        lookers: pipeline ranks that get rows of a sharded embedding; None for all.

    Raises:
        PlanError: the model has too few units, nothing is known of its costs, or no cut fits the memory.
    """
    ranks = layout.mesh.pp_degree
    lines, lookup = lines_and_lookup(layout, model)
    if not layout.sharded:
        lookers = frozenset()
    elif lookers is None:
        lookers = frozenset(range(ranks))
    stage_to_rank = layout.stage_to_rank
    tied_parameters = _tied_parameters(layout, setting, stage_to_rank)
    boundaries = _cut(layout, setting, model, lines, lookup, lookers, tied_parameters)
    if boundaries is None:
        units = len(lines[0].units)
        why = (
            f"{len(stage_to_rank)} stages are too many for {units} units"
            if len(stage_to_rank) > units
            else f"no cut between units fits {setting.limit_text or 'its stages'}"
        )
        raise PlanError(why)
    works = tuple(stage_works(lines, boundaries))
    return Staged(layout, lines, lookup, lookers, boundaries, works, stage_to_rank, tied_parameters)


def forgetting(staged: Staged, stage: int, kind: RecomputeKind, model: StepModel) -> Staged:
    """The same stages when one of them forgets this; where they are cut stays."""
    layout = staged.layout.with_kind(stage, kind)
    line = model.line(layout.mesh.tp_degree, layout.microbatch_size).recomputing(kind)
    line = line.looked_up if layout.sharded else line
    lines, works = list(staged.lines), list(staged.works)
    lines[stage], works[stage] = line, line.work(*staged.boundaries[stage : stage + 2])
    return replace(staged, layout=layout, lines=tuple(lines), works=tuple(works))


def as_planned(plan: Plan, layout: Layout, setting: Setting, model: StepModel, lookers: frozenset[int]) -> Staged:
    """The stages of an existing plan."""
    lines, lookup = lines_and_lookup(layout, model)
    boundaries = _boundaries([stage.units for stage in plan.stages], lines[0])
    works = tuple(stage_works(lines, boundaries))
    tied = _tied_parameters(layout, setting, plan.stage_to_rank)
    return Staged(layout, lines, lookup, lookers, boundaries, works, plan.stage_to_rank, tied)


def _boundaries(stages: Sequence[Sequence[str]], line: Line) -> Boundaries:
    """Where stages of these units and pieces are cut."""
    index = {unit.cost.name: number for number, unit in enumerate(line.units)}
    return (*(_position(units[0], index) for units in stages), line.end)


def _position(name: str, index: Mapping[str, int]) -> Position:
    piece = read_piece(name)
    return Position(index[name]) if piece is None else Position(index[piece.unit], piece.start)


def _tied_parameters(layout: Layout, setting: Setting, stage_to_rank: Sequence[int]) -> int:
    """Of the copy of a tied embedding that the head's rank holds, beside rows or an embedding on other ranks."""
    tied = setting.shape.tie_embeddings and (layout.sharded or stage_to_rank[-1] != 0)
    return setting.shape.vocab_size * setting.shape.hidden_size // layout.mesh.tp_degree if tied else 0


def lines_of(layout: Layout, model: StepModel) -> tuple[Line, ...]:
    """The model's units as each stage runs them."""
    line = model.line(layout.mesh.tp_degree, layout.microbatch_size)
    return tuple(map(line.recomputing, layout.recomputes))


def lines_and_lookup(layout: Layout, model: StepModel) -> tuple[tuple[Line, ...], Work]:
    """The lines to be cut, and what a rank with rows of a sharded embedding does beside its stages."""
    lines = lines_of(layout, model)
    if not layout.sharded:
        return lines, NOTHING
    whole = lines[0].units[0].whole
    lookup = whole._replace(tp_forward=0, tp_backward=0, tp_input_grad=0, parameters=0)
    return tuple(line.looked_up for line in lines), lookup


def embedding_parameters(layout: Layout, setting: Setting) -> int:
    """Of one tensor-parallel rank, all rows."""
    rows = -(-setting.shape.vocab_size // layout.mesh.tp_degree)
    return rows * setting.shape.hidden_size


def state_of(layout: Layout, model: StepModel) -> StateBytes:
    """What a rank keeps for every one of its parameters."""
    return model.state.shared_by(layout.mesh.dp_degree if layout.shard_optimizer else 1)


def weigh(any_line: Line, layout: Layout, state: StateBytes, rank: int, work: Work, tied_parameters: int) -> int:
    """Bytes that a rank is expected to hold, before any replay; the head's logits of one microbatch only."""
    return weigher(any_line, layout, state, tied_parameters)(rank, work.saved, work.parameters)


def weigher(any_line: Line, layout: Layout, state: StateBytes, tied_parameters: int) -> Weigh:
    """`weigh` of a layout's ranks, for a cut that weighs very many stages."""
    last = layout.stage_to_rank[-1]
    heads, tied = [0] * layout.mesh.pp_degree, [0] * layout.mesh.pp_degree
    heads[last], tied[last] = any_line.units[-1].whole.saved, tied_parameters
    in_flights = [in_flight(layout, rank) for rank in range(layout.mesh.pp_degree)]
    times = [(held.numerator, held.denominator) for held in in_flights]
    total = Fraction(state.total)

    def weigh(rank: int, saved: int, parameters: int) -> int:
        held, per = times[rank]
        states = -(-total.numerator * (parameters + tied[rank]) // total.denominator)
        return states + held * (saved - heads[rank]) // per + heads[rank]

    return weigh


def _cut(
    layout: Layout,
    setting: Setting,
    model: StepModel,
    lines: Sequence[Line],
    lookup: Work,
    lookers: frozenset[int],
    tied_parameters: int,
) -> Boundaries | None:
    state = state_of(layout, model)
    load, ranks, num_stages = load_of(layout), layout.mesh.pp_degree, len(layout.stage_to_rank)
    per_rank = num_stages // ranks

    weighed = weigher(lines[0], layout, state, tied_parameters)

    def room(rank: int, work: Work) -> bool:
        assert setting.memory_bytes is not None
        return weighed(rank, work.saved, work.parameters) <= setting.memory_bytes

    if layout.stages is not None:
        return _boundaries(layout.stages, lines[0])
    if num_stages > len(lines[0].units):
        return None
    if layout.cuts == "even":
        return at_units(even_sizes([unit.cost.name for unit in lines[0].units], num_stages))
    extra = [load(lookup) if rank in lookers else 0 for rank in range(ranks)]
    if layout.cuts == "whole":
        limited = room if setting.memory_bytes is not None else None
        if layout.is_v:
            return whole_units_v(lines, load, limited)
        return whole_cut(lines, load, limited if per_rank == 1 else None)
    if not layout.is_v:
        return fractional_cut(lines, load, [extra[rank] // per_rank for rank in layout.stage_to_rank])
    poured = state.held(embedding_parameters(layout, setting)) if layout.sharded else 0
    return fractional_v_cut(
        lines,
        load,
        weighed,
        poured,
        extra=extra,
        share=layout.share,
    )
