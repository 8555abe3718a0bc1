"""SPAN bubbles and most bytes held, of every schedule, against figures computed independently.

SYNC bubbles and idle times are in test_oracles.py. A rank's work is split equally over its stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import pytest

from hybrid_runtime.schedule.actions import Action, ActionList, Kind
from hybrid_runtime.schedule.registry import find_schedule, generate
from hybrid_runtime.schedule.replay import Replay, replay, replay_step
from hybrid_runtime.schedule.step_costs import ActionBytes, StepCosts, activation_bytes
from tests.schedule.drawn import read_drawing

EQUAL = ("1", "1", "1")
MEASURED = ("1", "1.15", "0.9")

# schedule, stages per rank: SPAN bubble in % at F = I = W | at 1 : 1.15 : 0.9; for p = 4, m = 16 | for p = 8, m = 32
SPANS = """
gpipe            1  15.79 15.79  17.95 17.95
1f1b             1  15.79 15.79  17.95 17.95
interleaved_1f1b 2   8.57  8.57   9.86  9.86
interleaved_1f1b 4   4.48  4.48   5.19  5.19
zb_h1            1   5.88  7.14   6.80  8.23
interleaved_zb   2   3.03  3.70   3.52  4.29
interleaved_zb   4   1.54  1.88   1.79  2.19
zb_h2            1   0.00  2.11   0.00  2.45
zb_v             2   0.00  1.51   0.00  1.76
dualpipe_v       2   3.03  3.70   3.52  4.31
v_half           2  11.11 12.19  11.93 13.15
v_min            2  10.28 19.74  12.33 21.67"""

# schedule, stages per rank: microbatches of activations held at most, per rank, if I frees nothing | if it frees half
PEAKS = """
gpipe            1  16 16 16 16         | 16 16 16 16
1f1b             1  4 3 2 1             | 4 3 2 1
interleaved_1f1b 2  5.5 4.5 3.5 2.5     | 5.5 4.5 3.5 2.5
interleaved_1f1b 4  4.75 4.25 3.75 3.25 | 4.75 4.25 3.75 3.25
zb_h1            1  4 4 4 4             | 4 3.5 3 2.5
interleaved_zb   2  4 4 4 4             | 4 3.75 3.5 3.25
interleaved_zb   4  4 4 4 4             | 4 3.875 3.75 3.625
zb_h2            1  7 7 7 7             | 7 6 5 4
zb_v             2  4 4 4 4             | 4 4 4 4
dualpipe_v       2  4.5 4.5 4.5 4.5     | 4.5 4.5 4.5 4.5
v_half           2  3 3 3 3             | 3 3 3 3
v_min            2  2 2 2 2             | 2 2 1.75 2
v_half           2  5 5 5 5 5 5 5 5     | 5 5 5 5 5 5 5 5
v_min            2  3 4 4 3 4 4 3 4     | 3 3.5 3.5 3 3.5 3.5 3 3.5"""


def durations_of(num_stages: int, per_rank: int, shares: Sequence[str]) -> dict[tuple[int, Kind], Fraction]:
    kinds = (Kind.F, Kind.I, Kind.W)
    return {(k, kind): Fraction(share) / per_rank for k in range(num_stages) for kind, share in zip(kinds, shares)}


def step(name: str, pp_degree: int, num_microbatches: int, per_rank: int, shares: Sequence[str]) -> Replay:
    placement = find_schedule(name).place(pp_degree, per_rank)
    lists = generate(name, pp_degree, num_microbatches, "train", per_rank)
    return replay(lists, placement, durations_of(len(placement), per_rank, shares))


@pytest.mark.parametrize("line", SPANS.strip().splitlines(), ids=lambda line: "-".join(line.split()[:2]))
def test_span_bubble(line: str) -> None:
    name, per_rank, *percents = line.split()
    found = [step(name, p, 4 * p, int(per_rank), shares).span_bubble for p in (4, 8) for shares in (EQUAL, MEASURED)]
    assert [f"{float(100 * bubble):.2f}" for bubble in found] == percents


@pytest.mark.parametrize("line", PEAKS.strip().splitlines(), ids=lambda line: "-".join(line.split()[:3]))
def test_peaks(line: str) -> None:
    (name, per_rank, *whole), half = line.partition("|")[0].split(), line.partition("|")[2].split()
    placement = find_schedule(name).place(len(half), int(per_rank))
    lists = generate(name, len(half), 4 * len(half), "train", int(per_rank))
    for until_w, expected in ((Fraction(1), whole), (Fraction(1, 2), half)):
        kept = activation_bytes([64 // int(per_rank)] * len(placement), until_w)
        costs = StepCosts(durations_of(len(placement), 1, EQUAL), action_bytes=kept)
        peaks = replay_step(lists, placement, costs).peaks
        assert [Fraction(peak.num_bytes, 64) for peak in peaks] == list(map(Fraction, expected))


@pytest.mark.parametrize(
    ("pp_degree", "num_microbatches", "sync_percent", "span_percent"),
    [(4, 16, "8.31", "6.60"), (8, 32, "9.57", "7.62")],
)
def test_a_fused_backward_sends_its_gradient_at_its_end(
    pp_degree: int, num_microbatches: int, sync_percent: str, span_percent: str
) -> None:
    placement = find_schedule("zb_v").place(pp_degree)
    lists = tuple(map(fused, generate("zb_v", pp_degree, num_microbatches, "train")))
    found = replay(lists, placement, durations_of(len(placement), 2, MEASURED))
    assert [f"{float(100 * bubble):.2f}" for bubble in (found.bubble, found.span_bubble)] == [
        sync_percent,
        span_percent,
    ]


def fused(actions: ActionList) -> ActionList:
    """Every adjacent I and W of one stage and microbatch as one B."""
    merged: list[Action] = []
    for action in actions:
        if action.kind is Kind.W and merged and merged[-1] == action._replace(kind=Kind.I):
            merged[-1] = action._replace(kind=Kind.B)
        else:
            merged.append(action)
    return tuple(merged)


def test_the_peak_names_its_action_and_counts_temporary_bytes() -> None:
    lists = read_drawing("rank 0 | 0F0 0F1 0B0 0F2 0B1 0B2")
    kept, freed = {(0, Kind.F): 10}, {(0, Kind.B): 10}
    durations = {(0, Kind.F): 1, (0, Kind.B): 2}
    peak = replay_step(lists, (0,), StepCosts(durations, action_bytes=ActionBytes(kept, freed))).peaks[0]
    assert (peak.num_bytes, str(peak.action)) == (20, "0F1")
    with_logits = ActionBytes(kept, freed, temporary={(0, Kind.B): 7, (0, Kind.F): 2})
    peak = replay_step(lists, (0,), StepCosts(durations, action_bytes=with_logits)).peaks[0]
    assert (peak.num_bytes, str(peak.action)) == (27, "0B0")
    nothing = replay_step(lists, (0,), StepCosts(durations)).peaks[0]
    assert (nothing.num_bytes, nothing.action) == (0, None)


def test_an_empty_step() -> None:
    nothing = replay(((), ()), (0, 1), {})
    assert nothing.makespan == nothing.bubble == nothing.span_bubble == 0
    assert nothing.busy == (0, 0)
