"""Whose machine and whose clock a process has."""

from __future__ import annotations

from hybrid_runtime.telemetry.kernel import Kernel, this_kernel, told_apart


def test_a_clock_is_a_machines_time_namespace() -> None:
    here = this_kernel("vm")
    assert here == this_kernel("another name of it")
    assert here.clock == Kernel(*here).clock
    assert here.clock != here._replace(time_namespace="time:[2]").clock
    assert here.clock != here._replace(boot_id="another start").clock


def test_only_equal_names_of_different_machines_change() -> None:
    one, two = Kernel("1111-a", ""), Kernel("2222-b", "")
    assert told_apart(["a", "a", "b"], [one, one, one]) == ["a", "a", "b"]
    assert told_apart(["a", "a", "b"], [one, two, two]) == ["a@1111-a", "a@2222-b", "b"]
