from __future__ import annotations

import pytest

from hybrid_runtime.schedule.actions import parse_action
from hybrid_runtime.schedule.dependencies import needs


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ("0F4", ""),
        ("2F4", "1F4"),
        ("1B4", "1F4, 2I4 or 2B4"),
        ("1I4", "1F4, 2I4 or 2B4"),
        ("2B4", "2F4"),
        ("2W4", "2I4"),
    ],
)
def test_needs_in_a_pipeline_of_three_stages(action: str, expected: str) -> None:
    found = needs(parse_action(action), num_stages=3)
    assert ", ".join(" or ".join(map(str, alternatives)) for alternatives in found) == expected
