from __future__ import annotations

import pytest

from hybrid_runtime.errors import PlanError
from hybrid_runtime.schedule.registry import find_schedule, generate


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(PlanError, match=r"'1f1p': no such schedule; did you mean '1f1b'\? known are gpipe, 1f1b"):
        find_schedule("1f1p")
    with pytest.raises(PlanError, match="did you mean 'gpipe'"):
        generate("GPipes", 2, 2, "train")


def test_nothing_to_schedule_is_an_error() -> None:
    with pytest.raises(PlanError, match="at least 1 pipeline rank and 1 microbatch, not 2 and 0"):
        generate("1f1b", 2, 0, "train")
