from pathlib import Path

import pytest

from hybrid_runtime.telemetry.cgroup import quota_cores


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "cores"), [("max 100000", None), ("200000 100000", 2), ("250000 100000", 2), ("50000 100000", 0)]
)
def test_version_2_is_rounded_down(tmp_path: Path, text: str, cores: int | None) -> None:
    write(tmp_path / "fs" / "job" / "cpu.max", text)
    assert quota_cores(write(tmp_path / "cgroup", "0::/job\n"), tmp_path / "fs") == cores


def test_the_tightest_of_a_group_and_those_above_it_counts(tmp_path: Path) -> None:
    write(tmp_path / "fs" / "a" / "b" / "cpu.max", "800000 100000\n")
    write(tmp_path / "fs" / "a" / "cpu.max", "300000 100000\n")
    write(tmp_path / "fs" / "other" / "cpu.max", "100000 100000\n")
    assert quota_cores(write(tmp_path / "cgroup", "0::/a/b\n"), tmp_path / "fs") == 3


def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    write(tmp_path / "fs" / "cpu.max", "400000 100000\n")
    assert quota_cores(write(tmp_path / "cgroup", "0::/../../outside/name\n"), tmp_path / "fs") == 4


@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
@pytest.mark.parametrize(("quota", "cores"), [("-1", None), ("150000", 1)])
def test_version_1(tmp_path: Path, mount: str, quota: str, cores: int | None) -> None:
    group = tmp_path / "fs" / mount / "job"
    write(group / "cpu.cfs_quota_us", quota)
    write(group / "cpu.cfs_period_us", "100000")
    membership = write(tmp_path / "cgroup", "8:memory:/job\n4:cpu,cpuacct:/job\n3:cpuset:/\n0::/\n")
    assert quota_cores(membership, tmp_path / "fs") == cores


def test_no_control_groups_no_limit(tmp_path: Path) -> None:
    assert quota_cores(tmp_path / "absent", tmp_path) is None
