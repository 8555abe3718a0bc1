import pytest

from hybrid_runtime.telemetry.clock_offset import ClockOffset, PingPong, measure_offset, offset_of
from tests.ranks import run_ranks


def test_the_quickest_exchange_decides() -> None:
    #        local 1000 .. 1100 (round trip 100), remote clock 5000 ahead, stamped half way
    quick = PingPong(1000, 6050, 1100)
    slow = PingPong(2000, 7900, 3000)
    assert offset_of([slow, quick]) == ClockOffset(5000, 50)
    assert offset_of([PingPong(10, 8, 13)]) == ClockOffset(-3, 2)
    with pytest.raises(ValueError, match="at least one"):
        offset_of([])


def test_the_bound_holds_however_lopsided_the_way() -> None:
    true_offset = -777
    for outward in range(0, 101, 10):
        sample = PingPong(1000, 1000 + outward + true_offset, 1100)
        found = offset_of([sample])
        assert abs(found.offset_ns - true_offset) <= found.uncertainty_ns


def _measure(rank: int) -> None:
    assert measure_offset(rank, ["one", "one"]) == ClockOffset(0, 0)
    found = measure_offset(rank, ["one", "one"], force=True)
    if rank == 0:
        assert found == ClockOffset(0, 0)
    else:
        assert abs(found.offset_ns) <= found.uncertainty_ns
        assert 0 < found.uncertainty_ns < 50_000_000
    other_host = measure_offset(rank, ["one", "two"], rounds=4)
    assert (other_host == ClockOffset(0, 0)) == (rank == 0)


@pytest.mark.ranks
def test_ranks_that_share_a_clock_measure_none() -> None:
    run_ranks(2, _measure)
