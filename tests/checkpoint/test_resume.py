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

from hybrid_runtime.checkpoint.folders import name_of, step_of, whole
from hybrid_runtime.checkpoint.from_hugging_face import from_hugging_face
from hybrid_runtime.checkpoint.model_words import MASTERS
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
            ".lock",
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


HALF = LLAMA | {"dtype": "bfloat16"}
SLOW = {"learning_rate": "0.001", "warmup_steps": 2, "clip_norm": "0.5", "eps": "0.0001"}
STILL = {"learning_rate": f"0.{'0' * 29}1"}  # an update that changes no number


def some_steps(
    rank: int,
    folder: str,
    mesh: tuple[int, int, int],
    until: int,
    resume: str | None = None,
    pipeline: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Of a float32 model, and of a bfloat16 one with master copies (in a folder named so), in the same processes."""
    for model, where in ((LLAMA, folder), (HALF, f"{folder}-bfloat16")):
        changes: dict[str, Any] = {"model": dict(model), "pipeline": dict(pipeline), "optimizer": SLOW}
        deployment = settings(Path(where), mesh, shard_optimizer=True, **changes)
        if resume and model is HALF:
            newest = whole(Path(where))[-1]
            still = settings(Path(f"{where}-still"), mesh, shard_optimizer=True, **changes | {"optimizer": STILL})
            train(still, until=step_of(newest) + 1, resume=str(newest))
        losses = train(deployment, until=until, resume=resume and "latest")
        if rank == 0:
            Path(where, f"losses-{until}.json").write_text(json.dumps(losses))


def last_steps_and_straight(rank: int, folder: str) -> None:
    """One process: the end of the training that moved, and all of another; then two that begin from weights."""
    some_steps(rank, f"{folder}/moving", (1, 1, 1), STEPS, "latest")
    some_steps(rank, f"{folder}/straight", (1, 1, 1), STEPS)
    for model, where in ((LLAMA, "begun"), (HALF, "begun-bfloat16")):
        read = train(settings(Path(folder, f"{where}-read"), model=model | {"weights": f"{folder}/hf"}), until=3)
        begun = settings(Path(folder, where), model=dict(model))
        assert train(begun, until=3, resume="latest") == read
        assert [path.name for path in whole(Path(folder, where))] == [name_of(0), name_of(3)]


def test_over_three_meshes_cuts_and_schedules(tmp_path: Path) -> None:
    """The optimizer's state lies whole on every rank, then in halves on two replicas, then in one process."""
    moving, half = tmp_path / "moving", tmp_path / "moving-bfloat16"
    run_ranks(6, some_steps, str(moving), (2, 3, 1), 7, None, PIECES)
    assert_converted(moving, tmp_path)
    seventh = whole_state(half / name_of(7))
    run_ranks(4, some_steps, str(moving), (1, 2, 2), 14, "latest", IN_A_V)
    fourteenth = whole_state(half / name_of(14))
    assert_masters_converted(half / name_of(14), tmp_path, fourteenth)
    run_ranks(1, last_steps_and_straight, str(tmp_path))
    straight = whole_state(tmp_path / "straight" / name_of(STEPS))
    assert_close(whole_state(tmp_path / "moving" / name_of(STEPS)), straight, 1e-5)
    assert {name.split(".")[1] for name in straight if name.startswith("optimizer.")} == {"exp_avg", "exp_avg_sq"}
    np.testing.assert_allclose(losses_of(moving), losses_of(tmp_path / "straight"), rtol=1e-5)
    for state, step in ((seventh, 8), (fourteenth, 15)):
        assert_close(masters(whole_state(tmp_path / "moving-bfloat16-still" / name_of(step))), masters(state), 0)
    assert_alike_in_bfloat16(half, tmp_path / "straight-bfloat16", since=seventh)
    begun, read = (whole_state(tmp_path / f"begun-bfloat16{kind}" / name_of(3)) for kind in ("", "-read"))
    assert masters(begun), "made anew, for a folder of weights has none"
    assert_close(begun, read, 0)


def losses_of(folder: Path) -> list[float]:
    files = (folder / f"losses-{until}.json" for until in (7, 14, STEPS))
    return [loss for file in files if file.exists() for loss in json.loads(file.read_text())]


def masters(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(MASTERS): tensor for name, tensor in state.items() if name.startswith(MASTERS)}


def assert_alike_in_bfloat16(moving: Path, straight: Path, since: dict[str, torch.Tensor]) -> None:
    """What other orders of summation round differently is small beside what was learnt since a state."""
    np.testing.assert_allclose(losses_of(moving), losses_of(straight), rtol=2e-3)
    found, expected = (whole_state(folder / name_of(STEPS)) for folder in (moving, straight))
    for name, master in masters(found).items():
        assert torch.equal(master.bfloat16(), found[f"model.{name}"]), name
        learnt = float((expected[MASTERS + name] - since[MASTERS + name]).norm())
        error = float((master - expected[MASTERS + name]).norm())
        assert error <= 0.1 * learnt, f"{name}: {error:.2e} of {learnt:.2e}"


def assert_masters_converted(checkpoint: Path, folder: Path, state: dict[str, torch.Tensor]) -> None:
    """As float32, which is what a model becomes that came as float32, it is the master copies, and not the rounded
    numbers."""
    to_hugging_face(checkpoint, folder / "masters", like=folder / "hf")
    to_hugging_face(checkpoint, folder / "rounded")
    wide, narrow = tensors_of(folder / "masters"), tensors_of(folder / "rounded")
    for parameter, parts in joined_tensors(shape_from_hugging_face(folder / "masters")).items():
        assert torch.equal(torch.cat([wide[part.name] for part in parts]), state[f"{MASTERS}{parameter}"]), parameter
        assert torch.equal(torch.cat([narrow[part.name] for part in parts]), state[f"model.{parameter}"]), parameter
        assert not torch.equal(state[f"{MASTERS}{parameter}"], state[f"model.{parameter}"].float()), parameter


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
    from_hugging_face(folder / "hf", folder / "begun-bfloat16", dtype="bfloat16")
    from_hugging_face(folder / "hf", folder / "begun")
    begun = whole_state(folder / "begun" / name_of(0))
    assert all(torch.equal(expected[name], begun[name]) for name in begun)
    assert set(begun) == {name for name in expected if name.startswith("model.")}
