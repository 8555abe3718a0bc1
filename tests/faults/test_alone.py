from __future__ import annotations

from pathlib import Path

from hybrid_runtime.faults.alone import alone_words, waits_alone
from hybrid_runtime.telemetry.account import Account
from tests.faults.test_hang import NOW_NS, account, plan_of


def words(reaches: bool | None) -> str:
    four = plan_of(pp_degree=2, tp_degree=2)
    mine = account(2, "1F0", wait="all_reduce", on="all", host="host2", reaches=reaches)
    return alone_words(mine, four.mesh, Path("runs/x"), NOW_NS, None if reaches is None else "host1:29500")


def test_for_whom_a_rank_waits_and_what_does_not_answer() -> None:
    waits = (
        "rank 2 (dp 0, pp 1, tp 0), stage 2, step 7, 1F0: waits in all_reduce for ranks 0, 1, 3 for 12.0 s, and runs/x"
    )
    cut_off = "this machine, host2, is cut off: it does not reach host1:29500, where the ranks met"
    assert words(False) == f"{waits} does not answer; {cut_off}"
    assert words(True).endswith("this machine, host2, still reaches host1:29500, where the ranks met: the disk is lost")
    assert words(None).endswith("does not answer; the disk is lost, or what is on it")


def test_who_waits_for_nobody_or_for_what_may_take_any_time_says_nothing() -> None:
    def says(doing: str, wait: str = "barrier", reaches: bool | None = None) -> bool:
        mine: Account = account(0, doing, wait=wait, on="all", reaches=reaches)
        return waits_alone(mine)

    assert says("between steps")
    assert not says("between steps", wait="")
    assert not says("CHECKPOINT", reaches=True), "another may still write"
    assert says("CHECKPOINT", reaches=False), "but its word would not come"
