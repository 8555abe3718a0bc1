"""Definitions: unions, windows on one clock, compute without waits, bubbles."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from hybrid_runtime.verifier.metrics import four_forms, measure, union_ns
from hybrid_runtime.verifier.side import load_side
from tests.verifier.synthetic import MS, Synthetic, steady, write_run


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)).map(lambda pair: (pair[0], sum(pair)))))
def test_a_union_counts_every_nanosecond_once(intervals: list[tuple[int, int]]) -> None:
    assert union_ns(intervals) == len({point for start, end in intervals for point in range(start, end)})


def test_a_step_is_compute_exposed_wait_and_bubble(tmp_path: Path) -> None:
    side = Synthetic([[600, 300]] * 20, window_ns=[1000] * 20, wait_ns=200)
    metrics = measure(load_side(write_run(tmp_path, side), "candidate"))
    assert metrics.windows_ns == [1000] * 20
    assert metrics.compute_ns == [[600, 300]] * 20
    assert metrics.shares_of_window(0) == (Fraction(2, 10), Fraction(2, 10))
    assert metrics.shares_of_window(1) == (Fraction(2, 10), Fraction(5, 10))
    assert metrics.wait_ns(1) == 20 * 200
    assert metrics.blocks() == [list(range(10)), list(range(10, 20))]
    assert metrics.tokens_per_s == Fraction(1024 * 10**9, 1000)


def test_windows_of_hosts_are_put_on_one_clock(tmp_path: Path) -> None:
    run = write_run(tmp_path, steady([MS] * 2, 20, window_ns=[2 * MS] * 20))
    side = load_side(run, "candidate")
    late = side.ranks[1]._replace(header=side.ranks[1].header.model_copy(update={"clock_offset_ns": 500}))
    metrics = measure(replace(side, ranks=(side.ranks[0], late)))
    assert metrics.windows_ns == [2 * MS + 500] * 20


def test_memory_parts_are_summed_over_the_ranks_of_a_device(tmp_path: Path) -> None:
    run = write_run(tmp_path, steady([MS] * 2, 20, memory_bytes=[[5, 7], [5, 9], [5, 7]]))
    metrics = measure(load_side(run, "candidate"))
    assert metrics.memory_bytes == [[5, 7], [5, 9], [5, 7]]
    assert metrics.memory_peaks == [5, 9]
    assert metrics.memory_parts(1) == {
        "parameters": 100,
        "gradients": 100,
        "optimizer": 200,
        "activations_peak": 9,
        "buffers_peak": 0,
    }


def test_an_idle_device_is_infinitely_unbalanced() -> None:
    assert four_forms([0, 10]).endswith("max/min - 1 = infinite")
