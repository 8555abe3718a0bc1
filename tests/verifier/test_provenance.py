"""Provenance: what all ranks agree on said once, what differs in a sentence, nothing empty."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hybrid_runtime.nvml_records import PeerAccess, Unavailable
from hybrid_runtime.verdict import Provenance
from hybrid_runtime.verifier.judge import judge
from hybrid_runtime.verifier.provenance import NOT_RECORDED
from tests.verifier.nvml_examples import write_nvml
from tests.verifier.synthetic import MS, deployment, rewrite, steady, write_run

HEADER = {
    "versions": {"torch": "2.13"},
    "environment": {"OMP_NUM_THREADS": "1"},
    "machine": {"kernel": "Linux 6", "load average": "0.1"},
    "launch": {"command": "python -m hybrid_runtime.job a.toml", "working directory": "/w"},
}


def of(run: Path) -> Provenance:
    found = judge(run).provenance
    assert found is not None
    return found


def texts(values: Any) -> Iterator[str]:
    for value in values.values() if isinstance(values, dict) else values:
        yield from texts(value) if isinstance(value, (dict, list, tuple)) else [value]


def test_what_is_the_same_everywhere_is_said_once(tmp_path: Path) -> None:
    found = of(write_run(tmp_path, steady([MS] * 3, header=HEADER), deployment(), baseline=steady([MS] * 3)))
    assert found.versions == {"torch": "2.13"}
    assert found.environment == {"OMP_NUM_THREADS": "1"}
    assert found.run["candidate: command"] == "python -m hybrid_runtime.job a.toml"
    assert found.run["candidate: working directory"] == "/w"
    assert found.run["baseline: command"] == NOT_RECORDED
    assert found.run["candidate: finished"] == "2026-01-01T00:00:00+00:00"
    assert found.hosts["host"]["kernel"] == "Linux 6"
    assert found.hosts["host"]["placement"].startswith("candidate rank 0 on CPUs 0, 1 thread(s); candidate rank 1")
    assert list(found.devices) == ["host:0", "host:1", "host:2"]
    assert found.devices["host:0"]["NVML"] == "n/a: not a GPU"
    assert {"version", "git commit", "ruleset", "python", "system"} == set(found.tool)
    assert all(texts(found.model_dump()))


def test_what_differs_is_a_sentence(tmp_path: Path) -> None:
    run = write_run(tmp_path, steady([MS] * 3, header=HEADER), deployment())

    def edit(rank: int, record: dict[str, Any]) -> dict[str, Any]:
        if rank == 2 and record["type"] == "header":
            record["environment"] = {"OMP_NUM_THREADS": "4", "NCCL_P2P_DISABLE": "1"}
            record["host"]["name"] = "other"
            record["machine"] = {"kernel": "Linux 7", "load average": "9"}
        return record

    rewrite(run, edit)
    assert of(run).differing == (
        "OMP_NUM_THREADS: 1 on candidate rank 0, candidate rank 1; 4 on candidate rank 2",
        "NCCL_P2P_DISABLE: not set on candidate rank 0, candidate rank 1; 1 on candidate rank 2",
        "kernel: Linux 6 on host host; Linux 7 on host other",
    )


def test_old_records_say_that_they_do_not_know(tmp_path: Path) -> None:
    found = of(write_run(tmp_path, steady([MS] * 3), deployment()))
    assert found.versions == {"versions": NOT_RECORDED}
    assert found.hosts["host"]["machine"] == NOT_RECORDED
    assert found.run["candidate: earlier launches of exactly this deployment"] == NOT_RECORDED


def test_gpus_are_described_by_their_driver(tmp_path: Path) -> None:
    run = write_run(tmp_path, steady([MS] * 3, kind="cuda"), deployment(hardware={"device": "cuda"}))
    peers = (
        PeerAccess(first="GPU-1", second="GPU-0", nvlink="ok", read="ok", topology="one PCIe switch between them"),
    )
    write_nvml(
        run, facts={"VBIOS": "96.00", "MIG": Unavailable(unavailable="not supported by this device")}, peers=peers
    )
    found = of(run).devices["GPU-0"]
    assert (found["VBIOS"], found["MIG"]) == ("96.00", "n/a (not supported by this device)")
    assert (found["driver"], found["CUDA of the driver"]) == ("1", "n/a (not recorded)")
    assert found["to GPU-1"] == "NVLink ok, read ok, one PCIe switch between them"
    assert found["NVLink"] == "no links"
    (run / "records/nvml-host.jsonl").unlink()
    assert of(run).devices["GPU-0"]["NVML"] == "n/a: its records do not hold this device"


def test_a_setting_changed_during_the_run_is_said(tmp_path: Path) -> None:
    run = write_run(tmp_path, steady([MS] * 3, kind="cuda"), deployment(hardware={"device": "cuda"}))
    write_nvml(run, facts={"power limit in force": "700 W"})
    path = run / "records/nvml-host.jsonl"
    before, after = path.read_text().rsplit('"moment":"after"', 1)
    path.write_text(before + '"moment":"after"' + after.replace("700 W", "400 W"))
    assert of(run).devices["GPU-2"]["changed during the run"] == "power limit in force from 700 W to 400 W"
