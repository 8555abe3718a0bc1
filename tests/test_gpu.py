"""The whole job on GPUs, judged like any run; `scripts/gpu_check` runs these where there are GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hybrid_runtime.calibration import read_calibration
from hybrid_runtime.plan import read_plan
from hybrid_runtime.rehearsal import FILE, read_rehearsal
from tests.commands import command, write_json
from tests.gpu import NAME, trained

SHARED = {"dp_degree": 2, "shard_optimizer": True}


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of one CPU rank."""
    return trained(tmp_path_factory.mktemp("cpu"), "cpu")


@pytest.mark.gpu(1)
@pytest.mark.parametrize(
    "parallel", [{}, {"tp_degree": 2}, {"pp_degree": 2}, {"tp_degree": 2, "pp_degree": 2}, SHARED], ids=str
)
def test_one_gpu_trains_as_the_cpu_does(tmp_path: Path, on_cpu: list[float], parallel: dict[str, int]) -> None:
    """One NCCL rank, or several gloo ranks that share the GPU."""
    losses = trained(tmp_path, parallel=parallel)
    assert losses == pytest.approx(on_cpu, rel=1e-3)


PIECES = ["embedding..0.attn[:2]", "0.attn[2:]..2.mlp[:96]", "2.mlp[96:]..4.mlp[:32]", "4.mlp[32:]..head"]


@pytest.mark.gpu(1)
def test_one_gpu_trains_pieces_of_units_as_the_cpu_does(tmp_path: Path, on_cpu: list[float]) -> None:
    """Cuts inside attention and MLP, with weight gradients that wait."""
    losses = trained(tmp_path, parallel={"pp_degree": 2}, pipeline={"schedule": "zb_v", "cuts": PIECES})
    assert losses == pytest.approx(on_cpu, rel=1e-3)


@pytest.mark.gpu(1)
def test_a_sharded_embedding_on_one_gpu(tmp_path: Path, on_cpu: list[float]) -> None:
    """Two gloo ranks that share the GPU: parts and gradients go through the host."""
    pipeline = {"schedule": "zb_v", "embedding_rows": [64, 192]}
    losses = trained(tmp_path, parallel={"pp_degree": 2}, pipeline=pipeline)
    assert losses == pytest.approx(on_cpu, rel=1e-3)


@pytest.mark.gpu(1, or_cpu=True)
def test_pieces_rows_and_sequences_together_on_one_gpu(tmp_path: Path, on_cpu: list[float]) -> None:
    """Four gloo ranks that share it, each with its own tokens of a sequence between the layers."""
    parallel = {"tp_degree": 2, "pp_degree": 2, "sequence_parallel": True}
    pipeline = {"schedule": "zb_v", "cuts": PIECES, "embedding_rows": [64, 192]}
    losses = trained(tmp_path, parallel=parallel, pipeline=pipeline)
    assert losses == pytest.approx(on_cpu, rel=1e-3)


@pytest.mark.gpu(2)
def test_a_sharded_embedding_on_two_gpus(tmp_path: Path, on_cpu: list[float]) -> None:
    """NCCL."""
    losses = trained(tmp_path, parallel={"pp_degree": 2}, pipeline={"schedule": "zb_v", "embedding_rows": "equal"})
    assert losses == pytest.approx(on_cpu, rel=1e-3)


@pytest.mark.gpu(2)
@pytest.mark.parametrize("parallel", [{"tp_degree": 2}, {"pp_degree": 2}, {"dp_degree": 2}, SHARED], ids=str)
def test_two_gpus_train_as_the_cpu_does(tmp_path: Path, on_cpu: list[float], parallel: dict[str, int]) -> None:
    """NCCL."""
    losses = trained(tmp_path, parallel=parallel)
    assert losses == pytest.approx(on_cpu, rel=1e-3)


@pytest.mark.gpu(1, or_cpu=True)
def test_calibrate_plan_and_rehearse_on_one_gpu(tmp_path: Path) -> None:
    """What the units cost there; a plan by it; and every rank of the plan's kind, with pieces and rows, alone there."""
    values: dict[str, Any] = {
        "name": "gpu",
        "model": {"preset": "tiny", "dtype": "bfloat16"},
        "parallel": {"tp_degree": 2, "pp_degree": 2, "sequence_parallel": True},
        "pipeline": {"schedule": "zb_v", "cuts": PIECES, "embedding_rows": [64, 192]},
        "batch": {"global_batch_size": 4, "microbatch_size": 1, "sequence_length": 64},
        "hardware": {"device": NAME},
        "targets": {"compute_balance_pp": 50, "memory_balance_pp": 50, "utilisation_percent": 1},
        "search": {"vary": ["cuts", "embedding", "microbatch_size"]},
    }
    file, costs, plan = tmp_path / "gpu.json", tmp_path / "calibration.json", tmp_path / "plan.json"
    write_json(file, values)
    alone = ["--alone"] if NAME == "cpu" else []
    clock = "thread_cpu" if NAME == "cpu" else "cuda_event"
    said = command("calibrate", file, "--out", costs, "--quiet", *alone)
    assert said.code == 0, said
    calibration = read_calibration(costs)
    assert {row.clock for row in calibration.units} == {clock}
    assert all(row.forward.p50_ns > 0 and row.saved_bytes > 0 for row in calibration.units)
    assert NAME == "cpu" or "reserved/allocated" in calibration.allocator
    said = command("plan", file, "--calibration", costs, "--out", plan, "--quiet")
    assert said.code == 0, said
    assert read_plan(plan).mesh.world_size == 4
    for name, follows in (("own", []), ("planned", ["--plan", plan])):
        folder = tmp_path / name
        said = command("rehearse", file, *follows, "--calibration", costs, "--run-folder", folder, "--quiet", *alone)
        assert said.code in (0, 1, 3), said
        found = read_rehearsal(folder / FILE)
        assert found.clock == clock
        assert NAME == "cpu" or found.order == (0, 1, 1, 0)
        for rank in found.ranks:
            assert NAME == "cpu" or all(memory.allocated_peak and memory.reserved_peak for memory in rank.memory)
            assert len({memory.ledger_peak for memory in rank.memory}) == 1
            assert all(min(map(min, step.actions_ns.values())) > 0 for step in rank.steps)
            kinds = {call.kind for calls in rank.calls.values() for call in calls}
            assert {"all_gather", "send", "receive"} <= kinds
            assert name == "planned" or {"reduce", "broadcast"} <= kinds
