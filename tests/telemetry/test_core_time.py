from __future__ import annotations

import os
from pathlib import Path

from hybrid_runtime.telemetry.core_time import CoreMeter

STAT = """\
cpu  100 0 0 0 0 0 0 0 0 0
cpu0 10 1 2 900 50 3 4 5 10 0
cpu1 20 0 0 900 50 0 0 0 0 0
cpu10 7 0 0 0 0 0 0 0 0 0
intr 1 2 3
"""


def test_busy_ticks_of_the_named_cpus_only(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text(STAT)
    tick_ns = 10**9 // os.sysconf("SC_CLK_TCK")
    assert CoreMeter([0], stat).read().cores_busy_ns == (10 + 1 + 2 + 3 + 4 + 5) * tick_ns
    assert CoreMeter([0, 1], stat).read().cores_busy_ns == 45 * tick_ns
    assert CoreMeter([1], stat).read().cores_busy_ns == 20 * tick_ns  # not cpu10


def test_what_the_system_does_not_tell_is_unknown(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    assert CoreMeter([0], stat).read().cores_busy_ns == -1
    stat.write_text(STAT)
    assert CoreMeter([0, 5], stat).read().cores_busy_ns == -1


def test_the_process_own_time_grows_with_its_work() -> None:
    meter = CoreMeter(sorted(os.sched_getaffinity(0)))
    before = meter.read()
    sum(range(10**6))
    after = meter.read()
    assert after.process_ns > before.process_ns
    assert after.cores_busy_ns >= before.cores_busy_ns
