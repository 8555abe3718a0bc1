"""The offline checker: proves a set of lowered lists right before any process starts.

    1 coverage          every (stage, microbatch) has one F and, when training, one B or one I and one W
    2 dependencies      walked with buffered sends, all lists finish
    3 ordered messages  on each directed edge the RECVs are exactly the SENDs, in the same order
    4 no deadlock       walked with rendezvous sends, all lists finish
    5 receive depth     how many receive buffers each edge needs (a figure, not a rule)
    6 peak in flight    how many microbatches each rank holds (a figure, not a rule)
    7 gradient order    each stage's B (or W) run in increasing microbatch order, as in one process
    8 lookups           of a sharded embedding: every rank that takes part has one EF and, when training, one EB of
                        every microbatch, in the order of stage 0's rank, because sums of one group match in order

Walking makes sense only for lists that pass 1, 3 and 8, and a list that is stuck with buffered sends is stuck with
rendezvous too, so 2 and 4 are looked at only when these found nothing. 7 comes last: two actions that changed places
are first of all one that waits for the other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import NamedTuple

from hybrid_runtime.schedule.actions import Action, ActionList, Kind, parse_action
from hybrid_runtime.schedule.finding import Finding
from hybrid_runtime.schedule.footprint import peak_in_flight, receive_depth
from hybrid_runtime.schedule.lower import lower
from hybrid_runtime.schedule.messages import DirectedEdge, edge_name, edge_of, partner, sent_by
from hybrid_runtime.schedule.placement import StageToRank
from hybrid_runtime.schedule.walk import walk


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Outcome of `check`.

    Attributes:
        findings: everything wrong; empty if the lists are right.
        receive_depth: per directed edge "src>dst", receive buffers needed; empty when there are findings.
        peak_in_flight: per pipeline rank, (stage, microbatch) pairs held at once.
    """

    findings: tuple[Finding, ...]
    receive_depth: dict[str, int]
    peak_in_flight: tuple[int, ...]


class _Placed(NamedTuple):
    """An action and where it stands."""

    rank: int
    position: int
    action: Action


def check(lists: Sequence[ActionList], stage_to_rank: StageToRank, num_microbatches: int, workload: str) -> CheckResult:
    """Checks the lowered lists of all pipeline ranks, one list per rank."""
    placed = _placed(lists)
    findings = [*_ranks(lists, stage_to_rank), *_places(placed, stage_to_rank, num_microbatches)]
    if not findings:
        findings += _coverage(placed, lists, stage_to_rank, num_microbatches, workload)
        findings += _messages(placed, lists, stage_to_rank)
        findings += _lookups(lists, stage_to_rank, num_microbatches, workload)
        if not findings:
            findings += walk(lists, stage_to_rank, rendezvous=False) or walk(lists, stage_to_rank, rendezvous=True)
        findings += _gradient_order(placed)
    return CheckResult(
        tuple(findings),
        {} if findings else receive_depth(lists, stage_to_rank),
        tuple(map(peak_in_flight, lists)),
    )


def check_compute(
    lists: Sequence[ActionList], stage_to_rank: StageToRank, num_microbatches: int, workload: str
) -> CheckResult:
    """Checks lists without SENDs and RECVs: as `check` would once they are lowered, with positions in these lists."""
    placed = _placed(lists)
    findings = [*_ranks(lists, stage_to_rank), *_places(placed, stage_to_rank, num_microbatches)]
    if not findings:
        findings += _coverage(placed, lists, stage_to_rank, num_microbatches, workload)
        findings += _lookups(lists, stage_to_rank, num_microbatches, workload)
        findings += _gradient_order(placed) if findings else ()
    if findings:
        return CheckResult(tuple(findings), {}, tuple(map(peak_in_flight, lists)))
    result = check(lower(lists, stage_to_rank), stage_to_rank, num_microbatches, workload)
    return replace(result, findings=tuple(_without_messages(finding, lists) for finding in result.findings))


