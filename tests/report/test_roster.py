"""The members of a side, from headers that may not be there yet."""

from __future__ import annotations

from pathlib import Path

from hybrid_runtime.mesh import Mesh
from hybrid_runtime.report.roster import Member, Roster
from hybrid_runtime.run_folder import RunFolder
from tests.report.running import write_members


def test_a_member_is_found_once_its_header_is_whole_and_then_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).create()
    roster = Roster(folder)
    path = folder.records / "rank5.jsonl"
    assert roster.member(5) is None
    write_members(RunFolder(tmp_path / "other"), Mesh(tp_degree=2, pp_degree=2, dp_degree=2))
    whole = (tmp_path / "other/records/rank5.jsonl").read_text()
    path.write_text(whole[:50])
    assert roster.member(5) is None
    path.write_text(whole + "a step follows")
    expected = Member(dp=1, pp=0, tp=1, stages="0", device="vm:rank5", host="vm")
    assert roster.member(5) == expected
    path.unlink()
    assert roster.member(5) == expected
