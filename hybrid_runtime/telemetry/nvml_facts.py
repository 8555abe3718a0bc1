"""What NVML tells of a device that does not change during a run: which query, and its answer in words with units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# nvml.h, nvmlGpuTopologyLevel_t
TOPOLOGY = {
    0: "on one board",
    10: "one PCIe switch between them",
    20: "several PCIe switches, no host bridge between them",
    30: "one PCIe host bridge between them",
    40: "host bridges of one NUMA node between them",
    50: "the connection between NUMA nodes between them",
}
_COMPUTE_MODES = {0: "default (shared)", 1: "exclusive thread", 2: "prohibited", 3: "exclusive process"}


def topology_words(level: int) -> str:
    """Where the PCI paths of two devices meet."""
    return TOPOLOGY.get(level, f"level {level}")


def _pci_id(found: Any) -> str:
    text = found.busId
    return text.decode() if isinstance(text, bytes) else str(text)


def _switched(state: int) -> str:
    return "on" if state else "off"


def _current_and_pending(states: Any) -> str:
    """A setting that takes a reset to change: what it is, and what it will be if that differs."""
    current, pending = (_switched(state) for state in states)
    return current if current == pending else f"{current}, {pending} after the next reset"


def _megahertz(clock: int) -> str:
    return f"{clock} MHz"


def _watts(power_mw: int) -> str:
    return f"{power_mw / 1000:g} W"


# What a device is and how it is set: fact -> (query, arguments behind the handle, reading to text).
FACTS: dict[str, tuple[str, tuple[Any, ...], Callable[[Any], str]]] = {
    "PCI id": ("nvmlDeviceGetPciInfo", (), _pci_id),
    "VBIOS": ("nvmlDeviceGetVbiosVersion", (), str),
    "ECC": ("nvmlDeviceGetEccMode", (), _current_and_pending),
    "MIG": ("nvmlDeviceGetMigMode", (), _current_and_pending),
    "compute mode": ("nvmlDeviceGetComputeMode", (), lambda mode: _COMPUTE_MODES.get(mode, f"mode {mode}")),
    "persistence": ("nvmlDeviceGetPersistenceMode", (), _switched),
    "power limit in force": ("nvmlDeviceGetEnforcedPowerLimit", (), _watts),
    "power limit by default": ("nvmlDeviceGetPowerManagementDefaultLimit", (), _watts),
    "application SM clock": ("nvmlDeviceGetApplicationsClock", (1,), _megahertz),
    "largest SM clock": ("nvmlDeviceGetMaxClockInfo", (1,), _megahertz),
    "largest memory clock": ("nvmlDeviceGetMaxClockInfo", (2,), _megahertz),
    "PCIe generation": ("nvmlDeviceGetCurrPcieLinkGeneration", (), str),
    "PCIe lanes": ("nvmlDeviceGetCurrPcieLinkWidth", (), str),
    "CUDA compute capability": ("nvmlDeviceGetCudaComputeCapability", (), lambda pair: ".".join(map(str, pair))),
}