def _without_messages(finding: Finding, lists: Sequence[ActionList]) -> Finding:
    """What blocks lowered lists is always a compute action: a SEND stands behind what it sends."""
    return finding._replace(position=lists[finding.rank].index(parse_action(finding.action)))


def _placed(lists: Sequence[ActionList]) -> list[_Placed]:
    return [
        _Placed(rank, position, action) for rank, actions in enumerate(lists) for position, action in enumerate(actions)
    ]


def _ranks(lists: Sequence[ActionList], stage_to_rank: StageToRank) -> Iterator[Finding]:
    for rank in range(max(len(lists), max(stage_to_rank) + 1)):
        if rank >= len(lists):
            yield Finding(rank, 0, "-", f"has no action list, only {len(lists)} were given")
        elif rank not in stage_to_rank:
            yield Finding(rank, 0, "-", "holds no stage")


def _places(placed: Sequence[_Placed], stage_to_rank: StageToRank, num_microbatches: int) -> Iterator[Finding]:
    """Actions whose stage or microbatch does not exist, lives elsewhere, or that talk to nobody."""
    for rank, position, action in placed:
        if action.stage >= len(stage_to_rank):
            message = f"there is no stage {action.stage}, only {len(stage_to_rank)} stages"
        elif action.microbatch >= num_microbatches:
            message = f"there is no microbatch {action.microbatch}, only {num_microbatches}"
        elif stage_to_rank[action.stage] != rank:
            message = f"stage {action.stage} lives on pipeline rank {stage_to_rank[action.stage]}"
        elif action.kind.is_lookup and action.stage != list(stage_to_rank).index(rank):
            message = f"lookups name a rank by its first stage, here {list(stage_to_rank).index(rank)}"
        elif not action.kind.is_compute and not _crosses(action, stage_to_rank):
            message = "there is no stage on another rank to talk to"
        else:
            continue
        yield Finding(rank, position, str(action), message)


def _crosses(message: Action, stage_to_rank: StageToRank) -> bool:
    other = partner(message).stage
    return 0 <= other < len(stage_to_rank) and stage_to_rank[other] != stage_to_rank[message.stage]


def _coverage(
    placed: Sequence[_Placed],
    lists: Sequence[ActionList],
    stage_to_rank: StageToRank,
    num_microbatches: int,
    workload: str,
) -> Iterator[Finding]:
    seen: set[Action] = set()
    for rank, position, action in placed:
        if not action.kind.is_compute:
            continue
        if action in seen:
            yield Finding(rank, position, str(action), "is done twice")
        elif action.kind.is_served:
            yield Finding(rank, position, str(action), "is work on requests, which stands in records and not in lists")
        elif workload == "forward" and action.kind not in (Kind.F, Kind.EF):
            yield Finding(rank, position, str(action), "a forward-only schedule has no backward")
        seen.add(action)
    for stage, rank in enumerate(stage_to_rank):
        for microbatch in range(num_microbatches):
            kinds = {kind for kind in Kind if Action(stage, kind, microbatch) in seen}
            for kind, message in _uncovered(kinds, workload):
                yield Finding(rank, len(lists[rank]), str(Action(stage, kind, microbatch)), message)


def _uncovered(kinds: set[Kind], workload: str) -> Iterator[tuple[Kind, str]]:
    """What is missing from, or too much in, the kinds of work done for one (stage, microbatch)."""
    if Kind.F not in kinds:
        yield Kind.F, "is missing"
    if workload == "forward":
        return
    halves = kinds & {Kind.I, Kind.W}
    if Kind.B in kinds and halves:
        yield Kind.B, "is done whole and also as " + " and ".join(sorted(kind.value for kind in halves))
    elif Kind.B not in kinds and not halves:
        yield Kind.B, "is missing, and so are I and W"
    elif Kind.B not in kinds and len(halves) == 1:
        yield ({Kind.I, Kind.W} - halves).pop(), f"is missing, but there is its {halves.pop().value}"


