"""Who is named when no rank comes further, drawn as what each rank's status file says.

pipeline of two, 1f1b, microbatches 0 and 1; times are seconds before now
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from hybrid_runtime.faults.hang import Hang, account_text, find_hang
from hybrid_runtime.faults.waits import Scene, awaited
from hybrid_runtime.plan import Plan
from hybrid_runtime.planner.costs import unit_costs
from hybrid_runtime.planner.make import make_plan
from hybrid_runtime.records import IDLE
from hybrid_runtime.telemetry.account import Account, Did, Waiting
from hybrid_runtime.telemetry.status import Status, process_start
from tests.parity import deployment

NOW_NS = 1_000_000_000_000
LIMIT_S = 10


def plan_of(**parallel: int) -> Plan:
    settings = deployment(parallel=parallel)
    assert settings.shape is not None
    return make_plan(settings, unit_costs(settings.shape, microbatch_size=1, sequence_length=8, workload="train"))


def account(
    rank: int,
    doing: str,
    *,
    wait: str = "",
    on: str = "",
    step: int = 7,
    ago_s: float = 12,
    beat_s: float = 0.2,
    did: tuple[str, ...] = ("DATA", "OPTIMIZER"),
    pid: int | None = None,
    host: str | None = None,
    reaches: bool | None = None,
) -> Account:
    """A rank that has been doing something, or waiting, for `ago_s`; `did` came before in this step."""
    at_ns = NOW_NS - round(ago_s * 1e9)
    pid = os.getpid() if pid is None else pid
    texts = (f"step {step}", *did, doing)
    return Account(
        status=Status(rank, step, str(rank), doing),
        pid=pid,
        process_start=process_start(pid),
        host=host or socket.gethostname(),
        beat_ns=NOW_NS - round(beat_s * 1e9),
        waiting=Waiting(wait, on, at_ns) if wait else None,
        last=tuple(Did(at_ns, number, text) for number, text in enumerate(texts)),
        changed_ns=at_ns,
        reaches=reaches,
    )


def found(plan: Plan, *accounts: Account) -> Hang | None:
    return find_hang(Scene({one.rank: one for one in accounts}, plan, NOW_NS), LIMIT_S)


def sentence(plan: Plan, *accounts: Account) -> str:
    hang = found(plan, *accounts)
    assert hang is not None
    assert hang.sentence.startswith(f"rank {hang.culprits[0]} "), hang
    return hang.sentence


TWO = plan_of(pp_degree=2)
RECEIVES = account(0, "0B1", wait="0RECV_B1", on="pp=1")
BARRIER = account(0, "CHECKPOINT", wait="barrier", on="all")


@pytest.fixture
def stopped() -> Iterator[int]:
    """A process that was stopped by a signal."""
    child = subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 19)"])
    os.waitid(os.P_PID, child.pid, os.WSTOPPED)
    yield child.pid
    child.kill()
    child.wait()


def test_a_stopped_rank_is_named_although_its_file_says_that_it_waits(stopped: int) -> None:
    one = account(1, "1F1", wait="1RECV_F1", on="pp=0", beat_s=12, pid=stopped)
    hang = found(TWO, RECEIVES, one)
    assert hang is not None
    assert (hang.culprits, hang.lifeless) == ((1,), True)
    assert hang.sentence == (
        "rank 1 (dp 0, pp 1, tp 0), stage 1, step 7, 1F1: gives no sign of life for 12.0 s: its process was stopped by "
        "a signal (SIGSTOP); rank 0 waits for it in 0RECV_B1 for 12.0 s"
    )


@pytest.mark.parametrize(
    ("of", "words"),
    [
        ({"host": "elsewhere"}, "stopped, or its machine elsewhere is cut off"),
        ({"pid": 2**22 + 1}, "its process has ended"),
        ({}, "its process is stuck outside Python"),
    ],
)
def test_why_a_rank_gives_no_sign_of_life(of: dict[str, object], words: str) -> None:
    assert f"for 12.0 s: {words};" in sentence(TWO, RECEIVES, account(1, "1F1", beat_s=12, **of))  # type: ignore[arg-type]


def on_hosts(*reach: bool | None, beats_s: dict[int, float] | None = None) -> str:
    """Every rank is in the barrier, on a machine of its own, and has tried to reach where they met."""
    plan = plan_of(pp_degree=len(reach))
    silent = beats_s or {}
    accounts = (
        account(k, "B", wait="barrier", on="all", host=f"host{k}", reaches=found, beat_s=silent.get(k, 0.2))
        for k, found in enumerate(reach)
    )
    return sentence(plan, *accounts).partition(", step 7, B: ")[2]


def test_a_machine_that_is_cut_off_from_the_others() -> None:
    assert on_hosts(True, False) == "its machine host1 is cut off from host0"
    assert on_hosts(True, True, False) == "its machine host2 is cut off from host0, host1"
    assert on_hosts(True, False, False, True) == "its machine host1 is cut off from host0, host3 (so are rank 2)"
    assert on_hosts(False, True, False) == "its machine host1 is cut off from host0, host2", "where they met"
    assert "host1), " not in on_hosts(True, True)
    assert on_hosts(True, None).endswith("the link between them is lost (host0, host1)"), "not yet tried"


def test_a_machine_that_is_cut_off_may_see_old_files_of_the_others_and_they_of_it() -> None:
    there, here = {1: 12.0}, {0: 12.0, 2: 12.0}
    assert on_hosts(True, None, True, beats_s=there).startswith("gives no sign of life for 12.0 s: stopped, or its ")
    assert on_hosts(None, False, None, beats_s=here) == "its machine host1 is cut off from host0, host2"


def test_who_sleeps_while_the_other_waits_is_named() -> None:
    words = sentence(TWO, account(1, "DATA", did=()), account(0, "0B0", wait="0RECV_B0", on="pp=1", ago_s=11))
    assert words == (
        "rank 1 (dp 0, pp 1, tp 0), stage 1, step 7, DATA: no further for 12.0 s, and waits for no rank; rank 0 waits "
        "for it in 0RECV_B0 for 11.0 s"
    )


def test_of_several_that_wait_for_nobody_the_first_is_named() -> None:
    words = sentence(TWO, account(0, "OPTIMIZER", ago_s=11), account(1, "1F0", ago_s=13))
    assert words.startswith("rank 1 (dp 0, pp 1, tp 0), stage 1, step 7, 1F0: no further for 13.0 s")
    assert "(nor do rank 0)" in words


def test_the_first_in_a_chain_is_named_and_not_the_one_that_waits_in_the_middle() -> None:
    three = plan_of(pp_degree=3)
    middle = account(1, "1F0", wait="1RECV_F0", on="pp=0")
    last = account(2, "2F0", wait="2RECV_F0", on="pp=1")
    assert sentence(three, account(0, "0F0"), middle, last) == (
        "rank 0 (dp 0, pp 0, tp 0), stage 0, step 7, 0F0: no further for 12.0 s, and waits for no rank; rank 1 waits "
        "for it in 1RECV_F0 for 12.0 s"
    )


def test_a_tensor_rank_that_has_not_come_to_the_all_reduce_is_waited_for() -> None:
    tensor = plan_of(tp_degree=2)
    there = account(0, "0F0", wait="all_reduce", on="tp")
    assert "rank 0 waits for it in all_reduce" in sentence(tensor, there, account(1, "OPTIMIZER", did=("DATA",)))


def test_a_message_that_was_sent_and_did_not_arrive_is_a_lost_link() -> None:
    """Rank 0 is past 0SEND_F1, and waits for a gradient that needs what rank 1 has not got."""
    names = TWO.actions[0]
    assert names.index("0SEND_F1") < names.index("0B0")
    zero = account(0, "0B0", wait="0RECV_B0", on="pp=1", did=names[: names.index("0B0")])
    one = account(1, "1F1", wait="1RECV_F1", on="pp=0", ago_s=13)
    assert TWO.actions[1].index("1F1") < TWO.actions[1].index("1SEND_B0") or "1B0" in TWO.actions[1]
    assert sentence(TWO, zero, one).startswith(
        "rank 1 (dp 0, pp 1, tp 0), stage 1, step 7, 1F1: waits in 1RECV_F1 for 13.0 s for rank 0, and what was sent "
        "does not arrive: the link between them is lost"
    )


def test_ranks_that_wait_for_each_other_are_a_circle() -> None:
    """Rank 0 waits for a gradient before it sends what rank 1 needs to make it."""
    zero = account(0, "OPTIMIZER", did=("DATA",), wait="0RECV_B0", on="pp=1")
    one = account(1, "OPTIMIZER", did=("DATA",), wait="1RECV_F0", on="pp=0", ago_s=11)
    assert sentence(TWO, zero, one) == (
        "rank 0 (dp 0, pp 0, tp 0), stage 0, step 7, OPTIMIZER: waits in 0RECV_B0 for rank 1, which waits in 1RECV_F0 "
        "for rank 0: a circle that has not moved for 11.0 s"
    )


def test_a_lifeless_ranks_wait_may_have_been_over(stopped: int) -> None:
    """Its file names a wait with its last beat, and it has gone on, or may have, before it was stopped."""
    there = account(0, "between steps", wait="barrier", on="all")
    silent = account(1, "between steps", wait="barrier", on="all", beat_s=12, pid=stopped)
    assert "; rank 0 waits for it in barrier for 12.0 s" in sentence(TWO, there, silent)


@pytest.mark.parametrize("since_s", [0, 0.1])
def test_a_wait_is_over_when_an_action_has_begun_since(since_s: float) -> None:
    one = account(1, "B", wait="barrier", on="all")
    did = one.last[-1]._replace(at_ns=one.last[-1].at_ns + round(since_s * 1e9))
    scene = Scene({0: BARRIER, 1: one._replace(last=(*one.last[:-1], did))}, TWO, NOW_NS)
    assert awaited(0, scene) == ([1] if since_s else [])


def test_a_rank_in_the_barrier_does_not_hold_up_the_one_that_still_gathers() -> None:
    """The first has left the gathering, so the second's number has come: its answer was lost."""
    gathers = account(1, "OPTIMIZER", wait="gather_numbers", on="all")
    assert sentence(TWO, account(0, "between steps", wait="barrier", on="all"), gathers).startswith("rank 1 ")


