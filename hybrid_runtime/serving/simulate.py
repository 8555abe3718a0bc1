"""A round of the load without a model: the real batcher and the real source, with a clock that costs move.

    rank 0   takes in what has arrived and sends items until none can be sent; then it waits for the oldest one's
             tokens, or for a request that comes first
    stage k  takes an item when it has arrived and the one before is done

    stage 0  | P0 | P1 | D0 | D1 |         P prefill, D decode, of microbatches 0 and 1
    stage 1       | P0 | P1 | D0 | D1 |
    returns            ^    ^ sampled tokens of P0, then of P1: D0 may follow

The engine does the same with real stages (`inference/engine.py`): prediction and measurement differ in durations only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, Protocol

from hybrid_runtime.serving.batcher import Batcher
from hybrid_runtime.serving.requests import Answer, Item, Source


class StageTime(NamedTuple):
    """What an item takes a rank.

        | fetch | before | compute and collectives | after |

    Attributes:
        compute_ns, tensor_parallel_ns: from when its carry is there until its output is: computing, and collectives.
        before_ns: what the runtime does before that, once it may.
        after_ns: behind it, before the rank looks for what comes next.
        fetch_ns: waiting for a carry that is there already when the rank looks for it.
    """

    compute_ns: int
    tensor_parallel_ns: int = 0
    before_ns: int = 0
    after_ns: int = 0
    fetch_ns: int = 0

    def paced(self, millionths: int) -> StageTime:
        """The same on a core that needs so much of the usual time."""
        return self._replace(compute_ns=self.compute_ns * millionths // 10**6)


class ItemTimes(NamedTuple):
    """An item's way through the pipeline.

    Attributes:
        stages: what it takes each of them.
        hops_ns: from the end of computing on a stage until the next one, which waits, begins; one fewer than stages.
        back_ns: from the end of computing on the last stage until rank 0, which waits, knows its tokens.
    """

    stages: tuple[StageTime, ...]
    hops_ns: tuple[int, ...]
    back_ns: int


class PipelineCosts(Protocol):
    """Durations of items on a pipeline with one stage on each rank."""

    @property
    def num_stages(self) -> int:
        """Pipeline ranks."""

    def times_of(self, item: Item) -> ItemTimes:
        """What an item takes; asked for once for every item that is sent."""


@dataclass(slots=True)
class ServedTime:
    """What a rank did in a round; whatever is missing of the round's time it was idle."""

    prefill_ns: int = 0
    decode_ns: int = 0
    tensor_parallel_ns: int = 0
    overhead_ns: int = 0

    @property
    def total_ns(self) -> int:
        return self.prefill_ns + self.decode_ns + self.tensor_parallel_ns + self.overhead_ns


@dataclass(frozen=True, slots=True)
class Served:
    """A simulated round.

    Attributes:
        round_ns: until the last answer is whole.
        answers: in the order in which they ended.
        ranks: by stage.
        num_prefills, num_decodes: items.
    """

    round_ns: int
    answers: tuple[Answer, ...]
    ranks: tuple[ServedTime, ...]
    num_prefills: int
    num_decodes: int


def simulate(source: Source, batcher: Batcher, costs: PipelineCosts) -> Served:
    """Serves a round; every answer has as many tokens as its request allows."""
    return _Simulation(source, batcher, costs).run()


def mean_of(rounds: Sequence[Served]) -> Served:
    """A round of them on average, with all their answers."""
    first, count = rounds[0], len(rounds)
    if count == 1:
        return first
    names = tuple(field.name for field in fields(ServedTime))
    ranks = (
        ServedTime(*(sum(getattr(one.ranks[rank], name) for one in rounds) // count for name in names))
        for rank in range(len(first.ranks))
    )
    answers = tuple(answer for one in rounds for answer in one.answers)
    round_ns = sum(one.round_ns for one in rounds) // count
    return Served(round_ns, answers, tuple(ranks), first.num_prefills, first.num_decodes)


class _Simulation:
    def __init__(self, source: Source, batcher: Batcher, costs: PipelineCosts) -> None:
        self._source, self._batcher, self._costs = source, batcher, costs
        self._free_ns = [0] * costs.num_stages  # when each stage is done with what it has
        self._back: deque[tuple[int, Item]] = deque()  # when rank 0 will know the tokens of an item
        self._answers: list[Answer] = []
        self._ranks = tuple(ServedTime() for _ in range(costs.num_stages))
        self._sent = {"prefill": 0, "decode": 0}
        self._never_stop: dict[int, int] = {}

    def run(self) -> Served:
        now_ns = last_ns = 0
        while not (self._source.is_exhausted and self._batcher.is_idle):
            self._take_in(now_ns)
            item = self._batcher.next_item()
            if item is not None:
                now_ns = self._send(item, now_ns)
                if len(self._ranks) > 1:
                    continue
            elif not self._back and self._source.next_ns is None:  # all that came in was refused
                assert self._batcher.is_idle, "nothing is under way, and requests are left"
                continue
            now_ns, brought = self._wait(now_ns)
            last_ns = now_ns if brought else last_ns
        return Served(last_ns, tuple(self._answers), self._ranks, self._sent["prefill"], self._sent["decode"])

    def _wait(self, now_ns: int) -> tuple[int, bool]:
        """Until the oldest item is back or a request comes; when that is, and whether the item brought tokens."""
        next_ns = self._source.next_ns
        if self._back and (next_ns is None or self._back[0][0] <= max(next_ns, now_ns)):
            back_ns, item = self._back.popleft()
            now_ns = max(now_ns, back_ns)
            progress = self._batcher.sampled(item, self._tokens(item), now_ns)
            for answer in progress.ended:
                self._end(answer, now_ns)
            return now_ns, bool(progress.tokens)
        assert next_ns is not None, "nobody waits"
        return max(now_ns, next_ns), False

    def _take_in(self, now_ns: int) -> None:
        while due := self._source.due(now_ns):
            for request in due:
                self._never_stop[request.id] = next(id for id in range(2**31) if id not in request.stop_tokens)
                refused = self._batcher.submit(request, now_ns)
                if refused is not None:
                    self._end(refused, now_ns)

    def _end(self, answer: Answer, now_ns: int) -> None:
        self._answers.append(answer)
        self._source.ended(answer, now_ns)

    def _tokens(self, item: Item) -> list[int]:
        return [self._never_stop[row.request] for row in item.rows if row.answer_index >= 0]

    def _send(self, item: Item, now_ns: int) -> int:
        """The way of an item through all stages; when the first one is free again."""
        self._sent[item.kind] += 1
        stages, hops_ns, item_back_ns = self._costs.times_of(item)
        free_ns, end_ns = self._free_ns, now_ns
        for stage, (took, rank) in enumerate(zip(stages, self._ranks, strict=True)):
            compute_ns, tensor_parallel_ns, before_ns, after_ns, fetch_ns = took
            if stage:
                end_ns = max(end_ns + hops_ns[stage - 1], free_ns[stage] + fetch_ns)
            end_ns += before_ns + compute_ns + tensor_parallel_ns
            free_ns[stage] = end_ns + after_ns
            if item.kind == "prefill":
                rank.prefill_ns += compute_ns
            else:
                rank.decode_ns += compute_ns
            rank.tensor_parallel_ns += tensor_parallel_ns
            rank.overhead_ns += before_ns + after_ns
        back_ns = end_ns + item_back_ns
        self._back.append((max(back_ns, self._back[-1][0] if self._back else 0), item))
        return free_ns[0]
