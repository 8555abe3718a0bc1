"""NVML as readings: every query gives a value or an `Unavailable` with the reason. Torch-free.

`pynvml` is the module of the package nvidia-ml-py. It is imported on first use; a test gives a fake one instead.
Devices are looked up by UUID, because NVML counts GPUs of the whole host and torch only those it may see
(CUDA_VISIBLE_DEVICES).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from importlib import metadata
from itertools import combinations
from time import monotonic_ns
from typing import Any, Literal, TypeVar

from hybrid_runtime.nvml_records import (
    NvmlDevice,
    NvmlInventory,
    NvmlLink,
    NvmlSample,
    PeerAccess,
    Reading,
    Text,
    Unavailable,
)
from hybrid_runtime.telemetry.nvml_facts import FACTS, topology_words

T = TypeVar("T")

# nvml.h, nvmlReturn_t
REASONS = {
    1: "NVML is not initialised",
    2: "NVML calls the argument invalid",
    3: "not supported by this device",
    4: "no permission",
    5: "NVML is initialised already",
    6: "no such device on this host",
    7: "NVML calls the buffer too small",
    8: "the device lacks external power",
    9: "driver not loaded",
    10: "the driver timed out",
    11: "the device has an interrupt problem",
    12: "no NVIDIA driver on this host",
    13: "the driver is too old for this query",
    14: "the device's inforom is corrupt",
    15: "the GPU has fallen off the bus",
    16: "the GPU needs a reset",
    17: "blocked by the operating system",
    18: "driver and its library differ in version",
    19: "the GPU is in use",
    20: "out of memory",
    21: "no data",
    22: "not with ECC on this virtual GPU",
    23: "out of resources",
    24: "this clock is not supported",
    25: "the driver is too old for this query's version",
    26: "removed from this driver",
    27: "not ready yet",
    28: "no GPU found",
    29: "the device is in the wrong state",
    30: "this reset is not supported",
    999: "unknown NVML error",
}
PEER_STATUS = {
    0: "ok",
    1: "chipset not supported",
    2: "GPU not supported",
    3: "topology not supported",
    4: "disabled by a registry key",
    5: "not supported",
    6: "unknown",
}
_SM_CLOCK, _GPU_SENSOR, _PEER_READ, _PEER_NVLINK = 1, 0, 0, 2  # the binding spells the third one as a tuple
_MAX_LINKS = 36
_LINK_COUNT_FIELD = "NVML_FI_DEV_NVLINK_LINK_COUNT"
_VIOLATION_FIELDS = {
    "power": "NVML_FI_DEV_PERF_POLICY_POWER",
    "thermal": "NVML_FI_DEV_PERF_POLICY_THERMAL",
    "sync_boost": "NVML_FI_DEV_PERF_POLICY_SYNC_BOOST",
    "board_limit": "NVML_FI_DEV_PERF_POLICY_BOARD_LIMIT",
    "low_utilisation": "NVML_FI_DEV_PERF_POLICY_LOW_UTILIZATION",
    "reliability": "NVML_FI_DEV_PERF_POLICY_RELIABILITY",
    "application_clocks": "NVML_FI_DEV_PERF_POLICY_TOTAL_APP_CLOCKS",
    "base_clocks": "NVML_FI_DEV_PERF_POLICY_TOTAL_BASE_CLOCKS",
    "software_thermal": "NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN",
    "hardware_thermal": "NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN",
    "hardware_power_brake": "NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN",
}
_LINK_FIELDS = {  # the first four on NVLink up to 4, the others on NVLink 5
    "data_sent_kib": "NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX",
    "data_received_kib": "NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX",
    "raw_sent_kib": "NVML_FI_DEV_NVLINK_THROUGHPUT_RAW_TX",
    "raw_received_kib": "NVML_FI_DEV_NVLINK_THROUGHPUT_RAW_RX",
    "sent_bytes": "NVML_FI_DEV_NVLINK_COUNT_XMIT_BYTES",
    "received_bytes": "NVML_FI_DEV_NVLINK_COUNT_RCV_BYTES",
    "receive_errors": "NVML_FI_DEV_NVLINK_COUNT_RCV_ERRORS",
}
_VALUE_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")  # by nvmlValueType_t


def reason_of(code: int) -> str:
    """An NVML return code in words."""
    return REASONS.get(code, f"NVML error {code}")


def shadowing() -> str | None:
    """A warning when the deprecated distribution `pynvml` has put its own module over nvidia-ml-py's."""
    try:
        files = metadata.files("pynvml") or []
    except metadata.PackageNotFoundError:
        return None
    if not any(str(file) in ("pynvml.py", "pynvml/__init__.py") for file in files):
        return None  # from version 12 on it only depends on nvidia-ml-py
    return "the deprecated package 'pynvml' hides nvidia-ml-py; run: pip uninstall pynvml, then reinstall nvidia-ml-py"


