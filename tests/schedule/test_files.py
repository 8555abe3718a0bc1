from __future__ import annotations

import random
from pathlib import Path

import pytest

from hybrid_runtime.errors import PlanError
from hybrid_runtime.schedule.actions import Kind
from hybrid_runtime.schedule.files import check_file, in_file, read_lists, save_lists
from hybrid_runtime.schedule.lower import lower
from hybrid_runtime.schedule.registry import SCHEDULES, find_schedule, generate, generate_cells
from tests.schedule.test_against_torch import torch_rows

GOOD = """\
0F0,0F1,,0B0,0B1
,1F0,1B0,1F1,1B1
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "lists.csv"
    path.write_text(text)
    return path


def findings(tmp_path: Path, text: str) -> list[str]:
    return list(map(in_file, check_file(write(tmp_path, text)).findings))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("workload", ["train", "forward"])
def test_saved_lists_are_read_back_exactly(tmp_path: Path, name: str, workload: str) -> None:
    path = tmp_path / "lists.csv"
    for pp_degree in (1, 2, 3):
        cells = generate_cells(name, pp_degree, 6, workload)
        save_lists(path, cells)
        found = read_lists(path)
        assert found.cells == cells
        assert found.lists == generate(name, pp_degree, 6, workload)
        assert found.stage_to_rank == find_schedule(name).place(pp_degree)
        assert (found.num_microbatches, found.workload, found.has_messages) == (6, workload, False)
        assert check_file(path).findings == ()
        lowered = lower(found.lists, found.stage_to_rank)
        save_lists(path, lowered)
        assert (read_lists(path).lists, read_lists(path).has_messages) == (lowered, pp_degree > 1)
        assert check_file(path).findings == ()


def test_what_a_check_reports(tmp_path: Path) -> None:
    result = check_file(write(tmp_path, GOOD))
    assert result.findings == ()
    assert result.peak_in_flight == (2, 1)
    assert result.receive_depth == {"0>1": 2, "1>0": 2}


@pytest.mark.parametrize(
    ("old", "new", "first"),
    [
        ("0B0", "0B0junk", "row 1, cell 4, 0B0junk: '0B0junk' is not an action"),
        ("1F1", "(1F1;(1B0))OVERLAP_F_B", "row 2, cell 4, (1F1;(1B0))OVERLAP_F_B: '(1F1;(1B0))OVERLAP_F_B' is not an"),
        ("1F1", "1F7", "row 2, cell 4, 1F7: hardly any action, or none, is of microbatch 2: a wrong number?"),
        ("1F1", "9F1", "row 2, cell 4, 9F1: hardly any action, or none, is of stage 2: a wrong number?"),
        (",1F1", "", "row 2, cell 5, 1F1: is missing"),
        ("0B0", "0B1", "row 1, cell 5, 0B1: is done twice"),
        ("0B0", "1B0", "row 1, cell 4, 1B0: stage 1 lives on pipeline rank 1"),
        ("0B0,0B1", "0B1,0B0", "row 1, cell 5, 0B0: gradients of stage 0 are added out of order"),
        ("1F0,1B0", "1B0,1F0", "row 2, cell 2, 1B0: can never run, even if sends are buffered: it waits for 1F0"),
        ("1B1", "1I1", "row 2, cell 6, 1W1: is missing, but there is its I"),
        ("\n,1F0", "\n\n,1F0", "row 2, cell 1, -: holds no stage"),
    ],
)
def test_the_first_wrong_action_is_pointed_at(tmp_path: Path, old: str, new: str, first: str) -> None:
    assert old in GOOD
    assert findings(tmp_path, GOOD.replace(old, new, 1))[0].startswith(first)


def test_lists_with_messages_are_checked_as_they_are(tmp_path: Path) -> None:
    good = "0F0,0SEND_F0,0RECV_B0,0B0\n1RECV_F0,1F0,1B0,1SEND_B0\n"
    assert findings(tmp_path, good) == []
    assert findings(tmp_path, good.replace(",1SEND_B0", ""))[0].startswith("row 1, cell 3, 0RECV_B0: no SEND is left")
    assert findings(tmp_path, good.replace("1RECV_F0,1F0", "1F0,1RECV_F0"))[0].startswith(
        "row 2, cell 1, 1F0: can never run, even if sends are buffered: it waits for 1RECV_F0"
    )


def test_data_parallel_actions_are_kept_and_ignored(tmp_path: Path) -> None:
    path = write(tmp_path, "0UNSHARD,0F0,0B0,0REDUCE_GRAD,0RESHARD\n")
    found = read_lists(path)
    assert [str(cell) for cell in found.cells[0]] == ["0UNSHARD", "0F0", "0B0", "0REDUCE_GRAD", "0RESHARD"]
    assert [str(action) for action in found.lists[0]] == ["0F0", "0B0"]
    assert found.columns == ((1, 2),)
    assert check_file(path).findings == ()
    save_lists(path, found.cells)
    assert path.read_text() == "0UNSHARD,0F0,0B0,0REDUCE_GRAD,0RESHARD\n"


def test_what_torch_writes(tmp_path: Path) -> None:
    def text(class_name: str, virtual_stages: int) -> str:
        rows = torch_rows(class_name, 4, 12, virtual_stages)
        return "".join(",".join("" if cell is None else str(cell) for cell in rows[rank]) + "\n" for rank in rows)

    assert findings(tmp_path, text("ScheduleDualPipeV", 2)) == []
    assert findings(tmp_path, text("ScheduleInterleavedZeroBubble", 2)) == []
    # torch's own list of 1F1B counts the last rank's forwards from 1 to 12
    assert findings(tmp_path, text("Schedule1F1B", 1)) == [
        "row 4, cell 23, 3F12: hardly any action, or none, is of microbatch 12: a wrong number?"
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no actions; write one row per pipeline rank"),
        (b"\n,,\n\n", "holds no actions"),
        (b"\xff\xfe", "is not CSV text"),
        (b"0SEND_F0\n", "row 1, cell 1, -: no row computes anything"),
        (b"0F0,what\n", "row 1, cell 2, what: 'what' is not an action"),
    ],
)
def test_what_is_no_list(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "lists.csv").write_bytes(content)
    with pytest.raises(PlanError, match=message):
        read_lists(tmp_path / "lists.csv")


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"none.csv: cannot be read .* name a CSV file"):
        read_lists(tmp_path / "none.csv")
    with pytest.raises(PlanError, match="cannot be written"):
        save_lists(tmp_path / "none" / "lists.csv", [])


def test_quotes_spaces_and_byte_order_marks_of_spreadsheets(tmp_path: Path) -> None:
    (tmp_path / "lists.csv").write_bytes(b'\xef\xbb\xbf"0F0", 0F1 ,0B0,0B1,\r\n')
    assert read_lists(tmp_path / "lists.csv").num_microbatches == 2


def test_a_swap_across_a_dependency_is_found_in_its_row(tmp_path: Path) -> None:
    source = random.Random(3)
    for name in SCHEDULES:
        for _ in range(10):
            rows = [list(actions) for actions in generate(name, 3, 6, "train")]
            row = source.randrange(3)
            backward = source.choice([action for action in rows[row] if action.kind in (Kind.I, Kind.B)])
            late, early = rows[row].index(backward), rows[row].index(backward._replace(kind=Kind.F))
            rows[row][early], rows[row][late] = rows[row][late], rows[row][early]
            save_lists(tmp_path / "lists.csv", rows)
            assert check_file(tmp_path / "lists.csv").findings[0].rank == row
