"""Logits equal those of transformers, with weights loaded through safetensors, on one and two ranks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from hybrid_runtime.comm.axis import Axis, axis_of
from hybrid_runtime.comm.collectives import all_gather_stack
from hybrid_runtime.errors import UsageError
from hybrid_runtime.hugging_face_config import shape_from_hugging_face
from hybrid_runtime.models.build import build_units
from hybrid_runtime.models.llama import llama_units
from hybrid_runtime.models.unit import BuildContext, Carry, Microbatch, UnitSpec, sharded_specs, specs_of
from hybrid_runtime.pieces import unit_of
from hybrid_runtime.tensor_parallel.shard import gather_full, iter_parameters
from tests.models import hugging_face_models as models
from tests.models.hugging_face_models import LLAMA, LLAMA_3_1, LLAMA_FOUR, QWEN2, QWEN2_FOUR, QWEN3, TOKENS
from tests.ranks import run_ranks


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save_models(tmp_path_factory.mktemp("hugging_face"))


def load(folder: Path, axis: Axis | None = None) -> dict[str, nn.Module]:
    context = BuildContext(tp=axis or Axis(), seed=99)
    return build_units(llama_units(shape_from_hugging_face(folder)), context, weights=folder)


def logits_of(units: dict[str, nn.Module], axis: Axis) -> Tensor:
    carry: Carry = ()
    with torch.no_grad():
        for unit in units.values():
            carry = unit(carry, Microbatch(TOKENS))
    return torch.cat(list(all_gather_stack(carry[0], axis)), -1)[..., :51]


@pytest.mark.parametrize("name", models.NAMES)
def test_logits_equal_transformers(folders: Path, name: str) -> None:
    expected = torch.load(folders / f"{name}.pt")
    assert expected.abs().max() > 1, "too small to show a difference"
    torch.testing.assert_close(logits_of(load(folders / name), Axis()), expected, atol=2e-5, rtol=0)


def test_weights_that_are_read_are_not_drawn_before(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*key: object) -> int:
        raise AssertionError(key)

    monkeypatch.setattr("hybrid_runtime.tensor_parallel.initialise.derived_seed", refuse)
    for name in (LLAMA, QWEN2):
        load(folders / name)


def test_positions_of_llama_3_1_differ_from_plain_ones(folders: Path) -> None:
    specs = llama_units(replace(shape_from_hugging_face(folders / LLAMA_3_1), rope_scaling=None))
    plain = logits_of(build_units(specs, BuildContext(), weights=folders / LLAMA_3_1), Axis())
    assert (plain - torch.load(folders / f"{LLAMA_3_1}.pt")).abs().max() > 0.01


@pytest.mark.parametrize("name", [LLAMA, QWEN2])
def test_rows_of_a_sharded_embedding(folders: Path, name: str) -> None:
    """Each rank's rows are read from the folder, and with them the sum of lookups is the embedding's, to the bit."""
    specs = llama_units(shape_from_hugging_face(folders / name))
    whole = load(folders / name)
    pieces = ("", "embedding[0:20]", "embedding[20:51]")
    parts = []
    for rank in (1, 2):
        held = sharded_specs(specs, pieces, rank)
        mine = [spec for spec in held if spec.name == pieces[rank] or (rank == 2 and spec.name == "head")]
        units = build_units(mine, BuildContext(seed=99), weights=folders / name)
        parts.append(units[pieces[rank]]((), Microbatch(TOKENS))[0])
    rows, head = units[pieces[2]], units["head"]
    assert (rows.get_parameter("tokens.weight") is head.get_parameter("output.weight")) == (name == QWEN2)
    (rest,) = build_units(sharded_specs(specs, pieces, 0)[:1], BuildContext(), weights=folders / name).values()
    assert torch.equal(rest.zeros(TOKENS), torch.zeros_like(parts[0]))
    summed = rest((parts[0] + parts[1],), Microbatch(TOKENS))[0]
    assert torch.equal(summed, whole["embedding"]((), Microbatch(TOKENS))[0])


@pytest.mark.ranks
def test_logits_equal_transformers_on_two_ranks(folders: Path) -> None:
    run_ranks(2, _two_ranks, folders)


def _two_ranks(rank: int, folders: Path) -> None:
    axis = axis_of(dist.group.WORLD)
    for name in models.NAMES:
        expected = torch.load(folders / f"{name}.pt")
        torch.testing.assert_close(logits_of(load(folders / name, axis), axis), expected, atol=2e-5, rtol=0)
    _pieces_equal_the_whole(folders / QWEN2_FOUR, axis)


PIECES = ("0.attn[0:2]", "0.attn[2:4]", "0.mlp[0:16]", "0.mlp[16:20]", "0.mlp[20:48]")


def test_pieces_read_their_slices(folders: Path) -> None:
    _pieces_equal_the_whole(folders / LLAMA_FOUR, Axis())
    _pieces_equal_the_whole(folders / QWEN2_FOUR, Axis())


def _pieces_equal_the_whole(folder: Path, axis: Axis) -> None:
    """Joined over pieces and ranks, every parameter is the one of the whole unit, to the bit."""
    specs = llama_units(shape_from_hugging_face(folder))
    units = ("0.attn", "0.mlp")
    whole, pieces = (
        build_units(specs_of(names, specs), BuildContext(tp=axis, seed=99), weights=folder) for names in (units, PIECES)
    )
    joined: dict[str, Tensor] = {}
    for piece, module in pieces.items():
        for name, parameter, spec in iter_parameters(module):
            key = f"{unit_of(piece)}.{name}"
            joined[key] = joined.get(key, torch.zeros(())) + gather_full(parameter, spec, axis)
    expected = {name: gather_full(parameter, spec, axis) for name, parameter, spec in iter_parameters(whole)}
    assert set(joined) == set(expected)
    for name, parameter in expected.items():
        assert torch.equal(joined[name], parameter), name


def test_a_stage_needs_only_its_own_tensors(folders: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folders / LLAMA / "model.safetensors")
    save_file(
        {name: t for name, t in tensors.items() if "layers.1.mlp" in name or "layers.1.post" in name},
        tmp_path / "model.safetensors",
    )
    spec = llama_units(shape_from_hugging_face(folders / LLAMA))[4]
    (unit,) = build_units([spec], BuildContext(), weights=tmp_path).values()
    down = dict(unit.named_parameters())["down.weight"]
    assert torch.equal(down, tensors["model.layers.1.mlp.down_proj.weight"])


def test_what_does_not_fit_is_named(folders: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    specs = llama_units(shape_from_hugging_face(folders / LLAMA))

    def refused(folder: Path, message: str, specs: list[UnitSpec] = specs) -> None:
        with pytest.raises(UsageError, match=message):
            build_units(specs, BuildContext(), weights=folder)

    refused(tmp_path / "absent", "is not a folder")
    refused(tmp_path, "holds neither model.safetensors nor")
    tensors = load_file(folders / LLAMA / "model.safetensors")
    file = tmp_path / "model.safetensors"
    save_file({name: t for name, t in tensors.items() if "1.self_attn.k_proj" not in name}, file)
    refused(tmp_path, "holds no tensor model.layers.1.self_attn.k_proj.weight")
    save_file(tensors | {"model.norm.weight": torch.ones(31)}, file)
    refused(tmp_path, r"model.norm.weight has shape \(31,\), the model needs \(32,\)")
    file.write_bytes(b"not tensors")
    refused(tmp_path, "is not a readable safetensors file")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.embed_tokens.weight": "gone.safetensors"}}))
    refused(tmp_path, "gone.safetensors: does not exist")
    index.write_text(json.dumps({"weight_map": {}}))
    refused(tmp_path, "names no tensor model.embed_tokens.weight")
    index.write_text("{")
    refused(tmp_path, "is not a usable index")
    index.write_text(json.dumps({"weight_map": {"model.embed_tokens.weight": "../elsewhere"}}))
    refused(tmp_path, "'../elsewhere' is no file beside it")
    refused(folders / LLAMA, "unit 'mine' is a Linear", [UnitSpec("mine", lambda context: nn.Linear(2, 2))])


def test_tensors_that_the_model_lacks_and_other_numbers_are_refused(folders: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    specs = llama_units(shape_from_hugging_face(folders / LLAMA))
    tensors = models.tensors_of(folders / LLAMA)
    file = tmp_path / "model.safetensors"
    save_file(tensors | {"model.layers.1.self_attn.o_proj.bias": torch.ones(32)}, file)
    with pytest.raises(UsageError, match=r"has a tensor model.layers.1.self_attn.o_proj.bias that the model lacks"):
        build_units(specs, BuildContext(), weights=tmp_path)
    plain = llama_units(replace(shape_from_hugging_face(folders / QWEN3), qk_norm=False))
    with pytest.raises(UsageError, match=r"has a tensor model.layers.0.self_attn.k_norm.weight that the model lacks"):
        build_units(plain, BuildContext(), weights=folders / QWEN3)
    save_file(tensors | {"model.norm.weight": torch.ones(32, dtype=torch.int8)}, file)
    with pytest.raises(UsageError, match=r"model\.norm\.weight is of type I8"):
        build_units(specs, BuildContext(), weights=tmp_path)
    save_file(tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}, file)
    build_units(specs, BuildContext(), weights=tmp_path)
