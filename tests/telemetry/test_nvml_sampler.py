import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hybrid_runtime.nvml_records import NvmlHeader, NvmlLine, NvmlSample, Unavailable, read_nvml
from hybrid_runtime.telemetry.nvml import Nvml
from hybrid_runtime.telemetry.nvml_sampler import main, sample_until, sampling
from tests.telemetry.fake_nvml import fake_pynvml

UUID = "GPU-00000000-0000-0000-0000-000000000000"
SAMPLER = [sys.executable, "-m", "hybrid_runtime.telemetry.nvml_sampler"]


def stops_after(rounds: int) -> Callable[[float], bool]:
    left = [rounds]

    def wait(seconds: float) -> bool:
        assert seconds >= 0
        left[0] -= 1
        return left[0] < 0

    return wait


def test_what_is_written_in_which_order() -> None:
    lines: list[NvmlLine] = []
    sample_until(Nvml(fake_pynvml(["GPU-a", "GPU-b"])), ["GPU-a", "GPU-b"], 100, lines.append, stops_after(3))
    assert [line.type for line in lines] == ["header", "inventory"] + ["sample"] * 6 + ["inventory", "footer"]
    assert isinstance(lines[0], NvmlHeader)
    assert lines[0].driver == "580.1"
    assert [line.uuid for line in lines if isinstance(line, NvmlSample)] == ["GPU-a", "GPU-b"] * 3


def test_without_a_driver_nothing_is_sampled() -> None:
    lines: list[NvmlLine] = []
    sample_until(Nvml(fake_pynvml([], init_error=9)), ["GPU-a"], 100, lines.append, stops_after(3))
    assert [line.type for line in lines] == ["header", "inventory", "inventory", "footer"]


def test_the_process_stops_with_its_parent_and_leaves_a_whole_file(tmp_path: Path) -> None:
    out = tmp_path / "nvml-one.jsonl"
    with sampling([UUID], out, interval_ms=100):
        deadline = time.monotonic() + 30
        while not (out.exists() and out.read_bytes().count(b"\n") >= 2):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    records = read_nvml(out)
    assert records.header.uuids == (UUID,)
    assert records.before is not None
    assert records.after is not None
    assert records.footer is not None
    assert isinstance(records.after.devices[0].name, Unavailable)  # no host has this GPU


def test_a_signal_stops_it_too(tmp_path: Path) -> None:
    out = tmp_path / "nvml.jsonl"
    read_end, write_end = os.pipe()
    process = subprocess.Popen([*SAMPLER, "--uuid", UUID, "--out", str(out), "--interval-ms", "60000"], stdin=read_end)
    deadline = time.monotonic() + 30
    while not (out.exists() and out.read_bytes().count(b"\n") >= 2):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    os.close(read_end)
    os.close(write_end)
    assert json.loads(out.read_text().splitlines()[-1])["type"] == "footer"


def test_bad_arguments_are_said_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--out", str(tmp_path / "x"), "--interval-ms", "5"])
    assert stop.value.code == 2
    assert "at least 100: faster polling disturbs" in capsys.readouterr().err
    absent = subprocess.run(
        [*SAMPLER, "--out", str(tmp_path / "no" / "x")], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert absent.returncode == 4
    assert absent.stderr.startswith("nvml_sampler: [Errno 2]")
    full = subprocess.run([*SAMPLER, "--out", "/dev/full"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert full.returncode == 4
    assert full.stderr == "nvml_sampler: /dev/full: cannot be written (No space left on device); free space there\n"


def test_torch_is_not_needed() -> None:
    modules = "nvml_sampler, status, host, cgroup, nvml"
    code = f"from hybrid_runtime.telemetry import {modules}; import sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.gpu(1)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")
def test_on_a_gpu_readings_are_values(tmp_path: Path) -> None:
    from hybrid_runtime.telemetry.host import find_gpu

    gpu = find_gpu(0)
    with sampling([gpu.uuid], tmp_path / "nvml.jsonl", interval_ms=100):
        time.sleep(2)
    records = read_nvml(tmp_path / "nvml.jsonl")
    assert len(records.samples) >= 3
    assert all(isinstance(sample.memory_total_bytes, int) for sample in records.samples)
    assert records.before is not None
    assert records.before.devices[0].name == gpu.name
