"""What every action and message of a layout's stages costs, in time and bytes: ready to be replayed."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from hybrid_runtime.planner.layout import Setting, crosses_nodes
from hybrid_runtime.planner.staged import Staged
from hybrid_runtime.planner.step_model import StepModel
from hybrid_runtime.planner.work import Work, durations, plus
from hybrid_runtime.schedule.actions import Kind
from hybrid_runtime.schedule.step_costs import ActionBytes, Hop, Received, StageKind, StepCosts, Time

_ACTED = (Kind.F, Kind.B, Kind.I)  # actions with messages
_MESSAGE_TENSORS = 2  # of a carry inside a unit: the sum so far and the normed input


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


def kept_bytes(staged: Staged, rank: int | None = None) -> ActionBytes:
    """F keeps what is saved; I leaves what W needs, more or less than that; W, or a whole B, frees everything.

    A stage that begins inside a unit received the sum so far beside the normed input: nothing reads it again, but the
    message's buffers go back to their pool together.

    Args:
        rank: of its stages alone, and without what becomes of messages.
    """
    kept: dict[StageKind, int] = {}
    freed: dict[StageKind, int] = {}
    temporary: dict[StageKind, int] = {}
    for number, work in enumerate(staged.works):
        if rank is not None and staged.stage_to_rank[number] != rank:
            continue
        start, stop = staged.boundaries[number : number + 2]
        if start.part and staged.stage_to_rank[number - 1] != staged.stage_to_rank[number]:
            more = staged.line.whole_carry_bytes if work.saved else 0
            work = work._replace(saved=work.saved + more, until_w=work.until_w + more)
        temporary[number, Kind.I] = staged.lines[number].in_i(start, stop)
        temporary[number, Kind.B] = staged.lines[number].in_b(start, stop)
        kept[number, Kind.F] = work.saved
        kept[number, Kind.I] = max(0, work.until_w - work.saved)
        freed[number, Kind.I] = max(0, work.saved - work.until_w)
        freed[number, Kind.W] = work.until_w
        freed[number, Kind.B] = work.saved
    return ActionBytes(kept, freed, temporary, _received(staged) if rank is None else {})


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
