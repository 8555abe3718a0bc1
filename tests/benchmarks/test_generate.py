"""The benchmarks of serving: sides that do not say the same are not measured, and tables say which side is faster."""

from __future__ import annotations

import time
from typing import Any

import pytest

from benchmarks import generate, serving


def side(seconds: float, *answer: int) -> generate.Side:
    def run() -> list[tuple[int, ...]]:
        time.sleep(seconds)
        return [answer]

    return run


def test_sides_that_differ_are_not_measured() -> None:
    with pytest.raises(SystemExit, match="do not say the same"):
        generate.compared(side(0, 1, 2), side(0, 1, 3), 5, 2)


@pytest.mark.parametrize(("ours_s", "theirs_s", "outcome"), [(0.002, 0.02, "PASS"), (0.02, 0.002, "FAIL")])
def test_the_faster_side(ours_s: float, theirs_s: float, outcome: str) -> None:
    figures = generate.compared(side(ours_s, 1, 2), side(theirs_s, 1, 2), 6, 2)
    low, middle, high = figures["ratio"]
    assert low <= middle <= high
    assert (middle > 1) == (ours_s < theirs_s)
    assert figures["outcome"] == outcome
    assert figures["tokens"] == 2


def test_the_tables() -> None:
    figures = {"seconds": [(1.0, 2.0), (1.0, 2.0)], "tokens": 64, "ratio": [1.9, 2.0, 2.1], "outcome": "PASS"}
    assert generate.table({"w256b1": {"generate": figures}}).splitlines()[2] == (
        "| w256b1 | generate | 64.0         | 32.0                   | 2.000 [1.900, 2.100] | >= 1.00: PASS |"
    )
    claim: dict[str, Any] = {"id": "throughput", "op": ">=", "threshold": "60", "unit": "%", "outcome": "PASS"}
    claims = [
        claim | {"measured": {"point": "71.25", "lower": "66", "upper": "75.123"}, "reason": None},
        claim | {"measured": None, "reason": "not_measured", "outcome": "INCONCLUSIVE"},
    ]
    assert serving.table_of({"interleave": {"claims": claims}}).splitlines()[2:] == [
        "| interleave | throughput | >= 60 %  | 71.25 [66.00, 75.12] | PASS         |",
        "| interleave | throughput | >= 60 %  | - (not_measured)     | INCONCLUSIVE |",
    ]
