"""Idle time, bubble and activations of every schedule, against figures computed independently of this code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache

import pytest

from hybrid_runtime.schedule.actions import Action, ActionList, Kind
from hybrid_runtime.schedule.footprint import peak_in_flight
from hybrid_runtime.schedule.registry import SCHEDULES, find_schedule, generate
from hybrid_runtime.schedule.replay import Replay, Time, replay

Shares = tuple[Fraction, Fraction, Fraction]  # F, I, W of a rank's whole share of one microbatch
EQUAL: Shares = (Fraction(1), Fraction(1), Fraction(1))
MEASURED: Shares = (Fraction(1), Fraction("1.15"), Fraction("0.9"))
HOPS_PERCENT = (0, 2, 5, 10)  # of F


@cache
def lists_of(name: str, pp_degree: int, num_microbatches: int) -> tuple[ActionList, ...]:
    """A name of the registry, with stages per rank behind a slash where they are not the default."""
    schedule, _, per_rank = name.partition("/")
    return generate(schedule, pp_degree, num_microbatches, "train", int(per_rank) if per_rank else None)


def place_of(name: str, pp_degree: int) -> tuple[int, ...]:
    schedule, _, per_rank = name.partition("/")
    return find_schedule(schedule).place(pp_degree, int(per_rank) if per_rank else None)


def step(name: str, pp_degree: int, num_microbatches: int, shares: Shares, hop: Time = 0) -> Replay:
    place = place_of(name, pp_degree)
    per_rank = len(place) // pp_degree
    durations = durations_of(len(place), lambda stage: tuple(share / per_rank for share in shares))
    return replay(lists_of(name, pp_degree, num_microbatches), place, durations, hop_lag=hop)


def durations_of(num_stages: int, shares_of: Callable[[int], Sequence[Fraction]]) -> dict[tuple[int, Kind], Time]:
    durations: dict[tuple[int, Kind], Time] = {}
    for stage in range(num_stages):
        forward, input_grad, weight_grad = shares_of(stage)
        for kind, time in zip("FIWB", (forward, input_grad, weight_grad, input_grad + weight_grad)):
            durations[stage, Kind(kind)] = time
    return durations


# --- bubbles ----------------------------------------------------------------------------------------------------------

# name: makespan, bubble % at F = I = W, idle and bubble % at 1 : 1.15 : 0.9; each for hops of 0, 2, 5, 10 % of F
P4_M16 = """
gpipe              57    | 15.79 15.97 16.23 16.67 | 9.150 9.270 9.450 9.750 | 15.79 15.96 16.22 16.65
1f1b               57    | 15.79 16.61 17.81 19.73 | 9.150 9.710 10.550 11.950 | 15.79 16.60 17.78 19.67
interleaved_1f1b   52.5  | 8.57 9.06 9.77 10.95 | 4.575 4.855 5.275 5.975 | 8.57 9.05 9.75 10.91
interleaved_1f1b/4 50.25 | 4.48 5.60 7.25 9.86 | 2.288 2.888 3.788 5.288 | 4.48 5.59 7.20 9.78
zb_h1              51    | 5.88 6.32 6.98 8.05 | 3.750 3.990 4.350 4.950 | 7.14 7.56 8.18 9.21
interleaved_zb     49.5  | 3.03 3.65 4.57 6.07 | 1.875 2.195 2.675 3.475 | 3.70 4.30 5.20 6.65
interleaved_zb/4   48.75 | 1.54 2.50 3.90 6.16 | 0.938 1.418 2.138 3.338 | 1.88 2.82 4.20 6.40
zb_h2              51    | 5.88 5.99 6.16 6.43 | 3.000 3.060 3.150 3.300 | 5.79 5.90 6.06 6.33
zb_v               49.5  | 3.03 3.54 4.29 5.51 | 1.725 1.985 2.375 3.025 | 3.41 3.91 4.64 5.84
dualpipe_v         49.5  | 3.03 3.50 4.19 5.51 | 1.875 2.115 2.500 3.400 | 3.70 4.15 4.87 6.51
v_half             54    | 11.11 11.63 12.41 13.67 | 6.775 7.095 7.575 8.375 | 12.19 12.69 13.44 14.65
v_min              53.5  | 10.28 12.63 15.94 20.92 | 12.000 13.440 15.600 19.200 | 19.74 21.59 24.22 28.24
"""
P8_M32 = """
gpipe              117    | 17.95 18.14 18.44 18.92 | 21.350 21.630 22.050 22.750 | 17.95 18.14 18.43 18.90
1f1b               117    | 17.95 18.89 20.27 22.46 | 21.350 22.710 24.750 28.150 | 17.95 18.88 20.23 22.39
interleaved_1f1b   106.5  | 9.86 10.36 11.11 12.33 | 10.675 11.275 12.175 13.675 | 9.86 10.36 11.09 12.29
interleaved_1f1b/4 101.25 | 5.19 6.33 8.00 10.66 | 5.338 6.578 8.438 11.538 | 5.19 6.31 7.96 10.57
zb_h1              103    | 6.80 7.30 8.05 9.26 | 8.750 9.310 10.150 11.550 | 8.23 8.71 9.42 10.58
interleaved_zb     99.5   | 3.52 4.21 5.23 6.89 | 4.375 5.095 6.175 7.975 | 4.29 4.96 5.95 7.55
interleaved_zb/4   97.75  | 1.79 2.82 4.33 6.75 | 2.187 3.227 4.787 7.387 | 2.19 3.20 4.68 7.04
zb_h2              103    | 6.80 6.92 7.11 7.43 | 7.000 7.140 7.350 7.700 | 6.69 6.82 7.00 7.31
zb_v               99.5   | 3.52 4.15 5.09 6.61 | 4.025 4.685 5.675 7.325 | 3.96 4.58 5.50 6.98
dualpipe_v         99.5   | 3.52 4.06 5.04 6.98 | 4.400 5.240 6.500 8.600 | 4.31 5.10 6.24 8.10
v_half             109    | 11.93 12.50 13.36 14.74 | 14.775 15.495 16.575 18.375 | 13.15 13.70 14.52 15.84
v_min              109.5  | 12.33 15.24 19.26 25.18 | 27.000 30.640 36.100 45.200 | 21.67 23.89 27.00 31.65
"""
# name: makespan at F = I = W | bubble % at 1 : 1.15 : 0.9
P3_M12 = """
gpipe              42   | 14.29 14.45 14.69 15.08
1f1b               42   | 14.29 15.00 16.06 17.75
interleaved_1f1b   39   | 7.69 8.16 8.84 9.96
interleaved_1f1b/4 37.5 | 4.00 5.10 6.69 9.24
zb_h1              38   | 6.39 6.78 7.34 8.27
interleaved_zb     37   | 3.30 3.86 4.69 6.03
interleaved_zb/4   36.5 | 1.68 2.57 3.87 5.97
zb_h2              38   | 5.18 5.28 5.43 5.67
zb_v               37   | 3.05 3.46 4.06 5.06
dualpipe_v         37   | 3.30 3.71 4.31 5.43
v_half             39.5 | 9.85 10.29 10.95 12.02
v_min              40.5 | 19.91 21.69 24.22 28.09
"""


def rows(table: str) -> list[tuple[str, Fraction, list[list[float]]]]:
    read = []
    for line in table.strip().splitlines():
        (name, makespan), *groups = [cell.split() for cell in line.split("|")]
        read.append((name, Fraction(makespan), [list(map(float, group)) for group in groups]))
    return read


def bubbles(name: str, pp_degree: int, num_microbatches: int, shares: Shares) -> list[float]:
    steps = [step(name, pp_degree, num_microbatches, shares, Fraction(hop, 100)) for hop in HOPS_PERCENT]
    return [float(replayed.bubble * 100) for replayed in steps]


@pytest.mark.parametrize(
    ("pp_degree", "num_microbatches", "row"),
    [(4, 16, row) for row in rows(P4_M16)] + [(8, 32, row) for row in rows(P8_M32)],
)
def test_bubble_and_idle(pp_degree: int, num_microbatches: int, row: tuple[str, Fraction, list[list[float]]]) -> None:
    name, makespan, (equal, idle, measured) = row
    assert step(name, pp_degree, num_microbatches, EQUAL).makespan == makespan
    assert bubbles(name, pp_degree, num_microbatches, EQUAL) == pytest.approx(equal, abs=0.0051)
    assert bubbles(name, pp_degree, num_microbatches, MEASURED) == pytest.approx(measured, abs=0.0051)
    for hop, expected in zip(HOPS_PERCENT, idle):
        found = step(name, pp_degree, num_microbatches, MEASURED, Fraction(hop, 100)).idle
        assert [float(time) for time in found] == pytest.approx([expected] * pp_degree, abs=0.00051)


@pytest.mark.parametrize("row", rows(P3_M12), ids=lambda row: row[0])
def test_bubble_of_three_ranks(row: tuple[str, Fraction, list[list[float]]]) -> None:
    name, makespan, (measured,) = row
    assert step(name, 3, 12, EQUAL).makespan == makespan
    assert bubbles(name, 3, 12, MEASURED) == pytest.approx(measured, abs=0.0051)


# idle per rank in closed form, for every number of microbatches from 2 per rank on
IDLE: dict[str, Callable[[int, Fraction, Fraction, Fraction], Fraction]] = {
    "gpipe": lambda p, f, i, w: (p - 1) * (f + i + w),
    "1f1b": lambda p, f, i, w: (p - 1) * (f + i + w),
    "interleaved_1f1b": lambda p, f, i, w: (p - 1) * (f + i + w) / 2,
    "interleaved_1f1b/3": lambda p, f, i, w: (p - 1) * (f + i + w) / 3,
    "zb_h1": lambda p, f, i, w: (p - 1) * (f + i - w),
    "interleaved_zb": lambda p, f, i, w: (p - 1) * (f + i - w) / 2,
    "interleaved_zb/3": lambda p, f, i, w: (p - 1) * (f + i - w) / 3,
    "zb_h2": lambda p, f, i, w: (p - 1) * f,
}


@pytest.mark.parametrize("name", IDLE)
@pytest.mark.parametrize("pp_degree", [1, 2, 3, 4, 8])
def test_idle_in_closed_form(name: str, pp_degree: int) -> None:
    for num_microbatches in (2 * pp_degree, 3 * pp_degree, 4 * pp_degree, 8 * pp_degree):
        for shares in (EQUAL, MEASURED):
            idle = step(name, pp_degree, num_microbatches, shares).idle
            assert set(idle) == {IDLE[name](pp_degree, *shares)}, num_microbatches


@pytest.mark.parametrize("pp_degree", [1, 2, 3, 4, 8])
def test_idle_of_the_v_schedules(pp_degree: int) -> None:
    for num_microbatches in (2 * pp_degree, 2 * pp_degree + 1, 4 * pp_degree):
        for name in ("zb_v", "dualpipe_v"):
            idle = step(name, pp_degree, num_microbatches, EQUAL).idle
            assert set(idle) == {Fraction(pp_degree - 1, 2)}, (name, num_microbatches)
    measured = step("zb_v", pp_degree, 4 * pp_degree, MEASURED).idle
    assert set(measured) == {(pp_degree - 1) * Fraction("0.575")}
    if pp_degree <= 4:
        measured = step("dualpipe_v", pp_degree, 4 * pp_degree, MEASURED).idle
        assert set(measured) == {(pp_degree - 1) * Fraction("1.25") / 2}


def test_idle_at_another_ratio() -> None:
    shares = (Fraction(1), Fraction("1.2"), Fraction("0.8"))
    found = {name: step(name, 4, 16, shares).idle[0] for name in ("zb_h1", "zb_h2", "zb_v", "dualpipe_v")}
    assert found == {"zb_h1": Fraction("4.2"), "zb_h2": 3, "zb_v": Fraction("1.8"), "dualpipe_v": Fraction("2.1")}


def test_fusing_every_adjacent_pair_is_a_cost() -> None:
    def fused(actions: ActionList) -> ActionList:
        out: list[Action] = []
        for action in actions:
            if out and action.kind is Kind.W and out[-1] == (action.stage, Kind.I, action.microbatch):
                out[-1] = Action(action.stage, Kind.B, action.microbatch)
            else:
                out.append(action)
        return tuple(out)

    durations = durations_of(8, lambda stage: tuple(share / 2 for share in MEASURED))
    lists = tuple(map(fused, lists_of("zb_v", 4, 16)))
    assert replay(lists, place_of("zb_v", 4), durations).idle[0] == Fraction("4.425")


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("hop", [0, 2, 5, 10])
def test_unequal_stages_idle_no_less_than_the_bound(name: str, hop: int) -> None:
    """No rank starts before its first stage's input can arrive, nor ends before the last gradient has left it."""
    for pp_degree in (2, 3, 4, 8):
        place = place_of(name, pp_degree)
        shares = [
            (Fraction(10 + stage * 7 % 5), Fraction(11 + stage * 5 % 7), Fraction(9 + stage * 3 % 4))
            for stage in range(len(place))
        ]
        durations = durations_of(len(place), shares.__getitem__)
        num_microbatches = 3 * pp_degree
        replayed = replay(lists_of(name, pp_degree, num_microbatches), place, durations, hop_lag=hop)
        for rank in range(pp_degree):
            work = sum(sum(shares[stage]) for stage, home in enumerate(place) if home == rank)
            first = place.index(rank)
            arrives = sum(shares[stage][0] for stage in range(first)) + first * hop
            assert replayed.busy[rank] == num_microbatches * work
            assert replayed.makespan >= arrives + num_microbatches * work
        assert replayed.makespan <= sum(map(sum, shares)) * num_microbatches + 4 * hop * len(place) * num_microbatches


