"""Records -> costs -> replay: a replayed step, written down as ranks would, gives its own costs back."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from hybrid_runtime.errors import RecordsError
from hybrid_runtime.planner.measured_costs import measured_costs, pipeline_times_ns
from hybrid_runtime.records import OPTIMIZER, Header, RankRecords, Span, StepRecord, Wait, read_side
from hybrid_runtime.schedule.actions import Kind
from hybrid_runtime.schedule.messages import received_by
from hybrid_runtime.schedule.registry import find_schedule, generate
from hybrid_runtime.schedule.replay import replay_step
from hybrid_runtime.schedule.replayed import Replay
from hybrid_runtime.schedule.step_costs import Hop, StepCosts
from tests.verifier.synthetic import steady, write_run


def sample(folder: Path) -> tuple[Header, StepRecord]:
    """Any header and any measured step, to be filled with something else."""
    rank = read_side(write_run(folder, steady([10, 10], steps=1)))[0]
    return rank.header, rank.steps[-1]


def written(
    step: Replay, sample: tuple[Header, StepRecord], *, steps: int = 1, offset_ns: int = 0
) -> list[RankRecords]:
    """The records of a replayed step. Every rank's clock is `offset_ns` behind the one before it."""
    header, record = sample
    place, ranks = step.rows.stage_to_rank, list[RankRecords]()
    for rank, timed in enumerate(step.ranks):
        behind_ns = offset_ns * rank
        records = []
        for number in range(steps):
            spans, waits, clock_ns = list[Span](), list[Wait](), 0
            for action, start, end in timed:
                collective_ns = int(step.costs.collectives(action.stage, action.kind))
                start_ns, end_ns = int(start) - behind_ns, int(end) - behind_ns
                if receive := received_by(action, place):
                    waits.append(Wait(str(receive), clock_ns - behind_ns, start_ns))
                if collective_ns:
                    waits.append(Wait("all_reduce", end_ns - collective_ns, end_ns))
                spans.append(Span(str(action), start_ns, end_ns, 0, collective_ns))
                clock_ns = int(end)
            spans.append(Span(OPTIMIZER, clock_ns - behind_ns, clock_ns + 10**6 - behind_ns, 0, 0))
            records.append(record.model_copy(update={"step": number, "spans": tuple(spans), "waits": tuple(waits)}))
        stages = tuple(stage for stage, home in enumerate(place) if home == rank)
        own = {"rank": rank, "pp": rank, "stages": stages, "clock_offset_ns": behind_ns}
        ranks.append(RankRecords(Path(f"rank{rank}"), header.model_copy(update=own), tuple(records), None))
    return ranks


def replayed(name: str, p: int, num: int, seed: int) -> Replay:
    draw, place = random.Random(seed), find_schedule(name).place(p)
    kinds = (Kind.F, Kind.I, Kind.W, Kind.B)
    costs = StepCosts(
        durations={(stage, kind): draw.randint(50, 150) for stage in range(len(place)) for kind in kinds},
        tensor_parallel={(stage, kind): draw.randint(0, 9) for stage in range(len(place)) for kind in kinds},
        hop=Hop(latency=draw.randint(0, 60)),
    )
    return replay_step(generate(name, p, num, "train"), place, costs)


@pytest.mark.parametrize("name", ["1f1b", "interleaved_1f1b", "zb_h1", "zb_v", "dualpipe_v", "v_half"])
@pytest.mark.parametrize("p", [2, 4])
def test_a_replayed_step_gives_its_costs_back(tmp_path: Path, name: str, p: int) -> None:
    for seed in range(5):
        step = replayed(name, p, 2 * p, seed)
        ranks = written(step, sample(tmp_path / str(seed)), steps=2, offset_ns=7_000)
        costs = measured_costs(ranks)
        for key, time_ns in costs.durations.items():
            assert (time_ns, costs.tensor_parallel[key]) == (step.costs.compute(*key), step.costs.collectives(*key))
        assert {action[1] for rank in step.ranks for action in (timed.action for timed in rank)} == {
            kind for _, kind in costs.durations
        }
        again = replay_step([[t.action for t in rank] for rank in step.ranks], step.rows.stage_to_rank, costs)
        assert again.makespan == step.makespan
        assert pipeline_times_ns(ranks) == (_first_to_last(step),) * 2


def _first_to_last(step: Replay) -> int:
    return int(step.makespan - min(rank[0].start for rank in step.ranks))


def test_messages_that_were_waited_for_give_their_time(tmp_path: Path) -> None:
    step = replayed("1f1b", 2, 4, 1)
    latency = step.costs.hop.latency
    assert latency
    assert measured_costs(written(step, sample(tmp_path))).hops == {(0, 1): Hop(latency), (1, 0): Hop(latency)}


def test_a_message_that_came_early_bounds_its_time(tmp_path: Path) -> None:
    """Its taker waited from 50 to 51, for what was sent at 10: at most 41."""
    ranks = _two([("0F0", 0, 10)], [("1F0", 51, 60)], [("1RECV_F0", 50, 51)], tmp_path)
    assert measured_costs(ranks).hops == {(0, 1): Hop(41)}


def test_an_action_in_pieces_is_one_and_what_filled_it_another(tmp_path: Path) -> None:
    pieces = [("0I1", 0, 10), ("0W0", 10, 17), ("0I1", 17, 20), ("0W0", 20, 25)]
    costs = measured_costs(_two(pieces, [("1F0", 0, 10)], [], tmp_path))
    assert costs.durations == {(0, Kind.I): 13, (0, Kind.W): 12, (1, Kind.F): 10}


def test_odd_one_out_counts_no_more_than_others(tmp_path: Path) -> None:
    spans = [("0F0", 0, 10), ("0F1", 10, 21), ("0F2", 21, 1000)]
    assert measured_costs(_two(spans, [("1F0", 0, 10)], [], tmp_path)).durations[0, Kind.F] == 11


def test_two_replicas_are_two_pipelines(tmp_path: Path) -> None:
    step = replayed("1f1b", 2, 4, 1)
    ranks = written(step, sample(tmp_path))
    both = ranks + [_in_replica_1(rank) for rank in ranks]
    assert measured_costs(both) == measured_costs(ranks)
    assert pipeline_times_ns(both) == pipeline_times_ns(ranks)


def test_steps_without_actions_are_refused(tmp_path: Path) -> None:
    ranks = written(replayed("1f1b", 2, 4, 1), sample(tmp_path))
    with pytest.raises(RecordsError, match="2 ranks: no measured step of purpose 'speed' holds an action"):
        measured_costs(ranks, "speed")


def _in_replica_1(rank: RankRecords) -> RankRecords:
    return rank._replace(header=rank.header.model_copy(update={"dp": 1, "rank": 2 + rank.header.rank}))


def _two(
    first: Sequence[tuple[str, int, int]],
    second: Sequence[tuple[str, int, int]],
    waits_of_second: Sequence[tuple[str, int, int]],
    folder: Path,
) -> list[RankRecords]:
    """Two pipeline ranks of one step with these spans."""
    header, record = sample(folder)
    ranks = []
    for rank, spans in enumerate((first, second)):
        filled = record.model_copy(
            update={
                "spans": tuple(Span(*span, 0, 0) for span in spans),
                "waits": tuple(Wait(*wait) for wait in waits_of_second) if rank else (),
            }
        )
        own = header.model_copy(update={"rank": rank, "pp": rank, "stages": (rank,)})
        ranks.append(RankRecords(folder, own, (filled,), None))
    return ranks
