"""A layout cut into stages, with what every stage costs: ready to be replayed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from hybrid_runtime.errors import PlanError
from hybrid_runtime.pieces import read_piece
from hybrid_runtime.plan import Plan
from hybrid_runtime.planner.cut_linear import at_units, fractional_cut, whole_cut
from hybrid_runtime.planner.cut_v import fractional_v_cut, whole_units_v
from hybrid_runtime.planner.cuts import even_sizes
from hybrid_runtime.planner.layout import Layout, Setting, crosses_nodes, in_flight
from hybrid_runtime.planner.state_bytes import StateBytes
from hybrid_runtime.planner.step_model import StepModel
from hybrid_runtime.planner.work import (
    NOTHING,
    Boundaries,
    Line,
    Load,
    Position,
    Work,
    durations,
    plus,
    stage_works,
)
from hybrid_runtime.schedule.actions import Kind
from hybrid_runtime.schedule.step_costs import ActionBytes, Hop, Received, StageKind, StepCosts, Time

_ACTED = (Kind.F, Kind.B, Kind.I)  # actions with messages
_MESSAGE_TENSORS = 2  # of a carry inside a unit: the sum so far and the normed input


@dataclass(frozen=True)
class Staged:
    """A layout with its cuts.

    Attributes:
        line: what was cut; a sharded embedding's unit only sums what the ranks looked up.
        lookup: what looking up rows costs a rank that has any; nothing where the embedding is whole.
        lookers: pipeline ranks that have rows.
        works: per stage, lookups not included.
        tied_parameters: of the copy that the head's rank holds of a tied embedding on another rank.
    """

    layout: Layout
    line: Line
    lookup: Work
    lookers: frozenset[int]
    boundaries: Boundaries
    works: tuple[Work, ...]
    stage_to_rank: tuple[int, ...]
    tied_parameters: int

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
    return work.fused_load


def _split_load(work: Work) -> int:
    return work.split_load


def stage(layout: Layout, setting: Setting, model: StepModel, lookers: frozenset[int] | None = None) -> Staged:
    """Cuts a layout.

    Args:
        lookers: pipeline ranks that get rows of a sharded embedding; None for all.

    Raises:
        PlanError: the model has too few units, nothing is known of its costs, or no cut fits the memory.
    """
    ranks = layout.mesh.pp_degree
    line, lookup = line_and_lookup(layout, model)
    if not layout.sharded:
        lookers = frozenset()
    elif lookers is None:
        lookers = frozenset(range(ranks))
    stage_to_rank = layout.stage_to_rank
    tied_parameters = _tied_parameters(layout, setting, stage_to_rank)
    boundaries = _cut(layout, setting, model, line, lookup, lookers, tied_parameters)
    if boundaries is None:
        units = len(line.units)
        why = (
            f"{len(stage_to_rank)} stages are too many for {units} units"
            if len(stage_to_rank) > units
            else f"no cut between units fits {setting.limit_text or 'its stages'}"
        )
        raise PlanError(why)
    works = tuple(stage_works(line, boundaries))
    return Staged(layout, line, lookup, lookers, boundaries, works, stage_to_rank, tied_parameters)


def as_planned(plan: Plan, layout: Layout, setting: Setting, model: StepModel, lookers: frozenset[int]) -> Staged:
    """The stages of an existing plan."""
    line, lookup = line_and_lookup(layout, model)
    boundaries = _boundaries([stage.units for stage in plan.stages], line)
    works = tuple(stage_works(line, boundaries))
    tied = _tied_parameters(layout, setting, plan.stage_to_rank)
    return Staged(layout, line, lookup, lookers, boundaries, works, plan.stage_to_rank, tied)


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


def line_of(layout: Layout, model: StepModel) -> Line:
    """The model's units as the layout runs them."""
    return model.line(layout.mesh.tp_degree, layout.microbatch_size).recomputing(layout.recompute)


