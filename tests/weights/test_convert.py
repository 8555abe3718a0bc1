"""`hybrid-runtime convert`: the same model in other files and numbers; damaged and foreign folders are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hybrid_runtime.errors import UsageError
from hybrid_runtime.hugging_face_config import shape_from_hugging_face
from hybrid_runtime.weights.convert import convert
from hybrid_runtime.weights.tensor_names import tensor_shapes
from tests.commands import command
from tests.models import hugging_face_models as models
from tests.models.hugging_face_models import LLAMA, QWEN3_TIED


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save_models(tmp_path_factory.mktemp("convert"))


@pytest.mark.parametrize("name", models.NAMES)
def test_transformers_computes_the_same_of_other_files(root: Path, tmp_path: Path, name: str) -> None:
    steps: list[tuple[int, int]] = []
    done = convert(root / name, tmp_path / "new", max_file_bytes=30_000, progress=lambda *step: steps.append(step))
    assert torch.equal(models.logits_of_transformers(tmp_path / "new"), torch.load(root / f"{name}.pt"))
    files = list((tmp_path / "new").glob("*.safetensors"))
    assert len(files) == done.files > 1
    assert all(file.stat().st_size <= 30_000 for file in files)
    assert steps[-1] == (done.tensor_bytes, done.tensor_bytes)
    assert (tmp_path / "new" / "tokenizer.json").read_bytes() == (root / name / "tokenizer.json").read_bytes()
    before, after = models.tensors_of(root / name), models.tensors_of(tmp_path / "new")
    assert before.keys() == after.keys() == tensor_shapes(shape_from_hugging_face(tmp_path / "new")).keys()
    assert done.tensors == len(after)


def test_bfloat16_and_back(root: Path, tmp_path: Path) -> None:
    done = command("convert", root / LLAMA, tmp_path / "half", "--dtype", "bfloat16")
    assert (done.code, done.err) == (0, "")
    assert "21 tensors, 35,520 bytes, in 1 file(s)" in done.out
    before, after = models.tensors_of(root / LLAMA), models.tensors_of(tmp_path / "half")
    assert all(torch.equal(tensor.bfloat16(), after[name]) for name, tensor in before.items())
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    assert command("convert", tmp_path / "half", tmp_path / "wide", "--dtype", "float32").code == 0
    assert all(torch.equal(after[n].float(), tensor) for n, tensor in models.tensors_of(tmp_path / "wide").items())


def test_what_is_damaged_or_of_another_model_is_refused_and_leaves_nothing(root: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensors = models.tensors_of(root / QWEN3_TIED)
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_bytes((root / QWEN3_TIED / "config.json").read_bytes())

    def refused(words: str, **options: Any) -> None:
        with pytest.raises(UsageError, match=words):
            convert(source, tmp_path / "new", **options)
        assert [path.name for path in tmp_path.iterdir()] == ["source"]

    refused("holds neither model.safetensors nor")
    save_file({name: t for name, t in tensors.items() if "1.mlp.up" not in name}, source / "model.safetensors")
    refused(r"holds no tensor model.layers.1.mlp.up_proj.weight")
    save_file(tensors | {"model.layers.2.mlp.up_proj.weight": torch.ones(2)}, source / "model.safetensors")
    refused(r"has a tensor model.layers.2.mlp.up_proj.weight that the model lacks")
    save_file(tensors | {"model.norm.weight": torch.full((32,), 1e9)}, source / "model.safetensors")
    refused(r"model.norm.weight has numbers too large for F16; choose bfloat16 or float32", dtype="float16")
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, source / "model.safetensors")
    assert convert(source, tmp_path / "new").tensors == len(tensors)
    with pytest.raises(UsageError, match="already exists"):
        convert(source, tmp_path / "new")


def test_sizes_need_a_unit(root: Path, tmp_path: Path) -> None:
    for text, words in (("5", "needs a number and a unit"), ("0 GB", "leaves no room")):
        done = command("convert", root / LLAMA, tmp_path / "new", "--max-file-size", text)
        assert done.code == 2
        assert words in done.err
