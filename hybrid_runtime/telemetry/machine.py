"""What a host is and how it is set, as text by name: whatever may explain a figure years later. Linux; torch-free.

Nothing is left out: what the system does not tell is "n/a: why", never an empty text or a zero.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

from hybrid_runtime.telemetry.cgroup import quota_cores
from hybrid_runtime.telemetry.host import cpu_name, physical_cores, ranges

GIB = 2**30
_CONTAINER_FILES = {"/.dockerenv": "docker", "/run/.containerenv": "podman"}
_CONTAINER_GROUPS = ("docker", "kubepods", "containerd", "lxc", "libpod")


def machine(root: Path = Path("/")) -> dict[str, str]:
    """The facts of the host that this process runs on.

    Args:
        root: where /proc, /sys, /etc and /run are; a test gives a made-up one.
    """
    cpus = sorted(os.sched_getaffinity(0))
    memory = _meminfo(root / "proc/meminfo")
    system = platform.uname()
    return {
        "operating system": _distribution(root),
        "kernel": f"{system.system} {system.release} {system.machine}",
        "CPU": cpu_name(root / "proc/cpuinfo"),
        "logical CPUs": str(os.cpu_count() or "n/a: the system does not count them"),
        "CPUs allowed to this rank": ranges(cpus),
        "physical cores behind them": str(len(physical_cores(cpus, root / "sys/devices/system/cpu"))),
        "SMT": _smt(root),
        "frequency governor": _governor(root),
        "CPU quota": _quota(root),
        "memory": _gib(memory, "MemTotal"),
        "memory available": _gib(memory, "MemAvailable"),
        "memory limit": _memory_limit(root),
        "NUMA nodes": _numa(root),
        "load average": _load(),
        "virtual machine": _virtual(root),
        "container": _container(root),
        "PID namespace": _pid_namespace(root),
    }


def _text(path: Path) -> str | None:
    """A file's text without blanks at its ends; None if it is missing, unreadable or empty."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def _distribution(root: Path) -> str:
    lines = (_text(root / "etc/os-release") or "").splitlines()
    names = [line.partition("=")[2].strip('"') for line in lines if line.startswith("PRETTY_NAME=")]
    return names[0] if names else "n/a: no /etc/os-release"


def _smt(root: Path) -> str:
    active = _text(root / "sys/devices/system/cpu/smt/active")
    return {"1": "on", "0": "off"}.get(active or "", "n/a: the system does not show it")


def _governor(root: Path) -> str:
    files = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")
    found = sorted({text for file in files if (text := _text(file))})
    return ", ".join(found) or "n/a: no cpufreq here (usual in a virtual machine)"


def _quota(root: Path) -> str:
    try:
        cores = quota_cores(root / "proc/self/cgroup", root / "sys/fs/cgroup")
    except (OSError, ValueError) as problem:
        return f"n/a: the control group cannot be read ({problem})"
    return "none" if cores is None else f"{cores} whole cores"


def _meminfo(path: Path) -> dict[str, int]:
    """Sizes in bytes by the kernel's names."""
    words = [line.split() for line in (_text(path) or "").splitlines()]
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in words if len(row) == 3 and row[1].isdecimal()}


def _gib(memory: dict[str, int], name: str) -> str:
    return f"{memory[name] / GIB:.2f} GiB" if name in memory else f"n/a: the kernel does not tell {name}"


def _memory_limit(root: Path) -> str:
    """Of the process's own control group: version 2, then version 1."""
    groups = dict(line.split(":", 2)[1:] for line in (_text(root / "proc/self/cgroup") or "").splitlines())
    mount = root / "sys/fs/cgroup"
    own = mount / groups.get("", "/").lstrip("/"), mount / "memory" / groups.get("memory", "/").lstrip("/")
    files = [own[0] / "memory.max", mount / "memory.max", own[1] / "memory.limit_in_bytes"]
    limits = [text for file in files if (text := _text(file))]
    if not limits:
        return "n/a: no memory control group is visible"
    if not limits[0].isdecimal() or int(limits[0]) >= 2**60:  # version 1 writes a huge number for none
        return "none"
    return f"{int(limits[0]) / GIB:.2f} GiB"


def _numa(root: Path) -> str:
    nodes = sorted((root / "sys/devices/system/node").glob("node[0-9]*"), key=lambda node: int(node.name[4:]))
    if not nodes:
        return "n/a: the system does not show them"
    return (
        f"{len(nodes)} (" + "; ".join(f"{node.name}: CPUs {_text(node / 'cpulist') or 'none'}" for node in nodes) + ")"
    )


def _load() -> str:
    try:
        return ", ".join(f"{load:.2f}" for load in os.getloadavg()) + " (1, 5, 15 minutes)"
    except OSError:
        return "n/a: the system does not tell"


def _virtual(root: Path) -> str:
    flags = next((line for line in (_text(root / "proc/cpuinfo") or "").splitlines() if line.startswith("flags")), None)
    if flags is None:
        return "n/a: the CPU's flags are not shown"
    vendor = _text(root / "sys/class/dmi/id/sys_vendor") or "vendor not shown"
    return f"yes ({vendor})" if "hypervisor" in flags.split() else "no"


def _container(root: Path) -> str:
    files = [name for path, name in _CONTAINER_FILES.items() if (root / path.lstrip("/")).exists()]
    groups = _text(root / "proc/1/cgroup") or ""
    found = [*files, *(name for name in _CONTAINER_GROUPS if name in groups)]
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        found.append("Kubernetes")
    return "yes: " + ", ".join(dict.fromkeys(found)) if found else "none seen"


def _pid_namespace(root: Path) -> str:
    try:
        return os.readlink(root / "proc/self/ns/pid")
    except OSError as problem:
        return f"n/a: {problem.strerror}"