def line_and_lookup(layout: Layout, model: StepModel) -> tuple[Line, Work]:
    """The line to be cut, and what a rank with rows of a sharded embedding does beside its stages."""
    line = line_of(layout, model)
    if not layout.sharded:
        return line, NOTHING
    first = line.units[0]
    whole = first.whole
    root = Work(tp_forward=whole.tp_forward, tp_backward=whole.tp_backward, tp_input_grad=whole.tp_input_grad)
    lookup = whole._replace(tp_forward=0, tp_backward=0, tp_input_grad=0, parameters=0)
    units = (replace(first, piece=lambda start, stop: root), *line.units[1:])
    return replace(line, units=units), lookup


def embedding_parameters(layout: Layout, setting: Setting) -> int:
    """Of one tensor-parallel rank, all rows."""
    rows = -(-setting.shape.vocab_size // layout.mesh.tp_degree)
    return rows * setting.shape.hidden_size


def state_of(layout: Layout, setting: Setting, model: StepModel) -> StateBytes:
    """What a rank keeps for every one of its parameters."""
    return model.state.shared_by(layout.mesh.dp_degree if setting.shard_optimizer else 1)


def weigh(staged_line: Line, layout: Layout, state: StateBytes, rank: int, work: Work, tied_parameters: int) -> int:
    """Bytes that a rank is expected to hold, before any replay; the head's logits of one microbatch only."""
    held = in_flight(layout, rank)
    head = staged_line.units[-1].whole.saved if rank == layout.stage_to_rank[-1] else 0
    tied = tied_parameters if rank == layout.stage_to_rank[-1] else 0
    return state.held(work.parameters + tied) + int(held * (work.saved - head)) + head


def _cut(
    layout: Layout,
    setting: Setting,
    model: StepModel,
    line: Line,
    lookup: Work,
    lookers: frozenset[int],
    tied_parameters: int,
) -> Boundaries | None:
    state = state_of(layout, setting, model)
    load, ranks, num_stages = load_of(layout), layout.mesh.pp_degree, len(layout.stage_to_rank)
    per_rank = num_stages // ranks

    def room(rank: int, work: Work) -> bool:
        assert setting.memory_bytes is not None
        return weigh(line, layout, state, rank, work, tied_parameters) <= setting.memory_bytes

    if layout.stages is not None:
        return _boundaries(layout.stages, line)
    if num_stages > len(line.units):
        return None
    if layout.cuts == "even":
        return at_units(even_sizes([unit.cost.name for unit in line.units], num_stages))
    extra = [load(lookup) if rank in lookers else 0 for rank in range(ranks)]
    if layout.cuts == "whole":
        limited = room if setting.memory_bytes is not None else None
        if layout.is_v:
            return whole_units_v(line, ranks, load, limited)
        return whole_cut(line, num_stages, load, limited if per_rank == 1 else None)
    if not layout.is_v:
        return fractional_cut(line, num_stages, load, [extra[rank] // per_rank for rank in layout.stage_to_rank])
    poured = state.held(embedding_parameters(layout, setting)) if layout.sharded else 0
    return fractional_v_cut(
        line,
        ranks,
        load,
        lambda rank, work: weigh(line, layout, state, rank, work, tied_parameters),
        poured,
        extra=extra,
        share=layout.share,
    )


def step_costs(staged: Staged, setting: Setting, model: StepModel, *, lookups: bool = False) -> StepCosts:
    """What every action and message of the stages costs; what the executor adds to an action occupies its rank.

    Args:
        lookups: the lists name the lookups (EF, EB) of a sharded embedding. Where they do not, each counts with the F
            and the backward of its rank's first stage: a search moves those, and lookups follow.
    """
    layout = staged.layout
    num_stages = len(staged.works)
    occupied = overheads_ns(staged, setting, model, lookups=lookups)
    for number, work in enumerate(staged.works):
        occupied[number, Kind.F] += work.tp_forward
        occupied[number, Kind.B] += work.tp_backward
        occupied[number, Kind.I] += work.tp_input_grad
    message_bytes: dict[StageKind, int] = {}
    for number in range(1, num_stages):
        num_bytes = staged.line.message_bytes(staged.boundaries[number])
        message_bytes[number - 1, Kind.SEND_F] = message_bytes[number, Kind.SEND_B] = num_bytes
    pairs = {pair for pair in zip(staged.stage_to_rank, staged.stage_to_rank[1:]) if pair[0] != pair[1]}
    if not lookups:
        times, action_bytes = durations(_with_lookups(staged)), kept_bytes(staged)
    else:
        times, action_bytes = _apart(staged)
        for stage in _looking_up(staged):
            message_bytes[stage, Kind.EF] = message_bytes[stage, Kind.EB] = staged.line.whole_carry_bytes
        home = staged.stage_to_rank[0]
        pairs |= {(home, rank) for rank in staged.lookers if rank != home}
    hops: dict[tuple[int, int], Hop] = {}
    for one, other in sorted(pairs | {(b, a) for a, b in pairs}):
        hops[one, other] = model.hop(same_host=not crosses_nodes(layout.mesh, setting, one, other))
    return StepCosts(
        times,
        tensor_parallel=occupied,
        hops=hops,
        message_bytes=message_bytes,
        action_bytes=action_bytes,
    )


def overheads_ns(staged: Staged, setting: Setting, model: StepModel, *, lookups: bool) -> dict[StageKind, int]:
    """What every action takes beside its compute and its collectives: the executor's part, and handing over or taking
    messages, whose tensors go one by one.

    Args:
        lookups: as `step_costs`; where they are no actions of their own, the first stage of their rank has their part.
    """
    occupied = {(number, kind): model.action_ns for number in range(len(staged.works)) for kind in (*_ACTED, Kind.W)}

    def post(one: int, other: int, num_bytes: int) -> int:
        return model.post_ns(num_bytes, same_host=not crosses_nodes(staged.layout.mesh, setting, one, other))

    for number in range(1, len(staged.works)):
        before, after = staged.stage_to_rank[number - 1 : number + 1]
        if before == after:
            continue
        num_bytes = staged.line.message_bytes(staged.boundaries[number])
        tensors = _MESSAGE_TENSORS if staged.boundaries[number].part else 1
        posted = tensors * post(before, after, num_bytes // tensors)
        for stage in (number - 1, number):
            for kind in _ACTED:
                occupied[stage, kind] += posted
    home = staged.stage_to_rank[0]
    for stage in _looking_up(staged) if staged.lookers else ():
        rank = staged.stage_to_rank[stage]
        peers = staged.lookers - {home} if rank == home else {home}
        posted = sum(post(rank, peer, staged.line.whole_carry_bytes) for peer in peers)
        for own, counted in ((Kind.EF, (Kind.F,)), (Kind.EB, (Kind.B, Kind.I))):
            if lookups:
                occupied[stage, own] = model.action_ns + posted
            else:
                for kind in counted:
                    occupied[stage, kind] += model.action_ns + posted
    return occupied


def _looking_up(staged: Staged) -> tuple[int, ...]:
    """The stages that lookups are named by: the first of every rank with rows, and stage 0, where the sum is made."""
    ranks = {staged.stage_to_rank[0], *staged.lookers}
    return tuple(sorted(staged.stage_to_rank.index(rank) for rank in ranks))


def _apart(staged: Staged) -> tuple[dict[StageKind, int], ActionBytes]:
    """Times and bytes of stages and, as actions of their own, of lookups in rows."""
    times, held = durations(staged.works), kept_bytes(staged)
    look_up, add = durations([staged.lookup])[0, Kind.F], durations([staged.lookup])[0, Kind.B]
    for stage in _looking_up(staged):
        has_rows = staged.stage_to_rank[stage] in staged.lookers
        times |= {(stage, Kind.EF): look_up * has_rows, (stage, Kind.EB): add * has_rows}
    kept, freed = dict(held.kept), dict(held.freed)
    for rank in staged.lookers:
        stage = staged.stage_to_rank.index(rank)
        kept[stage, Kind.EF] = freed[stage, Kind.EB] = staged.lookup.saved
    sums = Received(staged.line.whole_carry_bytes, staged.line.whole_carry_bytes * _passes_on(staged), (Kind.F,))
    return times, ActionBytes(kept, freed, held.temporary, {**held.received, (0, Kind.EF): sums})


def _passes_on(staged: Staged) -> bool:
    """Whether stage 0 keeps the sum of what was looked up itself, and not what tensor ranks make of it."""
    return staged.layout.mesh.tp_degree == 1 and bool(staged.works[0].saved)


def _with_lookups(staged: Staged) -> Sequence[Work]:
    """Lookups counted to the first stage of each rank that has rows."""
    works = list(staged.works)
    for rank in staged.lookers:
        first = staged.stage_to_rank.index(rank)
        works[first] = plus(works[first], staged.lookup)
    return works


def kept_bytes(staged: Staged) -> ActionBytes:
    """F keeps what is saved; I leaves what W needs, more or less than that; W, or a whole B, frees everything.

    A stage that begins inside a unit received the sum so far beside the normed input: nothing reads it again, but the
    message's buffers go back to their pool together.
    """
    kept: dict[StageKind, int] = {}
    freed: dict[StageKind, int] = {}
    temporary: dict[StageKind, int] = {}
    for number, work in enumerate(staged.works):
        start, stop = staged.boundaries[number : number + 2]
        if start.part and staged.stage_to_rank[number - 1] != staged.stage_to_rank[number]:
            more = staged.line.whole_carry_bytes if work.saved else 0
            work = work._replace(saved=work.saved + more, until_w=work.until_w + more)
        temporary[number, Kind.I] = staged.line.in_i(start, stop)
        temporary[number, Kind.B] = staged.line.in_b(start, stop)
        kept[number, Kind.F] = work.saved
        kept[number, Kind.I] = max(0, work.until_w - work.saved)
        freed[number, Kind.I] = max(0, work.saved - work.until_w)
        freed[number, Kind.W] = work.until_w
        freed[number, Kind.B] = work.saved
    return ActionBytes(kept, freed, temporary, _received(staged))


def _received(staged: Staged) -> dict[StageKind, Received]:
    """What becomes of the messages that stages receive.

    F keeps its input, and the I of a stage that begins with a whole unit is done with it; the products of a later piece
    read it in W. So they do with the gradient of the last unit's sum, where the unit has products at all.
    """
    found: dict[StageKind, Received] = {}
    line, train = staged.line, bool(staged.line.total.saved)
    for number in range(1, len(staged.works)):
        cut = staged.boundaries[number]
        if staged.stage_to_rank[number - 1] == staged.stage_to_rank[number]:
            continue
        num_bytes = line.message_bytes(cut)
        last = cut.unit if cut.part else cut.unit - 1
        waits = bool(line.units[last].whole.until_w)
        done = (Kind.W, Kind.B) if cut.part else (Kind.I, Kind.B)
        found[number, Kind.RECV_F] = Received(num_bytes, num_bytes if train else 0, done if train else (Kind.F,))
        found[number - 1, Kind.RECV_B] = Received(
            num_bytes,
            line.whole_carry_bytes if cut.part and waits else line.carry_bytes if waits else 0,
            (Kind.W, Kind.B) if waits else (Kind.I, Kind.B),
        )
    return found


def lower_bound_ns(staged: Staged, setting: Setting, model: StepModel) -> int:
    """No step of these stages is shorter: a rank waits for its first input, does its work, and with whole backwards
    its last gradient goes all the way back (arXiv 2104.04473, section 2.2, for unequal stages).
    """
    m, fused = staged.layout.num_microbatches, staged.layout.is_fused
    costs = step_costs(staged, setting, model, lookups=True)

    def takes(stage: int, *kinds: Kind) -> Time:
        return sum(costs.compute(stage, kind) + costs.collectives(stage, kind) for kind in kinds)

    def backward(stage: int) -> Time:
        whole = takes(stage, Kind.B)
        return whole if fused else min(whole, takes(stage, Kind.I, Kind.W))  # a search may join what stands together

    bound = arrived = Fraction(0)
    for number, rank in enumerate(staged.stage_to_rank):
        if rank not in staged.stage_to_rank[:number]:
            mine = [other for other, owner in enumerate(staged.stage_to_rank) if owner == rank]
            lookups = (Kind.EF, Kind.EB) if rank in staged.lookers else ()
            work = sum(takes(other, Kind.F) + backward(other) for other in mine)
            looking_up = sum(costs.compute(number, kind) for kind in lookups)  # may be done while an input is awaited
            bound = max(bound, m * Fraction(work) + max(arrived, m * looking_up))
        arrived += takes(number, Kind.F) + (backward(number) if fused else 0)
    return int(bound)
