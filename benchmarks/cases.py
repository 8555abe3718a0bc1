"""What is run: sizes, meshes, and the deployment that both sides are built from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from benchmarks.peer_model import random_weights
from hybrid_runtime.deployment import Deployment, parse_deployment

SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Model and batch of a benchmark."""

    vocab_size: int = 4096
    hidden_size: int = 512
    num_layers: int = 6
    num_heads: int = 8
    ffn_size: int = 1408
    sequence_length: int = 128
    global_batch_size: int = 16
    microbatch_size: int = 2


QUICK = Sizes(
    vocab_size=256, hidden_size=32, num_layers=3, num_heads=2, ffn_size=64, sequence_length=16, global_batch_size=8
)


@dataclass(frozen=True, slots=True)
class Case:
    """One mesh and its goal: `metric` <= `goal`, or no goal.

    Attributes:
        pipeline: the deployment's table of that name.
        torchs_schedule: what torch runs beside it, by our name.
    """

    name: str
    tp_degree: int
    pp_degree: int
    metric: str = "step_time_ratio"
    goal: float | None = None
    pipeline: Mapping[str, Any] = field(default_factory=dict)
    torchs_schedule: str = "1f1b"

    @property
    def world_size(self) -> int:
        return self.tp_degree * self.pp_degree


def prepare(folder: Path, sizes: Sizes) -> None:
    """Writes what both sides read: the initial weights (Hugging Face names) and random tokens."""
    deployment = make_deployment(Case("", 1, 1), sizes, folder, "cpu", check_files=False)
    assert deployment.shape is not None
    save_file(random_weights(deployment.shape, SEED), folder / "model.safetensors")
    draw = np.random.default_rng(SEED)
    draw.integers(0, sizes.vocab_size, 200_000, dtype=np.uint16).tofile(folder / "tokens.bin")


def make_deployment(case: Case, sizes: Sizes, folder: Path, device: str, *, check_files: bool = True) -> Deployment:
    """The deployment of a case; AdamW without clipping, because torch cannot clip across a pipeline."""
    model: dict[str, Any] = {"preset": "small", "num_kv_heads": sizes.num_heads} | {
        name: getattr(sizes, name) for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "ffn_size")
    }
    if check_files:
        model["weights"] = str(folder)
    return parse_deployment(
        {
            "name": f"bench-{case.name}" if case.name else "bench",
            "model": model,
            "parallel": {"tp_degree": case.tp_degree, "pp_degree": case.pp_degree},
            "pipeline": dict(case.pipeline),
            "batch": {
                name: getattr(sizes, name) for name in ("global_batch_size", "microbatch_size", "sequence_length")
            },
            "optimizer": {"clip_norm": None},
            "data": {"source": "tokens", "path": str(folder / "tokens.bin")},
            "hardware": {"device": device},
            "workload": {"seed": SEED, "steps": 1_000_000},
        },
        source="benchmark",
    )
