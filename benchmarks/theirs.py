"""torch's side: `TorchPeer` cut where our plan cuts, with the weights and the batches that our side reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.peer_model import build_blocks
from benchmarks.torch_peer import AdamWKind, TorchPeer
from hybrid_runtime.deployment import Deployment
from hybrid_runtime.job_parts import Parts


def torch_stepper(
    deployment: Deployment,
    parts: Parts,
    folder: Path,
    device: torch.device,
    *,
    schedule: str = "1f1b",
    adamw: AdamWKind = "fused",
) -> Callable[[], float | None]:
    """Runs one step more at every call; returns the mean loss on ranks that know it.

    Args:
        parts: our side's; its plan and its batches are torch's too.
        folder: holds the weights.
        schedule: torch's, by our name; it must place stages as the plan does.
    """
    shape, plan, batches = deployment.shape, parts.plan, parts.batches
    assert shape is not None
    weights = load_file(folder / "model.safetensors")
    peer = TorchPeer(
        {
            stage.index: build_blocks(shape, stage.units, weights, plan.sequence_length, plan.tp_degree)
            for stage in plan.stages_of(parts.groups.place.pp)
        },
        len(plan.stages),
        plan.mesh,
        deployment.optimizer,
        num_microbatches=plan.num_microbatches,
        sample=batches.microbatches(0)[0],
        hidden_size=shape.hidden_size,
        device=device,
        schedule=schedule,
        adamw=adamw,
    )
    step = -1

    def run() -> float | None:
        nonlocal step
        step += 1
        loss = peer.step(batches.microbatches(step))
        return None if loss is None else loss.item()

    return run
