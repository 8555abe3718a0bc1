"""Checkpoints and exports of a model that is trained on a GPU."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from hybrid_runtime.checkpoint.folders import name_of
from hybrid_runtime.deployment import Deployment
from hybrid_runtime.job import run_step
from hybrid_runtime.job_export import export, prepare_export
from hybrid_runtime.job_orders import Order
from hybrid_runtime.job_parts import Built, assemble, build, join_mesh
from hybrid_runtime.models.build import model_costs, model_units
from hybrid_runtime.planner.make import make_plan
from hybrid_runtime.telemetry.recorder import NullRecorder
from tests import gpu, parity
from tests.checkpoint.examples import STEPS, settings, train, whole_state
from tests.ranks import run_ranks

MODELS: dict[str, dict[str, Any]] = {
    "llama": {"tie_embeddings": True},
    "bfloat16": {"dtype": "bfloat16"},
    "dropping": {"units": "tests.checkpoint.dropping_model:units"},
}


def straight_and_resumed(rank: int, folder: str) -> None:
    device = gpu.device()
    for name, model in MODELS.items():
        straight, halves = (settings(Path(folder, f"{name}-{kind}"), model=dict(model)) for kind in KINDS)
        whole = train(straight, device=device)
        first = train(halves, until=10, device=device)
        torch.rand(3, device=device)  # what the process drew meanwhile is of no account
        assert first + train(halves, resume="latest", device=device) == whole, name


KINDS = ("straight", "halves")


@pytest.mark.gpu(1, or_cpu=True)
def test_twenty_steps_on_a_gpu_are_ten_and_ten_bit_for_bit(tmp_path: Path) -> None:
    """With kernels that torch knows to be deterministic: others add in another order every time, resumed or not."""
    run_ranks(1, straight_and_resumed, str(tmp_path))
    for name in MODELS:
        straight, halves = (whole_state(tmp_path / f"{name}-{kind}" / name_of(STEPS)) for kind in KINDS)
        assert straight.keys() == halves.keys()
        different = [state for state in straight if not torch.equal(straight[state], halves[state])]
        assert not different, (name, different)


def exported_and_loaded(rank: int, folder: str) -> None:
    """What a trained model's folder holds is what the GPU held, on it and on a CPU."""
    device = gpu.device()
    for dtype in ("float32", "bfloat16"):
        target, shape = Path(folder, dtype), {"dtype": dtype, "qkv_bias": True, "num_kv_heads": 1}
        before = parity.deployment(model=shape, export={"folder": str(target)})
        built = built_on(device, before, steps=2)
        assert before.model is not None
        model = before.model.model_copy(update={"weights": str(target)})
        after = before.model_copy(update={"model": model, "export": None})
        for place in (device, torch.device("cpu")):
            again = built_on(place, after)
            for name, unit in built.units.items():
                for (key, mine), theirs in zip(unit.named_parameters(), again.units[name].parameters(), strict=True):
                    assert torch.equal(mine.cpu(), theirs.cpu()), (dtype, name, key)


def built_on(device: torch.device, deployment: Deployment, steps: int = 0) -> Built:
    specs = model_units(deployment.model, deployment.shape)
    plan = make_plan(deployment, model_costs(deployment, specs))
    groups = join_mesh(plan, specs, device=device, backend="gloo", timeout=timedelta(seconds=60))
    built = build(deployment, plan, specs, groups)
    parts = assemble(deployment, plan, groups, built, parity.source(), NullRecorder(device))
    for step in range(steps):
        run_step(parts, Order(step, step))
    if (prepared := prepare_export(deployment, 0, {})) is not None:
        export(prepared, deployment, built.units, groups)
    return built


@pytest.mark.gpu(1, or_cpu=True)
def test_a_folder_from_a_gpu(tmp_path: Path) -> None:
    run_ranks(1, exported_and_loaded, str(tmp_path))
