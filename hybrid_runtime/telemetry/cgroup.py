"""How many whole cores the control group lets this process use (containers, batch systems); Linux cgroup v1 and v2.

    v2   /sys/fs/cgroup/<group>/cpu.max              "150000 100000" is 1.5 cores; "max 100000" is no limit
    v1   /sys/fs/cgroup/cpu/<group>/cpu.cfs_quota_us and cpu.cfs_period_us; -1 is no limit

A group is also bound by the groups above it. Inside a container the group's path may name a folder that only the
outside has: then the root, which is the container's own group, counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path


def quota_cores(membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """The tightest CPU quota in force, rounded down to whole cores; None without a limit.

    Args:
        membership: lines "number:controllers:group"; v2's has no controllers.
        root: where cgroup file systems are mounted.
    """
    if not membership.is_file():
        return None
    limits = []
    for line in membership.read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if not controllers:
            limits += [_limit_v2(folder) for folder in _upwards(root, group)]
        elif "cpu" in controllers.split(","):
            mounts = [root / name for name in (controllers, "cpu") if (root / name).is_dir()]
            limits += [_limit_v1(folder) for mount in mounts[:1] for folder in _upwards(mount, group)]
    bounds = [limit for limit in limits if limit is not None]
    return int(min(bounds)) if bounds else None


def _upwards(mount: Path, group: str) -> Iterator[Path]:
    folder = mount / group.lstrip("/")
    while folder != mount and mount in folder.parents:
        yield folder
        folder = folder.parent
    yield mount


def _limit_v2(folder: Path) -> Fraction | None:
    quota, period = (_words(folder / "cpu.max") or ["max", "100000"])[:2]
    return None if quota == "max" else Fraction(int(quota), int(period))


def _limit_v1(folder: Path) -> Fraction | None:
    quota, period = _words(folder / "cpu.cfs_quota_us"), _words(folder / "cpu.cfs_period_us")
    return Fraction(int(quota[0]), int(period[0])) if quota and period and int(quota[0]) > 0 else None


def _words(file: Path) -> list[str]:
    return file.read_text().split() if file.is_file() else []
