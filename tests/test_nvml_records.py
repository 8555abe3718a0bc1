import json
from pathlib import Path

import pytest

from hybrid_runtime.errors import RecordsError
from hybrid_runtime.nvml_records import (
    THROTTLING_MASK,
    NvmlDevice,
    NvmlFooter,
    NvmlHeader,
    NvmlInventory,
    NvmlLine,
    NvmlLink,
    NvmlSample,
    PeerAccess,
    Unavailable,
    clock_event_names,
    read_nvml,
    to_line,
)

NO = Unavailable(unavailable="driver not loaded")
HEADER = NvmlHeader(
    host="one", uuids=("GPU-a",), interval_ms=200, started_utc="t", driver="580.1", binding="13.1", warnings=()
)
DEVICE = NvmlDevice(
    uuid="GPU-a",
    name="H100",
    memory_total_bytes=80,
    processes=NO,
    violations={"power": 3, "thermal": NO},
    links=(NvmlLink(link=0, active=1, counters={"sent_bytes": NO}),),
)
PEER = PeerAccess(first="GPU-a", second="GPU-b", nvlink="ok", read=NO)
SAMPLE = NvmlSample(
    time_ns=5,
    uuid="GPU-a",
    utilisation_percent=NO,
    memory_used_bytes=1,
    memory_reserved_bytes=2,
    memory_total_bytes=3,
    sm_clock_mhz=4,
    clock_events_mask=0,
    power_mw=5,
    temperature_c=6,
)


def inventory(moment: str) -> NvmlInventory:
    return NvmlInventory.model_validate({"moment": moment, "time_ns": 1, "devices": (DEVICE,), "peers": (PEER,)})


def write(path: Path, *records: NvmlLine) -> Path:
    path.write_text("".join(map(to_line, records)))
    return path


def test_records_read_back_with_their_reasons(tmp_path: Path) -> None:
    footer = NvmlFooter(samples=2, finished_utc="u")
    path = write(tmp_path / "n", HEADER, inventory("before"), SAMPLE, SAMPLE, inventory("after"), footer)
    records = read_nvml(path)
    assert records == (path, HEADER, inventory("before"), inventory("after"), (SAMPLE, SAMPLE), footer)
    assert str(records.samples[0].utilisation_percent) == "n/a (driver not loaded)"


def test_a_killed_sampler_leaves_what_it_wrote(tmp_path: Path) -> None:
    records = read_nvml(write(tmp_path / "n", HEADER, inventory("before"), SAMPLE))
    assert records.samples == (SAMPLE,)
    assert records.after is None
    assert records.footer is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; the sampler died"),
        ("{", "line 1: not a record"),
        (to_line(SAMPLE), "line 1: not a record"),
        (to_line(HEADER) + '{"type":"sample"}\n', "line 2: not a record \\(Field required\\)"),
        (to_line(HEADER) + '{"type":"header"}\n', "line 2: not a record"),
        (to_line(HEADER) + "[1]\n", "line 2: not a record"),
        (to_line(HEADER) + to_line(SAMPLE)[:40], "line 2: not a record"),
        (json.dumps(HEADER.model_dump() | {"schema_version": "9"}), "schema_version 9 is not 1.0"),
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "n").write_text(text)
    with pytest.raises(RecordsError, match=message):
        read_nvml(tmp_path / "n")


def test_an_absent_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RecordsError, match="absent: cannot be read"):
        read_nvml(tmp_path / "absent")


def test_clock_events_in_words() -> None:
    assert clock_event_names(0) == ()
    assert clock_event_names(0b101) == ("idle", "software power cap")
    assert clock_event_names(0x400) == ("bit 0x400",)
    assert "software power cap" in clock_event_names(THROTTLING_MASK)
    assert "idle" not in clock_event_names(THROTTLING_MASK)