def _lookups(
    lists: Sequence[ActionList], stage_to_rank: StageToRank, num_microbatches: int, workload: str
) -> Iterator[Finding]:
    home = stage_to_rank[0]
    ranks = {rank for rank, actions in enumerate(lists) if any(action.kind.is_lookup for action in actions)}
    for kind in (Kind.EF, Kind.EB) if workload == "train" else (Kind.EF,):
        orders = [[action.microbatch for action in actions if action.kind is kind] for actions in lists]
        for rank in sorted({home, *ranks} if ranks else ()):
            stage = list(stage_to_rank).index(rank)
            missing = sorted(set(range(num_microbatches)) - set(orders[rank]))
            if missing:
                yield Finding(rank, len(lists[rank]), str(Action(stage, kind, missing[0])), "is missing")
                continue
            other = next((pair for pair in zip(orders[rank], orders[home]) if pair[0] != pair[1]), None)
            if other is not None:
                action, there = Action(stage, kind, other[0]), Action(0, kind, other[1])
                message = f"stands where stage 0's rank has {there}: all ranks start a sum's parts in one order"
                yield Finding(rank, lists[rank].index(action), str(action), message)


def _messages(placed: Sequence[_Placed], lists: Sequence[ActionList], stage_to_rank: StageToRank) -> Iterator[Finding]:
    sends: dict[DirectedEdge, list[_Placed]] = defaultdict(list)
    receives: dict[DirectedEdge, list[_Placed]] = defaultdict(list)
    due: set[Action] = set()
    for item in placed:
        if item.action.kind.is_compute:
            send = sent_by(item.action, stage_to_rank)
            due |= {send} if send is not None else set()
        else:
            side = sends if item.action.kind.is_send else receives
            side[edge_of(item.action, stage_to_rank)].append(item)
    for edge in sorted(sends.keys() | receives.keys()):
        yield from _first_difference(edge, sends[edge], receives[edge], lists)
    yield from _not_sent_once(due, [item for listed in sends.values() for item in listed], lists, stage_to_rank)


def _first_difference(
    edge: DirectedEdge, sends: Sequence[_Placed], receives: Sequence[_Placed], lists: Sequence[ActionList]
) -> Iterator[Finding]:
    for number, (send, receive) in enumerate(zip_longest(sends, receives)):
        if send is None:
            message = f"no SEND is left for it on edge {edge_name(edge)}"
            yield Finding(receive.rank, receive.position, str(receive.action), message)
        elif receive is None:
            missing, end = partner(send.action), len(lists[edge[1]])
            yield Finding(edge[1], end, str(missing), f"is missing: {send.action} is sent on edge {edge_name(edge)}")
        elif receive.action != partner(send.action):
            message = f"message {number} on edge {edge_name(edge)} is {send.action}: SENDs and RECVs cross"
            yield Finding(receive.rank, receive.position, str(receive.action), message)
        else:
            continue
        return  # everything behind the first difference is its consequence


def _not_sent_once(
    due: set[Action], sends: Sequence[_Placed], lists: Sequence[ActionList], stage_to_rank: StageToRank
) -> Iterator[Finding]:
    seen: set[Action] = set()
    for rank, position, action in sends:
        if action in seen:
            yield Finding(rank, position, str(action), "is sent twice")
        elif action not in due:
            yield Finding(rank, position, str(action), "nothing makes what it sends")
        seen.add(action)
    for action in sorted(due - seen, key=str):
        rank = stage_to_rank[action.stage]
        yield Finding(rank, len(lists[rank]), str(action), "is missing: its result would never arrive")


def _gradient_order(placed: Sequence[_Placed]) -> Iterator[Finding]:
    """Floating-point sums depend on their order: gradients are added up in microbatch order."""
    last: dict[int, int] = {}
    for rank, position, action in placed:
        if action.kind not in (Kind.B, Kind.W):
            continue
        if action.microbatch < last.get(action.stage, -1):
            message = f"gradients of stage {action.stage} are added out of order, after microbatch {last[action.stage]}"
            yield Finding(rank, position, str(action), message)
        last[action.stage] = max(action.microbatch, last.get(action.stage, -1))