# --- activations ------------------------------------------------------------------------------------------------------


def peaks(name: str, pp_degree: int, num_microbatches: int, kept_after_input: Fraction) -> list[Fraction]:
    """Peak per rank in a rank's whole share of one microbatch; I frees all but `kept_after_input`, W and B the rest."""
    per_rank = len(place_of(name, pp_degree)) // pp_degree
    freed = {Kind.I: 1 - kept_after_input, Kind.W: kept_after_input, Kind.B: Fraction(1)}
    found = []
    for actions in lists_of(name, pp_degree, num_microbatches):
        held = peak = Fraction(0)
        for action in actions:
            held += 1 if action.kind is Kind.F else -freed[action.kind]
            peak = max(peak, held)
        found.append(peak / per_rank)
    return found


HALF = Fraction(1, 2)


PEAKS = """
name               | p4 w1              | p4 w0.5                  | p8 w1                  | p8 w0.5
1f1b               | 4 3 2 1            | 4 3 2 1                  | 8 7 6 5 4 3 2 1        | 8 7 6 5 4 3 2 1
interleaved_1f1b   | 5.5 4.5 3.5 2.5    | 5.5 4.5 3.5 2.5          | 11.5 10.5 9.5 8.5 7.5 6.5 5.5 4.5 | =
interleaved_1f1b/4 | 4.75 4.25 3.75 3.25 | 4.75 4.25 3.75 3.25     | 9.75 9.25 8.75 8.25 7.75 7.25 6.75 6.25 | =
zb_h1              | 4 4 4 4            | 4 3.5 3 2.5              | 8 8 8 8 8 8 8 8        | 8 7.5 7 6.5 6 5.5 5 4.5
interleaved_zb     | 4 4 4 4            | 4 3.75 3.5 3.25          | 8 8 8 8 8 8 8 8        | 8 7.75 7.5 7.25 7 6.75 6.5 6.25
interleaved_zb/4   | 4 4 4 4            | 4 3.875 3.75 3.625       | 8 8 8 8 8 8 8 8        | 8 7.875 7.75 7.625 7.5 7.375 7.25 7.125
zb_h2              | 7 7 7 7            | 7 6 5 4                  | 15 15 15 15 15 15 15 15 | 15 14 13 12 11 10 9 8
zb_v               | 4 4 4 4            | 4 4 4 4                  | 8 8 8 8 8 8 8 8        | =
dualpipe_v         | 4.5 4.5 4.5 4.5    | 4.5 4.5 4.5 4.5          | 8.5 8.5 8.5 8.5 8.5 8.5 8.5 8.5 | =
v_half             | 3 3 3 3            | 3 3 3 3                  | 5 5 5 5 5 5 5 5        | =
v_min              | 2 2 2 2            | 2 2 1.75 2               | 3 4 4 3 4 4 3 4        | 3 3.5 3.5 3 3.5 3.5 3 3.5
"""  # noqa: E501


