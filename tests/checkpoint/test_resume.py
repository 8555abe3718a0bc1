"""A training that was stopped and resumed is the training that was not: bit for bit on its mesh, to 1e-5 on others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch

from hybrid_runtime.checkpoint.folders import name_of, whole
from hybrid_runtime.checkpoint.from_hugging_face import from_hugging_face
from hybrid_runtime.checkpoint.to_hugging_face import to_hugging_face
from hybrid_runtime.hugging_face_config import shape_from_hugging_face
from hybrid_runtime.weights.tensor_names import joined_tensors, tensor_shapes
from tests.checkpoint.examples import STEPS, assert_close, settings, train, whole_state
from tests.models.hugging_face_models import tensors_of
from tests.ranks import run_ranks

pytestmark = pytest.mark.ranks
# One tied weight, key/value heads that both tensor ranks hold, and rows that they cannot divide. At a larger learning
# rate, other orders of summation alone grow to 5e-5 in 20 steps, without any resuming.
LLAMA = {"tie_embeddings": True, "num_kv_heads": 1, "vocab_size": 51}


def straight_and_resumed(rank: int, folder: str) -> None:
    """dp 2 and pp 2 with dropout, a buffer and the optimizer sharded over dp; tp 2 and pp 2 in bfloat16 with master
    copies."""
    dropping = {"units": "tests.checkpoint.dropping_model:units"}
    llama = {**LLAMA, "dtype": "bfloat16"}
    for name, mesh, model in (("dropping", (1, 2, 2), dropping), ("llama", (2, 2, 1), llama)):
        pipeline = {"schedule": "gpipe" if name == "dropping" else "zb_h1"}
        straight, halves = Path(folder, f"{name}-straight"), Path(folder, f"{name}-halves")
        changes: dict[str, Any] = {"model": dict(model), "pipeline": pipeline, "shard_optimizer": name == "dropping"}
        whole = train(settings(straight, mesh, **changes))
        first = train(settings(halves, mesh, **changes), until=10)
        torch.rand(3 + rank)  # what the process drew meanwhile is of no account
        second = train(settings(halves, mesh, **changes), resume="latest")
        assert first + second == whole, name


def test_twenty_steps_are_ten_and_ten_bit_for_bit(tmp_path: Path) -> None:
    run_ranks(4, straight_and_resumed, str(tmp_path))
    for name in ("dropping", "llama"):
        straight, halves = (
            whole_state(tmp_path / f"{name}-{kind}" / name_of(STEPS)) for kind in ("straight", "halves")
        )
        assert_close(halves, straight, 0)
        assert all(torch.equal(halves[state], straight[state]) for state in straight), "random states too"
        assert {path.name for path in (tmp_path / f"{name}-halves").iterdir()} == {
            "step-00000016",
            "step-00000020",
            "latest",
        }
    calls = whole_state(tmp_path / "dropping-straight" / name_of(STEPS))["model.0.block.calls"]
    assert calls == STEPS * 4, "microbatches of one replica"


# Stages that begin and end inside units, with embedding rows on every pipeline rank; then two stages a rank, in a V.
PIECES = {"cuts": ["embedding..0.mlp[:18]", "0.mlp[18:]..2.attn", "2.mlp..head"], "embedding_rows": [20, 12, 20]}
IN_A_V = {
    "schedule": "zb_v",
    "cuts": ["embedding..0.mlp", "1.attn..1.mlp[:9]", "1.mlp[9:]..2.mlp[:30]", "2.mlp[30:]..head"],
    "embedding_rows": [11, 40],
}


def some_steps(
    rank: int,
    folder: str,
    mesh: tuple[int, int, int],
    until: int,
    resume: str | None = None,
    pipeline: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    slow = {"learning_rate": "0.001", "warmup_steps": 2, "clip_norm": "0.5", "eps": "0.0001"}
    changes: dict[str, Any] = {"model": dict(LLAMA), "pipeline": dict(pipeline), "optimizer": slow}
    deployment = settings(Path(folder), mesh, shard_optimizer=True, **changes)
    losses = train(deployment, until=until, resume=resume)
    if rank == 0:
        Path(folder, f"losses-{until}.json").write_text(json.dumps(losses))


def last_steps_and_straight(rank: int, folder: str) -> None:
    """One process: the end of the training that moved, and all of another; then two that begin from weights."""
    some_steps(rank, f"{folder}/moving", (1, 1, 1), STEPS, f"{folder}/moving")
    some_steps(rank, f"{folder}/straight", (1, 1, 1), STEPS)
    read = train(settings(Path(folder, "read"), model=LLAMA | {"weights": f"{folder}/hf"}), until=3)
    begun = settings(Path(folder, "begun"), model=dict(LLAMA))
    assert train(begun, until=3, resume="latest") == read
    assert [path.name for path in whole(Path(folder, "begun"))] == [name_of(0), name_of(3)]


def test_over_three_meshes_cuts_and_schedules(tmp_path: Path) -> None:
    """The optimizer's state lies whole on every rank, then in halves on two replicas, then in one process."""
    moving = str(tmp_path / "moving")
    run_ranks(6, some_steps, moving, (2, 3, 1), 7, None, PIECES)
    assert_converted(Path(moving), tmp_path)
    run_ranks(4, some_steps, moving, (1, 2, 2), 14, "latest", IN_A_V)
    run_ranks(1, last_steps_and_straight, str(tmp_path))
    straight = whole_state(tmp_path / "straight" / name_of(STEPS))
    assert_close(whole_state(tmp_path / "moving" / name_of(STEPS)), straight, 1e-5)
    assert {name.split(".")[1] for name in straight if name.startswith("optimizer.")} == {"exp_avg", "exp_avg_sq"}
    files = [tmp_path / "moving" / f"losses-{until}.json" for until in (7, 14, STEPS)]
    losses = [loss for file in files for loss in json.loads(file.read_text())]
    expected = json.loads((tmp_path / "straight" / f"losses-{STEPS}.json").read_text())
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def assert_converted(checkpoints: Path, folder: Path) -> None:
    """What six ranks wrote is one model for transformers, from which another training can begin: folder/begun."""
    newest = whole(checkpoints)[-1]
    to_hugging_face(newest, folder / "hf")
    found, expected = tensors_of(folder / "hf"), whole_state(newest)
    shape = shape_from_hugging_face(folder / "hf")
    assert set(found) == set(tensor_shapes(shape))
    for parameter, parts in joined_tensors(shape).items():
        joined = torch.cat([found[part.name] for part in parts])
        assert torch.equal(joined, expected[f"model.{parameter}"]), parameter
    from_hugging_face(folder / "hf", folder / "begun")
    begun = whole_state(folder / "begun" / name_of(0))
    assert all(torch.equal(expected[name], begun[name]) for name in begun)
    assert set(begun) == {name for name in expected if name.startswith("model.")}
