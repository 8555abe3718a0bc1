"""Whether the records of a side that serves can be those of its load: every request once, in time, and its work done.

step     |-----------------------------------------------|      rank 0's window of the round
request     arrival -- admitted -- first token -- ended         in this order, inside the window
rank 0     0P0 0P1 0D0    0D1 0D0 ...                            all ranks: the same items in the same order
rank 1         1P0 1P1 1D0    1D1 ...                            and enough of them for the tokens
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.errors import RecordsError
from hybrid_runtime.plan import Plan
from hybrid_runtime.records import PHASES, PLANTED, RankRecords, StepRecord
from hybrid_runtime.schedule.actions import Kind, parse_action
from hybrid_runtime.serving.load import Asked, asked_of, clients_of
from hybrid_runtime.serving.request_records import RequestRecord
from hybrid_runtime.verifier.sequence import SLACK_NS

_PARSED = cache(parse_action)


def check_rounds(
    ranks: Sequence[RankRecords], requests: Sequence[RequestRecord], deployment: Deployment, plan: Plan
) -> None:
    """Refuses records that no honest run of this load leaves.

    Raises:
        RecordsError: a request is missing, too many, out of time or not the load's; tokens that no request got; ranks
            that did other items than their peers, or fewer than the tokens take.
    """
    asked, by_step = asked_of(deployment), grouped(requests)
    prompts: dict[int, int] = {}
    for step in ranks[0].steps:
        found = by_step.get(step.step, [])
        if step.purpose == PLANTED:
            _demand(not found, step, f"holds {len(found)} requests, and it was planted work")
            continue
        _check_requests(step, found, asked)
        _check_arrivals(step, found, asked, clients_of(deployment))
        _check_tokens(step, found, deployment)
        for request in found:
            same = prompts.setdefault(request.id, request.prompt_tokens) == request.prompt_tokens
            _demand(same, step, f"request {request.id} has another prompt than in the rounds before")
    unknown = sorted(by_step.keys() - {step.step for step in ranks[0].steps})
    if unknown:
        raise RecordsError(f"requests.jsonl: holds requests of step {unknown[0]}, which no rank has; it was edited")
    for row in zip(*(rank.measured() for rank in ranks), strict=True):
        _check_items(ranks, row, by_step[row[0].step], plan)


def grouped(requests: Sequence[RequestRecord]) -> dict[int, list[RequestRecord]]:
    """Requests by step, in the order of their records."""
    found: dict[int, list[RequestRecord]] = defaultdict(list)
    for request in requests:
        found[request.step].append(request)
    return dict(found)


def _check_requests(step: StepRecord, found: Sequence[RequestRecord], asked: Sequence[Asked]) -> None:
    """Every request of the load once, of the lengths that were asked for, its times in order and in the window."""
    ids = sorted(request.id for request in found)
    _demand(ids == list(range(len(asked))), step, f"has {len(ids)} requests, and the load has {len(asked)}, each once")
    for request in found:
        wanted = asked[request.id]
        times = [request.arrival_ns, request.admitted_ns, request.first_token_ns, request.ended_ns]
        known = [time for time in times if time is not None]
        inside = step.start_ns - SLACK_NS <= known[0] and known[-1] <= step.end_ns + SLACK_NS
        in_order = known == sorted(known)
        _demand(inside and in_order, step, f"request {request.id} has an impossible time")
        whole = len(known) == len(times) and request.output_tokens >= 1
        _demand(whole or not request.is_answered, step, f"request {request.id} was answered without a token")
        lengths = wanted.prompt_tokens in (None, request.prompt_tokens)
        _demand(lengths, step, f"request {request.id} has {request.prompt_tokens} tokens, not {wanted.prompt_tokens}")
        if request.is_answered and (most := wanted.most_tokens) is not None:
            full = request.output_tokens == most if request.end == "length" else request.output_tokens <= most
            _demand(full, step, f"request {request.id} ended by {request.end} after {request.output_tokens} of {most}")


def _check_arrivals(
    step: StepRecord, found: Sequence[RequestRecord], asked: Sequence[Asked], clients: int | None
) -> None:
    """They come when the load says: at the drawn times, or each when its client has its answer before."""
    arrivals, ends = (sorted(times) for times in _arrivals_and_ends(found))
    began = {request.arrival_ns - asked[request.id].arrival_ns for request in found}
    if clients is None:
        _demand(len(began) == 1, step, "requests arrived at other times than the load's seed gives")
        return
    first, later = arrivals[:clients], arrivals[clients:]
    _demand(len(set(first)) == 1, step, f"its {clients} clients did not begin together")
    _demand(later == ends[: len(later)], step, "a client sent a request at another time than when it had its answer")


def _arrivals_and_ends(found: Sequence[RequestRecord]) -> tuple[list[int], list[int]]:
    return [request.arrival_ns for request in found], [request.ended_ns for request in found]


def _check_tokens(step: StepRecord, found: Sequence[RequestRecord], deployment: Deployment) -> None:
    generates = deployment.workload.kind == "generate"
    tokens = sum(request.output_tokens if generates else request.prompt_tokens for request in found)
    what = "answers" if generates else "prompts"
    _demand(tokens == step.tokens, step, f"says {step.tokens} tokens, and its {what} have {tokens}")


def _check_items(
    ranks: Sequence[RankRecords], row: Sequence[StepRecord], found: Sequence[RequestRecord], plan: Plan
) -> None:
    """All ranks did the same items in the same order, and enough of them: an item has a row for each slot at most."""
    items = [_items(step) for step in row]
    for rank, own in zip(ranks, items, strict=True):
        _demand(own == items[0], row[0], f"{rank.path.name} holds other items than {ranks[0].path.name}")
    kinds = [kind for kind, _ in items[0]]
    room: Mapping[Kind, int] = {kind: kinds.count(kind) * plan.microbatch_size for kind in (Kind.P, Kind.D)}
    answered = [request for request in found if request.first_token_ns is not None]
    decoded = sum(request.output_tokens - 1 for request in answered)
    _demand(len(answered) <= room[Kind.P], row[0], f"{len(answered)} first tokens, and prefills for {room[Kind.P]}")
    _demand(decoded <= room[Kind.D], row[0], f"{decoded} tokens after the first, and decodes for {room[Kind.D]}")
    earliest = min((span.start_ns for span in row[0].spans if span.name not in PHASES), default=row[0].start_ns)
    if found:
        first = min(request.arrival_ns for request in found)
        _demand(first <= earliest + SLACK_NS, row[0], "work began before the first request came")


def _items(step: StepRecord) -> list[tuple[Kind, int]]:
    """(kind, microbatch) of everything that passed a rank."""
    actions = [_PARSED(span.name) for span in step.spans if span.name not in PHASES]
    wrong = next((action for action in actions if not action.kind.is_served), None)
    _demand(wrong is None, step, f"holds {wrong}, which is no work on requests")
    return [(action.kind, action.microbatch) for action in actions]


def _demand(holds: bool, step: StepRecord, what: str) -> None:
    if not holds:
        raise RecordsError(f"requests of step {step.step}: {what}; the file was edited, make the run again")
