"""Trainings that write checkpoints, without torchrun: what a job does between its start and its end."""

from __future__ import annotations

import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from hybrid_runtime.checkpoint.manifest import read_manifest
from hybrid_runtime.checkpoint.rank_file import TORCH_DTYPES
from hybrid_runtime.checkpoint.reader import CheckpointReader
from hybrid_runtime.checkpoint.same_training import Training
from hybrid_runtime.data.mixture import mixture_of
from hybrid_runtime.data.opening import contents_of
from hybrid_runtime.deployment import Deployment
from hybrid_runtime.job import run_step
from hybrid_runtime.job_checkpoints import choose_checkpoint, open_checkpoints
from hybrid_runtime.job_last_words import LastWords
from hybrid_runtime.job_orders import Order
from hybrid_runtime.job_parts import assemble, build, join_mesh
from hybrid_runtime.models.build import model_costs, model_units
from hybrid_runtime.planner.make import make_plan
from hybrid_runtime.telemetry.recorder import NullRecorder
from tests import parity

STEPS = 20
CPU = torch.device("cpu")


def settings(
    folder: Path, mesh: tuple[int, int, int] = (1, 1, 1), *, shard_optimizer: bool = False, **changes: Any
) -> Deployment:
    """The deployment of the parity tests, with 20 steps and checkpoints."""
    tp, pp, dp = mesh
    degrees = {"tp_degree": tp, "pp_degree": pp, "dp_degree": dp}
    table = {"folder": str(folder), "every": 4, **changes.pop("checkpoint", {})}
    return parity.deployment(
        parallel=degrees | {"shard_optimizer": shard_optimizer},
        workload={"steps": STEPS, "seed": 7},
        checkpoint=table,
        **changes,
    )


def train(
    deployment: Deployment, until: int = STEPS, resume: str | None = None, device: torch.device = CPU
) -> list[float]:
    """Trains until the model has seen `until` steps and leaves a whole checkpoint; every rank calls it.

    Returns:
        The losses of the steps that were done.
    """
    resumed = choose_checkpoint(deployment, resume, restarted=False)
    specs = model_units(deployment.model, deployment.shape)
    plan = make_plan(deployment, model_costs(deployment, specs))
    groups = join_mesh(plan, specs, device=device, backend="gloo", timeout=timedelta(seconds=60))
    groups.barrier()  # all have chosen
    built = build(deployment, plan, specs, groups, weights=resumed is None)
    source = parity.source()
    training = Training(deployment, plan, specs, groups, contents_of(mixture_of(source)))
    checkpoints = open_checkpoints(training, built, resumed, LastWords(), writing=True)
    parts = assemble(deployment, plan, groups, built, source, NullRecorder(groups.device), checkpoints)
    losses = []
    for step in range(checkpoints.trained_before, until):
        loss, numbers = run_step(parts, Order(step, step))
        assert loss is not None
        losses.append(loss)
        checkpoints.after_step(step + 1, numbers)
    checkpoints.finish()
    groups.barrier()
    return losses


def whole_state(checkpoint: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, whole, read by torch's own loader."""
    tensors = read_manifest(checkpoint).tensors
    state = {name: torch.zeros(saved.shape, dtype=TORCH_DTYPES[saved.dtype]) for name, saved in tensors.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # it is
        dcp.load(state, storage_reader=CheckpointReader(checkpoint), no_dist=True)
    return state


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], relative: float) -> None:
    """Every tensor that is not a random state agrees, as a vector; 0 means bit for bit."""
    names = {name for name in found if not name.startswith("random.")}
    assert names == {name for name in expected if not name.startswith("random.")}
    for name in names:
        if relative == 0:
            assert torch.equal(found[name], expected[name]), name
        else:
            error = float((found[name] - expected[name]).norm() / expected[name].norm())
            assert error <= relative, f"{name}: relative error {error:.2e}"
