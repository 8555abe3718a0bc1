"""What times hold for: the device, the host and the versions that they were measured with, as text by name.

Only what stays the same from one process to the next: no load, no free memory, no cores that a process was pinned to.
"""

from __future__ import annotations

from collections.abc import Mapping

_OF_HOST = ("CPU", "logical CPUs", "SMT", "frequency governor", "CPU quota", "memory", "virtual machine", "kernel")
_OF_VERSIONS = ("python", "torch", "cuda", "nccl")


def fingerprint(
    machine: Mapping[str, str], versions: Mapping[str, str], *, host: str, device: str, threads_per_rank: int
) -> dict[str, str]:
    """The fingerprint from what a rank's header holds (or `telemetry/machine.py` and `telemetry/host.py` say now).

    Args:
        machine, versions: as in `records.Header`.
        device: its name: of the GPU, or of the CPU.
    """
    unknown = "n/a: not recorded"
    found = {"host": host, "device": device, "threads per rank": str(threads_per_rank)}
    found |= {name: machine.get(name, unknown) for name in _OF_HOST}
    return found | {name: versions.get(name, unknown) for name in _OF_VERSIONS}


def known_fingerprint(machine: Mapping[str, str], versions: Mapping[str, str], *, host: str) -> dict[str, str]:
    """The facts of a fingerprint that are known of a machine before torch is loaded; arguments as there."""
    whole = fingerprint(machine, versions, host=host, device="", threads_per_rank=1)
    return {name: whole[name] for name in ("host", *_OF_HOST, *(name for name in _OF_VERSIONS if name in versions))}


def differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """One line per fact that differs: "torch: 2.13.0 here, 2.12.0 there"."""
    names = dict.fromkeys([*ours, *theirs])
    missing = "nothing"
    return [
        f"{name}: {ours.get(name, missing)} here, {theirs.get(name, missing)} there"
        for name in names
        if ours.get(name) != theirs.get(name)
    ]
