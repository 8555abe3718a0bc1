from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from hybrid_runtime.errors import PlanError
from hybrid_runtime.schedule.choose import accept, busy_at_best, is_file, lowered_lists, place
from hybrid_runtime.schedule.files import save_lists
from hybrid_runtime.schedule.lower import lower
from hybrid_runtime.schedule.registry import generate, generate_cells


@pytest.fixture
def zb_v(tmp_path: Path) -> str:
    save_lists(tmp_path / "zb_v.csv", generate_cells("zb_v", 2, 4, "train"))
    return str(tmp_path / "zb_v.csv")


def test_a_file_is_as_good_as_a_name(zb_v: str) -> None:
    assert is_file(zb_v)
    assert not is_file("zb_v")
    assert place(zb_v, 2) == place("zb_v", 2, 2) == place(zb_v, 2, 2) == (0, 1, 1, 0)
    assert lowered_lists(zb_v, 2, 4, "train") == lowered_lists("zb_v", 2, 4, "train")
    assert busy_at_best(zb_v, 2, 4, "train") == busy_at_best("zb_v", 2, 4, "train") == Fraction(24, 25)


def test_messages_of_a_file_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "LISTS.CSV"
    lists = lower(generate("1f1b", 2, 4, "train"), (0, 1), pool_depth=1)
    save_lists(path, lists)
    assert lowered_lists(str(path), 2, 4, "train") == lists != lowered_lists("1f1b", 2, 4, "train")


def test_what_a_file_is_not_made_for(zb_v: str) -> None:
    with pytest.raises(PlanError, match="has 2 rows, but pp_degree = 3 needs one per rank"):
        place(zb_v, 3)
    with pytest.raises(PlanError, match=r"virtual_stages = 3: .*zb_v.csv has 2 stages on a rank; leave virtual_stages"):
        place(zb_v, 2, 3)
    with pytest.raises(PlanError, match="is made for 4 microbatches, but the batch makes 8: change global_batch_size"):
        accept(zb_v, 2, 8, "train", None)
    with pytest.raises(PlanError, match="is a schedule for workload 'train', not 'forward'"):
        accept(zb_v, 2, 4, "forward", None)


def test_what_is_wrong_in_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "wrong.csv"
    path.write_text("0F0,0B0\n1B0,1F0\n")
    with pytest.raises(PlanError, match=r"wrong.csv: row 2, cell 1, 1B0: can never run, .* it waits for 1F0"):
        lowered_lists(str(path), 2, 1, "train")


def test_a_name_is_asked_the_same_questions() -> None:
    assert place("interleaved_zb", 2, 3) == (0, 1, 0, 1, 0, 1)
    with pytest.raises(PlanError, match="dualpipe_v on 2 pipeline ranks needs at least 4 microbatches, not 3"):
        accept("dualpipe_v", 2, 3, "train", None)
    with pytest.raises(PlanError, match="no such schedule"):
        place("zb", 2)
