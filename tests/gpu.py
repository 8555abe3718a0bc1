"""Where the GPU tests run. Their logic can be tried without a GPU: HYBRID_RUNTIME_GPU_TESTS_ON=cpu pytest FILE -m gpu.

Only tests marked `gpu(n, or_cpu=True)` run then; all others stay skipped.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from hybrid_runtime.records import read_side
from tests.commands import command, write_json

NAME = os.environ.get("HYBRID_RUNTIME_GPU_TESTS_ON", "cuda")


def device() -> torch.device:
    """Of this process, which uses it from now on; results of kernels are the same every time."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # new tensors hold NaN then, not what lay there
    if NAME == "cpu":
        return torch.device("cpu")
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when cuBLAS is first used
    torch.cuda.set_device(0)
    return torch.device("cuda", 0)


def trained(folder: Path, on: str = NAME, **changes: Any) -> list[float]:
    """Runs a small job through the command and returns its losses."""
    values = {
        "name": "gpu",
        "model": {"preset": "tiny"},
        "batch": {"global_batch_size": 8, "microbatch_size": 1, "sequence_length": 32},
        "workload": {"steps": 15},
        "hardware": {"device": on, "oversubscribe": True},
        "measurement": {"warmup_steps": 5},
    }
    file = write_json(folder / f"{on}.json", values | changes)
    done = command("run", str(file), "--run-folder", str(folder / "run"), "--quiet")
    assert done.code in (0, 3), done
    ranks = read_side(folder / "run")
    assert {rank.header.device.kind for rank in ranks} == {on}
    assert on == "cpu" or all(step.memory.allocated_peak for rank in ranks for step in rank.steps)
    of_ranks = [[float(step.loss) for step in rank.steps if step.loss is not None] for rank in ranks]
    return next(losses for losses in of_ranks if losses)  # where the last stage is: in a V on the first rank
