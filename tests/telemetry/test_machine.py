import re
from pathlib import Path

from hybrid_runtime.telemetry.machine import machine

HOST = {
    "etc/os-release": 'NAME=x\nPRETTY_NAME="Some Linux 9"\n',
    "proc/cpuinfo": "model name\t: Some CPU\nflags\t\t: fpu hypervisor sse\n",
    "proc/meminfo": "MemTotal:       8388608 kB\nMemAvailable:   4194304 kB\nHugePages_Total:       0\n",
    "proc/self/cgroup": "0::/job\n",
    "proc/1/cgroup": "0::/kubepods/pod7\n",
    "sys/fs/cgroup/job/cpu.max": "250000 100000\n",
    "sys/fs/cgroup/job/memory.max": "1073741824\n",
    "sys/devices/system/cpu/smt/active": "1\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "powersave\n",
    "sys/devices/system/node/node0/cpulist": "0-1\n",
    "sys/devices/system/node/node1/cpulist": "2-3\n",
    "sys/class/dmi/id/sys_vendor": "Acme\n",
}


def made_up(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_what_a_host_tells(tmp_path: Path) -> None:
    facts = machine(made_up(tmp_path, HOST))
    assert facts["operating system"] == "Some Linux 9"
    assert facts["CPU"] == "Some CPU"
    assert facts["SMT"] == "on"
    assert facts["frequency governor"] == "performance, powersave"
    assert facts["CPU quota"] == "2 whole cores"
    assert (facts["memory"], facts["memory available"], facts["memory limit"]) == ("8.00 GiB", "4.00 GiB", "1.00 GiB")
    assert facts["NUMA nodes"] == "2 (node0: CPUs 0-1; node1: CPUs 2-3)"
    assert facts["virtual machine"] == "yes (Acme)"
    assert facts["container"] == "yes: kubepods"


def test_version_1_control_groups(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "4:memory:/job\n1:cpu:/\n0::/\n"}
    limit = "sys/fs/cgroup/memory/job/memory.limit_in_bytes"
    assert machine(made_up(tmp_path, files | {limit: "2147483648\n"}))["memory limit"] == "2.00 GiB"
    assert machine(made_up(tmp_path, files | {limit: "9223372036854771712\n"}))["memory limit"] == "none"


def test_what_it_does_not_tell_has_a_reason(tmp_path: Path) -> None:
    facts = machine(tmp_path)
    assert set(facts) == set(machine())
    silent = [name for name, text in facts.items() if text.startswith("n/a: ")]
    assert {"operating system", "SMT", "frequency governor", "memory", "NUMA nodes", "virtual machine"} <= set(silent)
    assert facts["container"] == "none seen"


def test_this_host_leaves_nothing_empty() -> None:
    assert all(re.search(r"\w", text) for text in machine().values())
