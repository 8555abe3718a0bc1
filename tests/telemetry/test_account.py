from __future__ import annotations

import os
from pathlib import Path

from hybrid_runtime.telemetry.account import parse_account, process_state, read_account
from hybrid_runtime.telemetry.status import KEPT_ACTIONS, StatusFile


def test_what_a_rank_waits_for_is_read_until_it_goes_on(tmp_path: Path) -> None:
    status = StatusFile(tmp_path / "rank3", 3, (1, 4))
    status.step(7)
    status.doing("4B15")
    status.doing("4B15")  # noted by the executor and by the span
    found = read_account(tmp_path / "rank3")
    assert found is not None
    assert found.waiting is None
    assert [did.text for did in found.last] == ["starting", "step 7", "4B15"]
    assert (found.rank, found.number, found.pid, found.status.stage) == (3, 1, os.getpid(), "4")
    status.wait("last sends", "pp=0,2")
    known = parse_account(status.text)
    status.beat()
    waits = read_account(tmp_path / "rank3")
    assert waits is not None
    assert waits.waiting is not None
    assert known == waits._replace(beat_ns=found.beat_ns), "this process itself knows before it is written down"
    assert (waits.waiting.name, waits.waiting.axis) == ("last sends", "pp=0,2")
    assert waits.changed_ns == waits.waiting.at_ns > found.changed_ns
    status.go_on()
    status.beat()
    after = read_account(tmp_path / "rank3")
    assert after is not None
    assert after.waiting is None
    assert after.changed_ns == waits.changed_ns, "a wait that is over still shows when something last happened"
    assert process_state(after) == "R"
    status.wait("1RECV_F3", "pp=0")
    status.close()
    left = read_account(tmp_path / "rank3")
    assert left is not None
    assert left.waiting is not None
    assert left.waiting.name == "1RECV_F3", "a rank that fails says what it waited for"


def test_the_ring_keeps_the_newest_and_times_of_another_clock_are_moved(tmp_path: Path) -> None:
    status = StatusFile(tmp_path / "rank0", 0, (0,), clock_offset_ns=-5_000_000_000)
    status.step(0)
    before = read_account(tmp_path / "rank0")
    for k in range(KEPT_ACTIONS + 10):
        status.doing(f"0F{k}")
    status.beat()
    found = read_account(tmp_path / "rank0")
    assert before is not None
    assert found is not None
    assert [did.text for did in found.last] == [f"0F{k}" for k in range(10, KEPT_ACTIONS + 10)]
    assert found.beat_ns > before.beat_ns
    assert 0 <= found.changed_ns + 5_000_000_000 - found.last[0].at_ns - 5_000_000_000 < 10**9
    assert 0 <= status.idle_s < 5


def test_no_account_of_what_is_none(tmp_path: Path) -> None:
    assert read_account(tmp_path / "rank0") is None
    (tmp_path / "rank0").write_text("rank=0 step=1 stage=0 action=x\n")
    assert read_account(tmp_path / "rank0") is None