class Nvml:
    """A session with NVML; nothing raises when there is no driver, all readings then say so.

    Args:
        binding: module with pynvml's names; None imports pynvml.
    """

    def __init__(self, binding: Any = None) -> None:
        self._binding: Any = binding
        self._handles: dict[str, Any] = {}
        self.problem: Unavailable | None = None
        if binding is None:
            try:
                self._binding = importlib.import_module("pynvml")
            except ImportError:
                self.problem = Unavailable(unavailable="the package nvidia-ml-py is not installed")
                return
        started = self._read("nvmlInit", then=lambda _: True)
        if isinstance(started, Unavailable):
            self.problem = started

    def close(self) -> None:
        """Ends the session."""
        if self.problem is None:
            self._read("nvmlShutdown", then=lambda _: True)

    def driver(self) -> Text:
        """Version of the driver."""
        return self._read("nvmlSystemGetDriverVersion", then=str)

    def cuda_driver(self) -> Text:
        """The newest CUDA version that the driver can run."""
        return self._read(
            "nvmlSystemGetCudaDriverVersion_v2", then=lambda version: f"{version // 1000}.{version % 1000 // 10}"
        )

    def sample(self, uuid: str) -> NvmlSample:
        """The quick readings of one device."""
        memory = self._memory(uuid)
        return NvmlSample(
            time_ns=monotonic_ns(),
            uuid=uuid,
            utilisation_percent=self._of(uuid, "nvmlDeviceGetUtilizationRates", then=lambda rates: int(rates.gpu)),
            memory_used_bytes=_part(memory, "used"),
            memory_reserved_bytes=_part(memory, "reserved"),
            memory_total_bytes=_part(memory, "total"),
            sm_clock_mhz=self._of(uuid, "nvmlDeviceGetClockInfo", _SM_CLOCK, then=int),
            clock_events_mask=self._of(uuid, "nvmlDeviceGetCurrentClocksEventReasons", then=int),
            power_mw=self._of(uuid, "nvmlDeviceGetPowerUsage", then=int),
            temperature_c=self._temperature(uuid),
        )

    def inventory(self, uuids: Sequence[str], moment: Literal["before", "after"]) -> NvmlInventory:
        """The slow readings of all devices; not for timed windows."""
        return NvmlInventory(
            moment=moment,
            time_ns=monotonic_ns(),
            devices=tuple(self._device(uuid) for uuid in uuids),
            peers=tuple(self._peers(first, second) for first, second in combinations(uuids, 2)),
        )

    def _device(self, uuid: str) -> NvmlDevice:
        return NvmlDevice(
            uuid=uuid,
            name=self._of(uuid, "nvmlDeviceGetName", then=str),
            memory_total_bytes=_part(self._memory(uuid), "total"),
            processes=self._of(uuid, "nvmlDeviceGetComputeRunningProcesses", then=len),
            violations=self._fields(uuid, _VIOLATION_FIELDS),
            links=self._links(uuid),
            facts={
                name: self._of(uuid, query, *arguments, then=then) for name, (query, arguments, then) in FACTS.items()
            },
        )

    def _links(self, uuid: str) -> tuple[NvmlLink, ...] | Unavailable:
        count = self._fields(uuid, {"links": _LINK_COUNT_FIELD})["links"]
        if isinstance(count, Unavailable):
            return count
        return tuple(self._link(uuid, link) for link in range(min(count, _MAX_LINKS)))

    def _link(self, uuid: str, link: int) -> NvmlLink:
        active = self._of(uuid, "nvmlDeviceGetNvLinkState", link, then=int)
        counters = self._fields(uuid, _LINK_FIELDS, scope=link) if active == 1 else {}
        return NvmlLink(link=link, active=active, counters=counters)

    def _peers(self, first: str, second: str) -> PeerAccess:
        other = self._handle(second)
        if isinstance(other, Unavailable):
            return PeerAccess(first=first, second=second, nvlink=other, read=other, topology=other)

        def status(capability: int) -> Text:
            return self._of(first, "nvmlDeviceGetP2PStatus", other, capability, then=_peer_status)

        topology = self._of(first, "nvmlDeviceGetTopologyCommonAncestor", other, then=topology_words)
        return PeerAccess(
            first=first, second=second, nvlink=status(_PEER_NVLINK), read=status(_PEER_READ), topology=topology
        )

    def _memory(self, uuid: str) -> Any:
        """Version 2 of the memory query: version 1 counts the driver's reserve as used."""
        version = getattr(self._binding, "nvmlMemory_v2", None)
        return self._of(uuid, "nvmlDeviceGetMemoryInfo", version, then=lambda memory: memory)

    def _temperature(self, uuid: str) -> Reading:
        newer = hasattr(self._binding, "nvmlDeviceGetTemperatureV")
        query = "nvmlDeviceGetTemperatureV" if newer else "nvmlDeviceGetTemperature"
        return self._of(uuid, query, _GPU_SENSOR, then=int)

    def _fields(self, uuid: str, fields: dict[str, str], scope: int = 0) -> dict[str, Reading]:
        """Field values by our names. One that this device lacks does not spoil the others."""
        ids = {name: getattr(self._binding, constant, None) for name, constant in fields.items()}
        known = {name: (field, scope) for name, field in ids.items() if field is not None}
        readings: dict[str, Reading] = {name: Unavailable(unavailable="nvidia-ml-py is too old") for name in fields}
        values = self._of(uuid, "nvmlDeviceGetFieldValues", list(known.values()), then=list)
        if isinstance(values, Unavailable):
            return readings | dict.fromkeys(fields if self.problem else known, values)
        return readings | {name: _field_value(value) for name, value in zip(known, values)}

    def _of(self, uuid: str, query: str, *arguments: Any, then: Callable[[Any], T]) -> T | Unavailable:
        handle = self._handle(uuid)
        if isinstance(handle, Unavailable):
            return handle
        return self._read(query, handle, *arguments, then=then)

    def _handle(self, uuid: str) -> Any:
        if uuid not in self._handles:
            handle = self._read("nvmlDeviceGetHandleByUUID", uuid, then=lambda found: found)
            if isinstance(handle, Unavailable):
                return handle
            self._handles[uuid] = handle
        return self._handles[uuid]

    def _read(self, query: str, *arguments: Any, then: Callable[[Any], T]) -> T | Unavailable:
        if self.problem is not None:
            return self.problem
        function = getattr(self._binding, query, None)
        if function is None:
            return Unavailable(unavailable=f"nvidia-ml-py has no {query}")
        try:
            return then(function(*arguments))
        except self._binding.NVMLError as error:
            return Unavailable(unavailable=reason_of(error.value))


def _part(memory: Any, name: str) -> Reading:
    return memory if isinstance(memory, Unavailable) else int(getattr(memory, name))


def _peer_status(status: int) -> str:
    return PEER_STATUS.get(status, f"status {status}")


def _field_value(field: Any) -> Reading:
    if field.nvmlReturn != 0:
        return Unavailable(unavailable=reason_of(field.nvmlReturn))
    if not 0 <= field.valueType < len(_VALUE_MEMBERS):
        return Unavailable(unavailable=f"NVML gave a value of unknown type {field.valueType}")
    return int(getattr(field.value, _VALUE_MEMBERS[field.valueType]))
