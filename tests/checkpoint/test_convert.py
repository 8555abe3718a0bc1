"""`hybrid-runtime convert` with checkpoints: the same bytes there and back; what is damaged or foreign is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hybrid_runtime.checkpoint.folders import name_of, whole
from hybrid_runtime.checkpoint.from_hugging_face import from_hugging_face
from hybrid_runtime.checkpoint.manifest import MANIFEST, read_manifest
from hybrid_runtime.checkpoint.model_words import LENGTH, MODEL, shape_of_words, words_of_shape
from hybrid_runtime.checkpoint.reader import check_whole
from hybrid_runtime.checkpoint.to_hugging_face import to_hugging_face
from hybrid_runtime.errors import CheckpointError, UsageError
from hybrid_runtime.hugging_face_config import read_config, shape_from_hugging_face
from hybrid_runtime.shapes import PRESETS
from hybrid_runtime.weights import tensor_file
from tests.commands import command
from tests.models import hugging_face_models as models
from tests.models.hugging_face_models import LLAMA, QWEN2


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save_models(tmp_path_factory.mktemp("convert"))


@pytest.mark.parametrize("name", models.NAMES)
def test_there_and_back(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(tensor_file, "BLOCK_BYTES", 1000)  # many chunks
    steps: list[tuple[int, int]] = []
    done = from_hugging_face(
        root / name, tmp_path / "begun", max_file_bytes=30_000, progress=lambda *step: steps.append(step)
    )
    assert steps[-1] == (done.tensor_bytes, done.tensor_bytes)
    manifest = check_whole(tmp_path / "begun" / name_of(0))
    assert len(manifest.files) == done.files > 1
    assert max(len(tensor.chunks) for tensor in manifest.tensors.values()) > 5
    back = to_hugging_face(tmp_path / "begun" / name_of(0), tmp_path / "back")
    assert back.tensor_bytes == done.tensor_bytes
    before, after = models.tensors_of(root / name), models.tensors_of(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor.view(torch.uint8), after[key].view(torch.uint8)) for key, tensor in before.items())
    assert torch.equal(models.logits_of_transformers(tmp_path / "back"), torch.load(root / f"{name}.pt"))
    for file in ("config.json", "tokenizer.json"):
        assert (tmp_path / "back" / file).exists()
    assert shape_from_hugging_face(tmp_path / "back") == shape_from_hugging_face(root / name)


def test_as_commands(root: Path, tmp_path: Path) -> None:
    done = command("convert", root / LLAMA, tmp_path / "begun", "--to-checkpoint", "--dtype", "bfloat16")
    assert (done.code, done.err) == (0, "")
    assert "15 tensors, 35,520 bytes, in 1 file(s)" in done.out
    assert (tmp_path / "begun" / "latest").read_text() == name_of(0) + "\n"
    done = command("convert", tmp_path / "begun", tmp_path / "wide", "--dtype", "float32", "--like", root / LLAMA)
    assert (done.code, done.err) == (0, "")
    before, after = models.tensors_of(root / LLAMA), models.tensors_of(tmp_path / "wide")
    assert all(torch.equal(tensor.bfloat16().float(), after[key]) for key, tensor in before.items())
    assert read_config(tmp_path / "wide")["dtype"] == "float32"
    assert read_config(tmp_path / "wide")["max_position_embeddings"] == 64


def test_a_source_that_is_gone(root: Path, tmp_path: Path) -> None:
    """Its sizes are in the checkpoint; the longest sequence and the tokenizer are not, and that is said."""
    (tmp_path / "models").mkdir()
    moved = (root / QWEN2).rename(tmp_path / "models" / "moved")
    from_hugging_face(moved, tmp_path / "begun")
    moved.rename(root / QWEN2)
    checkpoint = tmp_path / "begun" / name_of(0)
    done = command("convert", checkpoint, tmp_path / "back")
    assert done.code == 2
    assert "name the model's folder with --like FOLDER" in done.err
    forged(checkpoint, training=read_manifest(checkpoint).training | {LENGTH: "64"})  # as a training has it
    done = command("convert", checkpoint, tmp_path / "back")
    assert done.code == 0, done
    assert "no tokenizer.json went with it" in done.out
    assert shape_from_hugging_face(tmp_path / "back") == shape_from_hugging_face(root / QWEN2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{hf}", "{new}", "--like", "{hf}"], "--like is for checkpoints"),
        (["{begun}", "{new}", "--to-checkpoint"], "holds checkpoints already"),
        (["{begun}", "{new}", "--like", "{begun}"], "holds no config.json; name the Hugging Face folder"),
        (["{hf}", "{begun}", "--to-checkpoint"], "already holds checkpoints, the newest step-00000000"),
        (["{hf}", "{new}", "--to-checkpoint", "--dtype", "float16"], "models are trained in float32 or bfloat16"),
        (["{begun}", "{hf}"], "already exists; name another folder"),
        (["{none}", "{new}"], "cannot be read"),
    ],
)
def test_what_makes_no_sense_is_said_in_a_sentence(
    root: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    from_hugging_face(root / LLAMA, tmp_path / "begun")
    places = {"hf": root / LLAMA, "new": tmp_path / "new", "begun": tmp_path / "begun", "none": tmp_path / "none"}
    done = command("convert", *(argument.format(**places) for argument in arguments))
    assert done.code == 2, done
    assert words in done.err
    assert done.err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"begun"}


def forged(checkpoint: Path, **changes: Any) -> None:
    (checkpoint / MANIFEST).write_text(read_manifest(checkpoint).model_copy(update=changes).to_json())


def test_damage_and_other_models_leave_no_folder(root: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "begun" / name_of(0)
    from_hugging_face(root / LLAMA, tmp_path / "begun")
    whole_one = read_manifest(checkpoint)

    def refused(error: type[Exception], words: str) -> None:
        with pytest.raises(error, match=words):
            to_hugging_face(checkpoint, tmp_path / "new")
        assert {path.name for path in tmp_path.iterdir()} == {"begun"}

    name = "model.1.mlp.gate_up.weight"
    tensor = whole_one.tensors[name]
    forged(checkpoint, tensors={key: value for key, value in whole_one.tensors.items() if key != name})
    refused(UsageError, f"{name} is missing where a model of its sizes has")
    forged(checkpoint, tensors=whole_one.tensors | {name: tensor.model_copy(update={"chunks": tensor.chunks[:1]})})
    refused(UsageError, f"{name} is .* where a model of its sizes has")
    forged(checkpoint, tensors=whole_one.tensors | {"model.9.mlp.down.weight": tensor})
    refused(UsageError, "model.9.mlp.down.weight is .* where a model of its sizes has none")
    forged(checkpoint, training=whole_one.training | {MODEL: json.dumps({"units": "mine:units", "options": {}})})
    refused(UsageError, "is of a model of your own units, which transformers does not have")
    (checkpoint / MANIFEST).write_text(whole_one.to_json())
    path = checkpoint / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[tensor.chunks[0].start] ^= 1
    path.write_bytes(content)
    refused(CheckpointError, rf"model\.safetensors: is damaged: bytes \d+ to \d+, of {name}, are not those")


def test_a_folder_that_fails_leaves_no_checkpoint(root: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_bytes((root / LLAMA / "config.json").read_bytes())
    (source / "model.safetensors").write_bytes((root / LLAMA / "model.safetensors").read_bytes()[:-1])
    for target in ("new", "there"):
        with pytest.raises(UsageError, match="it ends after"):
            from_hugging_face(source, tmp_path / target)
        (tmp_path / "there").mkdir(exist_ok=True)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "there"}
    assert not whole(tmp_path / "there")


def test_a_tensor_that_the_model_lacks_is_not_left_out(root: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_bytes((root / LLAMA / "config.json").read_bytes())
    more = {"model.layers.0.mlp.up_proj.bias": torch.ones(48)}
    save_file(models.tensors_of(root / LLAMA) | more, source / "model.safetensors")
    for dtype in (None, "bfloat16"):
        with pytest.raises(UsageError, match=r"has a tensor model.layers.0.mlp.up_proj.bias that the model lacks"):
            from_hugging_face(source, tmp_path / "new", dtype=dtype)
    assert not (tmp_path / "new").exists()


def test_shapes_in_words() -> None:
    for shape in PRESETS.values():
        assert shape_of_words(words_of_shape(shape)) == shape
    for words in (
        "",
        "[]",
        "{}",
        '{"units": "a:b", "options": {}}',
        words_of_shape(PRESETS["tiny"])[:-1] + ', "a": 1}',
    ):
        assert shape_of_words(words) is None
