"""The simulation against closed forms: fill and drain, chunks of a prompt, decodes that take turns."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import pytest

from hybrid_runtime.predicted_serving import LatencyTimes
from hybrid_runtime.serving.batcher import Batcher
from hybrid_runtime.serving.latencies import latency_of, latency_times, quantile
from hybrid_runtime.serving.load import ClosedLoop, Listed, traffic_of
from hybrid_runtime.serving.requests import Item, Request
from hybrid_runtime.serving.simulate import ItemTimes, Served, StageTime, simulate
from tests.serving.deployments import serving
from tests.serving.traffic import LIMITS, asked


@dataclass(frozen=True)
class Costs:
    """Every stage takes its own time for an item, or so much for each of its tokens; a message takes `hop`."""

    stages: tuple[int, ...]
    hop: int = 0
    by_token: bool = False

    @property
    def num_stages(self) -> int:
        return len(self.stages)

    def times_of(self, item: Item) -> ItemTimes:
        times = [StageTime(time * (len(item.tokens) if self.by_token else 1)) for time in self.stages]
        return ItemTimes(tuple(times), (self.hop,) * (len(times) - 1), self.hop)


def served(
    requests: list[Request], costs: Costs, microbatches: int, size: int = 1, chunk: int | None = None, most: int = 0
) -> Served:
    return simulate(Listed(requests), Batcher(microbatches, size, LIMITS, chunk, most or None), costs)


@pytest.mark.parametrize("stages", [(5, 5, 5), (3, 9, 4), (7,), (9, 1, 1, 8)])
def test_prefills_fill_and_drain(stages: tuple[int, ...]) -> None:
    """T = sum t_k + (m - 1) max t_k + p c, the last c being the way back."""
    m, c = 6, 2 * (len(stages) > 1)
    found = served([asked(number, 4, 1) for number in range(m)], Costs(stages, c), microbatches=m)
    assert found.round_ns == sum(stages) + (m - 1) * max(stages) + len(stages) * c
    assert [rank.prefill_ns for rank in found.ranks] == [m * time for time in stages]
    assert (found.num_prefills, found.num_decodes) == (m, 0)


@pytest.mark.parametrize("chunks", [1, 2, 4, 8])
def test_chunks_of_one_prompt_fill_the_pipeline(chunks: int) -> None:
    """First token after (n + p - 1)/n C/p + p c: all of it in every stage if n is 1, then less and less."""
    p, tokens, time, c = 4, 32, 3, 2
    found = served([asked(0, tokens, 1)], Costs((time,) * p, c, by_token=True), microbatches=8, chunk=tokens // chunks)
    one_device = p * tokens * time
    assert found.answers[0].first_token_ns == Fraction(chunks + p - 1, chunks) * one_device / p + p * c


@pytest.mark.parametrize(("stages", "c"), [((6, 6, 6), 2), ((4, 9, 5), 0), ((10,), 0)])
@pytest.mark.parametrize("microbatches", [1, 2, 3, 5])
def test_decodes_take_turns(stages: tuple[int, ...], c: int, microbatches: int) -> None:
    """A token every max(sum t_k + p c, m max t_k): the pipeline's length, or what its slowest stage does for all."""
    tokens = 30
    found = served([asked(number, 1, tokens) for number in range(microbatches)], Costs(stages, c), microbatches)
    gap = max(sum(stages) + len(stages) * c, microbatches * max(stages))
    gaps = [latency_of(answer, "output_token") for answer in found.answers]
    assert gaps == [pytest.approx(gap, abs=max(stages) / 4)] * microbatches
    assert [rank.decode_ns for rank in found.ranks] == [microbatches * (tokens - 1) * time for time in stages]


def test_one_in_flight_is_as_slow_as_the_pipeline_is_long() -> None:
    requests = [asked(number, 1, 20) for number in range(4)]
    alone = served(requests, Costs((5, 5)), 4, most=1)
    together = served(requests, Costs((5, 5)), 4)
    assert alone.round_ns == 4 * 20 * 10
    assert together.round_ns == 4 * 20 * 5 + 5


def test_nobody_who_generates_waits_for_more_than_a_chunk() -> None:
    """A long prompt comes while another sequence generates, on one rank: a token, a chunk, a token, ..."""
    late = asked(1, 40, 1, arrival_ns=50)
    costs = Costs((10,), by_token=True)
    chunked = served([asked(0, 1, 20), late], costs, 1, size=2, chunk=4)
    whole = served([asked(0, 1, 20), late], costs, 1, size=2)
    first_tokens = [
        {answer.request.id: latency_of(answer, "first_token") for answer in one.answers} for one in (chunked, whole)
    ]
    assert first_tokens == [{0: 10, 1: 10 * 40 + 9 * 10}, {0: 10, 1: 400}]  # nine tokens between ten chunks
    assert chunked.round_ns == whole.round_ns == 10 * (1 + 19 + 40)


def test_a_closed_loop_never_has_more_requests_than_clients() -> None:
    requests = [asked(number, 2, 4) for number in range(9)]
    found = simulate(ClosedLoop(requests, 2), Batcher(2, 2, LIMITS), Costs((3, 3)))
    for answer in found.answers:
        meanwhile = [one for one in found.answers if one.arrival_ns <= answer.arrival_ns < one.ended_ns]
        assert len(meanwhile) <= 2
    assert sorted(answer.request.id for answer in found.answers) == list(range(9))


def test_an_open_loop_waits_for_arrivals() -> None:
    found = served([asked(0, 1, 1, arrival_ns=1000), asked(1, 1, 1, arrival_ns=5000)], Costs((10,)), 1)
    assert [(answer.admitted_ns, answer.ended_ns) for answer in found.answers] == [(1000, 1010), (5000, 5010)]
    assert found.round_ns == 5010


def test_a_deployments_round_with_stop_tokens_and_refused_requests() -> None:
    traffic = traffic_of(serving(load={"stop_tokens": [0, 1]}))
    found = simulate(traffic.begin(), Batcher(2, 2, LIMITS), Costs((1, 1)))
    ends = {answer.request.id: answer.end for answer in found.answers}
    assert set(ends.values()) <= {"length", "refused"}  # some prompts have tokens that this batcher does not know
    assert len(ends) == 6


def test_quantiles_are_values_that_were_seen() -> None:
    times = list(range(1, 11))
    assert [quantile(times, Fraction(part, 100)) for part in (1, 50, 51, 90, 99, 100)] == [1, 5, 6, 9, 10, 10]
    found = served([asked(number, 1, 1 + number) for number in range(3)], Costs((10,)), 3)
    assert [answer.ended_ns for answer in found.answers] == [10, 40, 60]
    assert latency_times(found.answers, "request") == LatencyTimes(median_ns=40, p90_ns=60, p99_ns=60)
    assert latency_times(found.answers[:1], "output_token") is None
