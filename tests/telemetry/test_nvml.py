import importlib
from importlib import metadata
from itertools import combinations
from typing import Any

import pynvml
import pytest

from hybrid_runtime.nvml_records import THROTTLING_COUNTERS, NvmlSample, Unavailable
from hybrid_runtime.telemetry import nvml as this
from hybrid_runtime.telemetry.nvml import Nvml
from hybrid_runtime.telemetry.nvml_facts import FACTS, TOPOLOGY
from tests.telemetry.fake_nvml import GIB, fake_pynvml

GPUS = ["GPU-a", "GPU-b", "GPU-c", "GPU-d"]


def absent(reason: str) -> Unavailable:
    return Unavailable(unavailable=reason)


def test_every_reading_of_a_sample() -> None:
    sample = Nvml(fake_pynvml(GPUS)).sample("GPU-c")
    assert sample == NvmlSample(
        time_ns=sample.time_ns,
        uuid="GPU-c",
        utilisation_percent=20,
        memory_used_bytes=2 * GIB,
        memory_reserved_bytes=GIB,
        memory_total_bytes=80 * GIB,
        sm_clock_mhz=1102,
        clock_events_mask=0b100,
        power_mw=300_002,
        temperature_c=42,
    )


@pytest.mark.parametrize("visible", [list(pick) for size in (1, 2, 4) for pick in combinations(GPUS, size)])
def test_devices_are_found_by_uuid_whatever_is_visible(visible: list[str]) -> None:
    # torch would number the visible ones 0, 1, ...; NVML's numbers are the host's
    nvml = Nvml(fake_pynvml(GPUS))
    for uuid in visible:
        assert nvml.sample(uuid).power_mw == 300_000 + GPUS.index(uuid)
    inventory = nvml.inventory(visible, "before")
    assert [device.name for device in inventory.devices] == [f"Fake {GPUS.index(uuid)}" for uuid in visible]
    assert [(peer.first, peer.second) for peer in inventory.peers] == list(combinations(visible, 2))


def test_the_slow_readings() -> None:
    fake = fake_pynvml(GPUS, unsupported_fields=[pynvml.NVML_FI_DEV_PERF_POLICY_POWER, 202, 204])
    nvml = Nvml(fake)
    assert nvml.driver() == "580.1"
    device = nvml.inventory(["GPU-b"], "after").devices[0]
    assert device.processes == 1
    assert device.memory_total_bytes == 80 * GIB
    assert device.violations["power"] == absent("not supported by this device")
    assert device.violations["thermal"] == 75_001
    assert device.violations["hardware_thermal"] == 270_001
    assert not isinstance(device.links, Unavailable)
    up, down = device.links
    assert (up.link, up.active, up.counters["data_sent_kib"]) == (0, 1, 138_001)
    assert up.counters["sent_bytes"] == absent("not supported by this device")
    assert (down.link, down.active, down.counters) == (1, 0, {})
    (peer,) = nvml.inventory(["GPU-a", "GPU-b"], "after").peers
    assert (peer.nvlink, peer.read) == ("ok", "not supported")
    nvml.close()
    assert fake.inits == 0


def test_what_a_device_is_and_how_it_is_set() -> None:
    nvml = Nvml(fake_pynvml(GPUS, unsupported=["nvmlDeviceGetMigMode"], missing=["nvmlDeviceGetVbiosVersion"]))
    assert nvml.cuda_driver() == "13.1"
    inventory = nvml.inventory(["GPU-a", "GPU-b", "GPU-d"], "before")
    assert inventory.devices[1].facts == {
        "PCI id": "00000000:01:00.0",
        "VBIOS": absent("nvidia-ml-py has no nvmlDeviceGetVbiosVersion"),
        "ECC": "on",
        "MIG": absent("not supported by this device"),
        "compute mode": "exclusive process",
        "persistence": "on",
        "power limit in force": "700.5 W",
        "power limit by default": "700.001 W",
        "application SM clock": "1001 MHz",
        "largest SM clock": "2001 MHz",
        "largest memory clock": "4001 MHz",
        "PCIe generation": "6",
        "PCIe lanes": "17",
        "CUDA compute capability": "9.1",
    }
    assert inventory.devices[0].facts["ECC"] == "on, off after the next reset"
    assert inventory.devices[0].facts["compute mode"] == "default (shared)"
    assert [peer.topology for peer in inventory.peers] == [
        "one PCIe switch between them",
        "one PCIe host bridge between them",
        "several PCIe switches, no host bridge between them",
    ]


