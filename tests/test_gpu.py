"""The whole job on GPUs, judged like any run; `scripts/gpu_check` runs these where there are GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hybrid_runtime.calibration import read_calibration
from hybrid_runtime.records import read_side
from hybrid_runtime.rehearsal import FILE, read_rehearsal
from tests.commands import command, write_json

SHARED = {"dp_degree": 2, "shard_optimizer": True}


def trained(folder: Path, **changes: Any) -> list[float]:
    """Runs a small job on GPUs through the command and returns its losses."""
    values = {
        "name": "gpu",
        "model": {"preset": "tiny"},
        "batch": {"global_batch_size": 8, "microbatch_size": 1, "sequence_length": 32},
        "workload": {"steps": 15},
        "hardware": {"device": "cuda", "oversubscribe": True},
        "measurement": {"warmup_steps": 5},
    }
    file = write_json(folder / "gpu.json", values | changes)
    done = command("run", str(file), "--run-folder", str(folder / "run"), "--quiet")
    assert done.code in (0, 3), done
    ranks = read_side(folder / "run")
    assert {rank.header.device.kind for rank in ranks} == {"cuda"}
    assert all(step.memory.allocated_peak for rank in ranks for step in rank.steps)
    return [float(step.loss) for step in ranks[-1].steps if step.loss is not None]


def on_cpu(folder: Path) -> list[float]:
    folder.mkdir()
    file = write_json(
        folder / "cpu.json",
        {
            "name": "cpu",
            "model": {"preset": "tiny"},
            "batch": {"global_batch_size": 8, "microbatch_size": 1, "sequence_length": 32},
            "workload": {"steps": 15},
            "hardware": {"device": "cpu"},
            "measurement": {"warmup_steps": 5},
        },
    )
    assert command("run", str(file), "--run-folder", str(folder / "run"), "--quiet").code in (0, 3)
    return [float(step.loss) for step in read_side(folder / "run")[0].steps if step.loss is not None]


@pytest.mark.gpu(1)
@pytest.mark.parametrize(
    "parallel", [{}, {"tp_degree": 2}, {"pp_degree": 2}, {"tp_degree": 2, "pp_degree": 2}, SHARED], ids=str
)
def test_one_gpu_trains_as_the_cpu_does(tmp_path: Path, parallel: dict[str, int]) -> None:
    """One NCCL rank, or several gloo ranks that share the GPU."""
    losses = trained(tmp_path, parallel=parallel)
    assert losses == pytest.approx(on_cpu(tmp_path / "cpu"), rel=1e-3)


PIECES = ["embedding..0.attn[:2]", "0.attn[2:]..2.mlp[:96]", "2.mlp[96:]..4.mlp[:32]", "4.mlp[32:]..head"]


@pytest.mark.gpu(1)
@pytest.mark.parametrize("parallel", [{"pp_degree": 2}, {"tp_degree": 2, "pp_degree": 2}], ids=str)
def test_one_gpu_trains_pieces_of_units_as_the_cpu_does(tmp_path: Path, parallel: dict[str, int]) -> None:
    """Cuts inside attention and MLP, with weight gradients that wait."""
    losses = trained(tmp_path, parallel=parallel, pipeline={"schedule": "zb_v", "cuts": PIECES})
    assert losses == pytest.approx(on_cpu(tmp_path / "cpu"), rel=1e-3)


@pytest.mark.gpu(1)
def test_a_sharded_embedding_on_one_gpu(tmp_path: Path) -> None:
    """Two gloo ranks that share the GPU: parts and gradients go through the host."""
    pipeline = {"schedule": "zb_v", "embedding_rows": [64, 192]}
    losses = trained(tmp_path, parallel={"pp_degree": 2}, pipeline=pipeline)
    assert losses == pytest.approx(on_cpu(tmp_path / "cpu"), rel=1e-3)


@pytest.mark.gpu(2)
def test_a_sharded_embedding_on_two_gpus(tmp_path: Path) -> None:
    """NCCL."""
    losses = trained(tmp_path, parallel={"pp_degree": 2}, pipeline={"schedule": "zb_v", "embedding_rows": "equal"})
    assert losses == pytest.approx(on_cpu(tmp_path / "cpu"), rel=1e-3)


@pytest.mark.gpu(2)
@pytest.mark.parametrize("parallel", [{"tp_degree": 2}, {"pp_degree": 2}, {"dp_degree": 2}, SHARED], ids=str)
def test_two_gpus_train_as_the_cpu_does(tmp_path: Path, parallel: dict[str, int]) -> None:
    """NCCL."""
    losses = trained(tmp_path, parallel=parallel)
    assert losses == pytest.approx(on_cpu(tmp_path / "cpu"), rel=1e-3)


@pytest.mark.gpu(1)
def test_rehearse_and_calibrate_on_one_gpu(tmp_path: Path) -> None:
    """Every rank of four, alone on one GPU; then what the units cost there."""
    values = {
        "name": "gpu",
        "model": {"preset": "tiny", "dtype": "bfloat16"},
        "parallel": {"tp_degree": 2, "pp_degree": 2, "sequence_parallel": True},
        "pipeline": {"schedule": "zb_h1"},
        "batch": {"global_batch_size": 4, "microbatch_size": 1, "sequence_length": 64},
        "hardware": {"device": "cuda"},
        "targets": {"compute_balance_pp": 50, "memory_balance_pp": 50, "utilisation_percent": 1},
    }
    file = write_json(tmp_path / "gpu.json", values)
    said = command("rehearse", file, "--run-folder", tmp_path / "out", "--quiet")
    assert said.code in (0, 1, 3), said
    found = read_rehearsal(tmp_path / "out" / FILE)
    assert (found.clock, found.order) == ("cuda_event", (0, 1, 1, 0))
    for rank in found.ranks:
        assert all(memory.allocated_peak and memory.reserved_peak for memory in rank.memory)
        assert len({memory.ledger_peak for memory in rank.memory}) == 1
        assert all(min(map(min, step.actions_ns.values())) > 0 for step in rank.steps)
        assert any(call.kind == "all_gather" for calls in rank.calls.values() for call in calls)
    said = command("calibrate", file, "--out", tmp_path / "calibration.json", "--quiet")
    assert said.code == 0, said
    calibration = read_calibration(tmp_path / "calibration.json")
    assert {row.clock for row in calibration.units} == {"cuda_event"}
    assert all(row.forward.p50_ns > 0 and row.saved_bytes > 0 for row in calibration.units)
    assert "reserved/allocated" in calibration.allocator