def test_a_device_that_does_not_end_is_said() -> None:
    one = plan_of(pp_degree=1)
    assert "for its own device" in sentence(one, account(0, "OPTIMIZER", wait="synchronize", on="device"))


def test_no_hang_while_anybody_comes_further_or_is_being_set_up_or_writes() -> None:
    assert found(TWO, RECEIVES, account(1, "1F1", ago_s=3)) is None, "rank 1 is late, and works"
    assert found(TWO, RECEIVES) is None, "rank 1 has no file yet"
    assert found(TWO, BARRIER, account(1, "CHECKPOINT")) is None, "a disk may be slow"
    assert found(TWO, BARRIER, account(1, "CHECKPOINT", beat_s=12)) is not None, "but a stopped rank writes nothing"


def test_nobody_asks_and_nothing_hangs() -> None:
    """A serving deployment: who is stuck in an item is named all the same."""
    told = account(1, "1D0", wait="descriptor", on="pp=0")
    assert found(TWO, account(0, IDLE), told) is None
    words = sentence(TWO, account(0, "0D0", wait="answer", on="pp=1", ago_s=11), account(1, "1D0"))
    assert words == (
        "rank 1 (dp 0, pp 1, tp 0), stage 1, step 7, 1D0: no further for 12.0 s, and waits for no rank; rank 0 waits "
        "for it in answer for 11.0 s"
    )


def test_every_ranks_last_actions_are_told() -> None:
    scene = Scene({0: RECEIVES, 1: account(1, "1F1")}, TWO, NOW_NS)
    text = account_text(0, scene)
    assert text.startswith(
        "rank 0 (dp 0, pp 0, tp 0), stage 0, step 7, 0B1: waits in 0RECV_B1 (pp=1) for rank 1, for 12.0 s; last sign "
        "of life 0.2 s ago\n"
    )
    assert text.splitlines()[1:] == [f"     12.0 s ago  {did}" for did in ("step 7", "DATA", "OPTIMIZER", "0B1")]
    assert "waits for no rank" in account_text(1, scene)