def test_no_driver_is_a_reason_everywhere_and_a_zero_nowhere() -> None:
    nvml = Nvml(fake_pynvml(GPUS, init_error=pynvml.NVML_ERROR_DRIVER_NOT_LOADED))
    reason = absent("driver not loaded")
    assert str(nvml.problem) == "n/a (driver not loaded)"
    assert nvml.driver() == reason
    readings = nvml.sample("GPU-a").model_dump(exclude={"type", "time_ns", "uuid"})
    assert all(reading == reason.model_dump() for reading in readings.values())
    inventory = nvml.inventory(["GPU-a", "GPU-b"], "before")
    device = inventory.devices[0]
    assert [device.name, device.memory_total_bytes, device.processes, device.links] == [reason] * 4
    assert set(map(str, device.violations.values())) == {str(reason)}
    assert set(map(str, device.facts.values())) == {str(reason)}
    assert inventory.peers[0].nvlink == reason
    nvml.close()


def test_one_unsupported_query_spoils_no_other() -> None:
    unsupported = ["nvmlDeviceGetUtilizationRates", "nvmlDeviceGetMemoryInfo"]
    nvml = Nvml(fake_pynvml(GPUS, unsupported=unsupported, lost=["GPU-d"]))
    sample = nvml.sample("GPU-b")
    no = absent("not supported by this device")
    assert [sample.utilisation_percent, sample.memory_used_bytes, sample.memory_total_bytes] == [no, no, no]
    assert sample.power_mw == 300_001
    assert nvml.sample("GPU-d").power_mw == absent("the GPU has fallen off the bus")
    assert nvml.sample("GPU-x").power_mw == absent("no such device on this host")
    (peer,) = nvml.inventory(["GPU-a", "GPU-x"], "before").peers
    assert peer.nvlink == absent("no such device on this host")


def test_older_bindings_lack_names() -> None:
    missing = ["nvmlDeviceGetTemperatureV", "nvmlDeviceGetPowerUsage", "NVML_FI_DEV_NVLINK_COUNT_RCV_ERRORS"]
    nvml = Nvml(fake_pynvml(GPUS, missing=missing))
    sample = nvml.sample("GPU-a")
    assert sample.temperature_c == 40
    assert sample.power_mw == absent("nvidia-ml-py has no nvmlDeviceGetPowerUsage")
    links = nvml.inventory(["GPU-b"], "before").devices[0].links
    assert not isinstance(links, Unavailable)
    assert links[0].counters["receive_errors"] == absent("nvidia-ml-py is too old")
    assert links[0].counters["received_bytes"] == 204_001


def test_a_device_without_nvlink() -> None:
    links = pynvml.NVML_FI_DEV_NVLINK_LINK_COUNT
    assert Nvml(fake_pynvml(GPUS, links=0)).inventory(["GPU-a"], "before").devices[0].links == ()
    device = Nvml(fake_pynvml(GPUS, unsupported_fields=[links])).inventory(["GPU-a"], "before").devices[0]
    assert device.links == absent("not supported by this device")


def test_field_values_of_every_type() -> None:
    for number, member in enumerate(this._VALUE_MEMBERS):
        value = pynvml.c_nvmlFieldValue_t()
        value.valueType = number
        setattr(value.value, member, 7)
        assert this._field_value(value) == 7
    value.valueType = 99
    assert this._field_value(value) == absent("NVML gave a value of unknown type 99")


def test_the_tables_agree_with_the_binding() -> None:
    codes = {getattr(pynvml, name) for name in dir(pynvml) if name.startswith("NVML_ERROR_") and "STRING" not in name}
    assert codes <= set(this.REASONS)
    assert this.reason_of(12345) == "NVML error 12345"
    for query, _, _ in FACTS.values():
        assert callable(getattr(pynvml, query))
    levels = {getattr(pynvml, name) for name in dir(pynvml) if name.startswith("NVML_TOPOLOGY_")}
    assert levels == set(TOPOLOGY)
    assert set(THROTTLING_COUNTERS) <= set(this._VIOLATION_FIELDS)
    for name in (*this._VIOLATION_FIELDS.values(), *this._LINK_FIELDS.values(), this._LINK_COUNT_FIELD):
        assert isinstance(getattr(pynvml, name), int)
    assert (pynvml.NVML_CLOCK_SM, pynvml.NVML_TEMPERATURE_GPU, pynvml.NVML_P2P_CAPS_INDEX_NVLINK) == (1, 0, 2)


def test_the_real_binding_never_raises() -> None:
    nvml = Nvml()
    sample = nvml.sample("GPU-00000000-0000-0000-0000-000000000000")
    assert isinstance(sample.power_mw, Unavailable)
    nvml.close()


def test_no_binding_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    assert str(Nvml().driver()) == "n/a (the package nvidia-ml-py is not installed)"


def test_the_deprecated_distribution_is_pointed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def files_are(*names: str) -> None:
        monkeypatch.setattr(metadata, "files", lambda distribution: list(names))

    files_are("pynvml/__init__.py", "pynvml/nvml.py")
    assert "pip uninstall pynvml" in str(this.shadowing())
    files_are("pynvml_utils/__init__.py")
    assert this.shadowing() is None
    monkeypatch.undo()
    with pytest.raises(metadata.PackageNotFoundError):
        metadata.version("pynvml")
    assert this.shadowing() is None