@pytest.mark.parametrize("line", PEAKS.strip().splitlines()[1:], ids=lambda line: line.split()[0])
def test_peaks(line: str) -> None:
    name, *cells = [cell.strip() for cell in line.split("|")]
    cells[3] = cells[2] if cells[3] == "=" else cells[3]
    cases = [(4, Fraction(1)), (4, HALF), (8, Fraction(1)), (8, HALF)]
    for (pp_degree, kept), expected in zip(cases, cells):
        for num_microbatches in (3 * pp_degree, 4 * pp_degree):
            found = peaks(name, pp_degree, num_microbatches, kept)
            assert found == list(map(Fraction, expected.split())), (pp_degree, kept, num_microbatches)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpipe", "12 12 12"),
        ("1f1b", "3 2 1"),
        ("interleaved_1f1b", "4 3 2"),
        ("zb_h1", "3 3 3"),
        ("interleaved_zb", "3 3 3"),
        ("zb_v", "3 3 3"),
        ("zb_h2", "5 5 5"),
        ("dualpipe_v", "3.5 3.5 3.5"),
        ("v_half", "2 2 2"),
        ("v_min", "2 2 2"),
    ],
)
def test_peaks_of_three_ranks(name: str, expected: str) -> None:
    assert peaks(name, 3, 12, Fraction(1)) == list(map(Fraction, expected.split()))


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_checkers_peak_is_the_same(name: str) -> None:
    for pp_degree in (2, 3, 5):
        per_rank = len(place_of(name, pp_degree)) // pp_degree
        lists = lists_of(name, pp_degree, 3 * pp_degree)
        found = [Fraction(peak_in_flight(actions), per_rank) for actions in lists]
        assert found == peaks(name, pp_degree, 3 * pp_degree, Fraction(1))


def test_peaks_in_closed_form() -> None:
    for p in (1, 2, 3, 4, 8):
        ranks, m, one = range(p), 4 * p, Fraction(1)
        assert peaks("gpipe", p, m, one) == [m] * p
        for v in (1, 2, 4):
            found = peaks(f"interleaved_1f1b/{v}", p, m, one)
            assert found == [Fraction((v - 1) * p + 2 * (p - 1 - r) + 1, v) for r in ranks]
            for kept in (HALF, one):
                assert peaks(f"interleaved_zb/{v}", p, m, kept) == [p - r * (1 - kept) / v for r in ranks]
        for kept in (HALF, one):
            assert peaks("zb_h1", p, m, kept) == [(p - r) + r * kept for r in ranks]
            assert peaks("zb_h2", p, m, kept) == [2 * p - 1 - 2 * r * (1 - kept) for r in ranks]
            assert peaks("zb_v", p, m, kept) == [p] * p
            assert peaks("dualpipe_v", p, m, kept) == [p + HALF] * p
        assert peaks("v_half", p, m, one) == [(p + 2) // 2] * p
        assert max(peaks("v_min", p, m, one)) == (p + 4) // 3
