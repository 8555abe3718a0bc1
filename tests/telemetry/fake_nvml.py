"""A pynvml with as many GPUs as wanted, which supports what it is told to. Errors are the real binding's."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pynvml

GIB = 2**30
_NAMES = [name for name in dir(pynvml) if name.startswith(("NVML_FI_", "nvmlMemory_v2"))]


def fake_pynvml(
    uuids: Sequence[str],
    *,
    unsupported: Sequence[str] = (),
    unsupported_fields: Sequence[int] = (),
    missing: Sequence[str] = (),
    init_error: int | None = None,
    lost: Sequence[str] = (),
    links: int = 2,
) -> Any:
    """A module-like object. Handles are indexes, so that a mix-up of devices shows in the values.

    Args:
        unsupported: functions that answer "not supported".
        unsupported_fields: field ids that do.
        missing: names that this version of the binding does not have.
        init_error: what nvmlInit answers.
        lost: devices that fell off the bus after they were found.
    """
    fake = SimpleNamespace(NVMLError=pynvml.NVMLError, inits=0, **{name: getattr(pynvml, name) for name in _NAMES})

    def check(handle: int) -> int:
        if uuids[handle] in lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return handle

    def init() -> None:
        if init_error is not None:
            raise pynvml.NVMLError(init_error)
        fake.inits += 1

    def shutdown() -> None:
        fake.inits -= 1

    def by_uuid(uuid: str) -> int:
        if uuid not in uuids:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return list(uuids).index(uuid)

    def memory(handle: int, version: int) -> Any:
        assert version == pynvml.nvmlMemory_v2
        return SimpleNamespace(total=80 * GIB, reserved=GIB, used=check(handle) * GIB, free=0)

    def fields(handle: int, ids: Sequence[tuple[int, int]]) -> Any:
        return [field(check(handle), number, scope) for number, scope in ids]

    def field(handle: int, number: int, scope: int) -> Any:
        if number in unsupported_fields:
            return SimpleNamespace(nvmlReturn=pynvml.NVML_ERROR_NOT_SUPPORTED, valueType=0, value=None)
        count = links if number == pynvml.NVML_FI_DEV_NVLINK_LINK_COUNT else number * 1000 + scope * 10 + handle
        return SimpleNamespace(nvmlReturn=0, valueType=3, value=SimpleNamespace(ullVal=count))

    def temperature(handle: int, sensor: int) -> int:
        return 40 + check(handle)

    functions = {
        "nvmlInit": init,
        "nvmlShutdown": shutdown,
        "nvmlSystemGetDriverVersion": lambda: "580.1",
        "nvmlDeviceGetHandleByUUID": by_uuid,
        "nvmlDeviceGetName": lambda handle: f"Fake {check(handle)}",
        "nvmlDeviceGetMemoryInfo": memory,
        "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=10 * check(handle), memory=0),
        "nvmlDeviceGetClockInfo": lambda handle, kind: 1000 + 100 * kind + check(handle),
        "nvmlDeviceGetCurrentClocksEventReasons": lambda handle: 1 << check(handle),
        "nvmlDeviceGetPowerUsage": lambda handle: 300_000 + check(handle),
        "nvmlDeviceGetTemperatureV": temperature,
        "nvmlDeviceGetTemperature": temperature,
        "nvmlDeviceGetComputeRunningProcesses": lambda handle: [None] * check(handle),
        "nvmlDeviceGetFieldValues": fields,
        "nvmlDeviceGetNvLinkState": lambda handle, link: 1 if check(handle) != link else 0,
        "nvmlSystemGetCudaDriverVersion_v2": lambda: 13010,
        "nvmlDeviceGetPciInfo": lambda handle: SimpleNamespace(busId=f"00000000:{check(handle):02d}:00.0"),
        "nvmlDeviceGetVbiosVersion": lambda handle: f"96.00.{check(handle)}",
        "nvmlDeviceGetEccMode": lambda handle: [1, check(handle) % 2],
        "nvmlDeviceGetMigMode": lambda handle: [0, 0 * check(handle)],
        "nvmlDeviceGetComputeMode": lambda handle: 3 * check(handle),
        "nvmlDeviceGetPersistenceMode": lambda handle: int(check(handle) == 1),
        "nvmlDeviceGetEnforcedPowerLimit": lambda handle: 700_000 + 500 * check(handle),
        "nvmlDeviceGetPowerManagementDefaultLimit": lambda handle: 700_000 + check(handle),
        "nvmlDeviceGetApplicationsClock": lambda handle, kind: 1000 * kind + check(handle),
        "nvmlDeviceGetMaxClockInfo": lambda handle, kind: 2000 * kind + check(handle),
        "nvmlDeviceGetCurrPcieLinkGeneration": lambda handle: 5 + check(handle),
        "nvmlDeviceGetCurrPcieLinkWidth": lambda handle: 16 + check(handle),
        "nvmlDeviceGetCudaComputeCapability": lambda handle: (9, check(handle)),
        "nvmlDeviceGetTopologyCommonAncestor": lambda one, other: 10 * abs(check(one) - check(other)),
        "nvmlDeviceGetP2PStatus": lambda one, other, capability: 0 if capability == 2 else 5,
    }

    def refuse(*arguments: Any) -> Any:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    for name, function in functions.items():
        setattr(fake, name, refuse if name in unsupported else function)
    for name in missing:
        delattr(fake, name)
    return fake
