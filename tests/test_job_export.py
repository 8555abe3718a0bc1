"""Exported folders: the bytes that were loaded, whatever the mesh; transformers computes what the ranks compute."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from hybrid_runtime.comm.groups import Groups
from hybrid_runtime.deployment import Deployment, parse_deployment
from hybrid_runtime.hugging_face_config import shape_from_hugging_face
from hybrid_runtime.job import run_step
from hybrid_runtime.job_export import export, prepare_export
from hybrid_runtime.job_orders import Order
from hybrid_runtime.job_parts import Built, Parts, assemble, build, join_mesh
from hybrid_runtime.models.build import model_costs, model_units
from hybrid_runtime.models.unit import UnitSpec
from hybrid_runtime.plan import Plan
from hybrid_runtime.planner.make import make_plan
from hybrid_runtime.shapes import PRESETS, with_overrides
from hybrid_runtime.telemetry.recorder import NullRecorder
from hybrid_runtime.weights.export import MARK
from hybrid_runtime.weights.layout import header_of, lay_out
from hybrid_runtime.weights.tensor_file import create_file
from hybrid_runtime.weights.tensor_names import tensor_shapes
from tests import parity
from tests.commands import run, small, write_json
from tests.models import hugging_face_models as models
from tests.models.hugging_face_models import LLAMA, LLAMA_ONE_HEAD, QWEN2, QWEN3_TIED
from tests.ranks import run_ranks

SIX = {"tp_degree": 2, "pp_degree": 3}
REPLICAS = {"pp_degree": 3, "dp_degree": 2}
PIECES = ["embedding..0.mlp[:20]", "0.mlp[20:]..1.attn", "1.mlp..head"]
MORE_PIECES = ["embedding..0.mlp", "1.attn..1.mlp[:6]", "1.mlp[6:]..head"]
HEADS = ["embedding..0.attn[:1]", "0.attn[1:]..1.mlp[:5]", "1.mlp[5:]..head"]
MIB = 2**20


def deployment(folder: Path | None, target: Path, **more: Any) -> Deployment:
    """Of a Hugging Face folder (None for the model in `more`), exported to another."""
    values: dict[str, Any] = {
        "name": "export",
        "batch": {"global_batch_size": 4, "microbatch_size": 1, "sequence_length": 8},
        "workload": {"steps": 4},
        "hardware": {"device": "cpu", "oversubscribe": True},
        "export": {"folder": str(target), "max_file_size": "0.00003 GB"} | more.pop("export", {}),
    }
    if folder is not None:
        values["model"] = {"hf_config": str(folder), "weights": str(folder)}
    return parse_deployment(values | more, source="export test")


def joined(settings: Deployment) -> tuple[Plan, list[UnitSpec], Groups]:
    specs = model_units(settings.model, settings.shape)
    plan = make_plan(settings, model_costs(settings, specs))
    groups = join_mesh(plan, specs, device=torch.device("cpu"), backend="gloo", timeout=timedelta(seconds=60))
    return plan, specs, groups


def built(settings: Deployment) -> tuple[Plan, Groups, Built]:
    plan, specs, groups = joined(settings)
    return plan, groups, build(settings, plan, specs, groups)


def save(settings: Deployment, groups: Groups, mine: Built) -> None:
    prepared = prepare_export(settings, groups.place.rank, {})
    assert prepared is not None
    export(prepared, settings, mine.units, groups, mine.update)


def save_all(rank: int, root: Path, cases: list[tuple[str, str, dict[str, Any]]]) -> None:
    for name, target, more in cases:
        settings = deployment(root / name, root / target, **more)
        save(settings, *built(settings)[1:])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save_models(tmp_path_factory.mktemp("export"))


def assert_same_model(root: Path, name: str, target: str) -> None:
    assert torch.equal(models.logits_of_transformers(root / target), torch.load(root / f"{name}.pt")), target
    before, after = models.tensors_of(root / name), models.tensors_of(root / target)
    assert before.keys() == after.keys(), target
    for key, tensor in before.items():
        assert tensor.dtype == after[key].dtype
        assert torch.equal(tensor.view(torch.uint8), after[key].view(torch.uint8)), (target, key)


@pytest.mark.ranks
def test_what_six_ranks_loaded_is_saved_again_byte_for_byte(root: Path) -> None:
    cases: list[tuple[str, str, dict[str, Any]]] = [
        (LLAMA_ONE_HEAD, "six", {"parallel": SIX, "pipeline": {"cuts": PIECES}}),
        (QWEN2, "six_tied", {"parallel": SIX, "pipeline": {"cuts": MORE_PIECES}}),
        (QWEN3_TIED, "v", {"parallel": SIX, "pipeline": {"schedule": "zb_v"}}),  # embedding and head: one Parameter
        (LLAMA, "replicas", {"parallel": REPLICAS, "pipeline": {"cuts": HEADS}}),
    ]
    run_ranks(6, save_all, root, cases)
    for name, target, _ in cases:
        assert_same_model(root, name, target)
        assert (root / target / "tokenizer.json").read_text() == '{"of": "' + name + '"}'
        assert (root / target / "model.safetensors.index.json").exists()
    assert not list(root.glob(".*"))


@pytest.mark.ranks
def test_one_rank_saves_every_family(root: Path) -> None:
    half: dict[str, Any] = {"export": {"dtype": "bfloat16", "max_file_size": "5 GB"}}
    run_ranks(1, save_all, root, [(name, f"one_{name}", {}) for name in models.NAMES] + [(LLAMA, "half", half)])
    for name in models.NAMES:
        assert_same_model(root, name, f"one_{name}")
    before, after = models.tensors_of(root / LLAMA), models.tensors_of(root / "half")
    assert all(torch.equal(before[key].bfloat16(), after[key]) for key in before | after)
    assert not (root / "half" / "model.safetensors.index.json").exists()


@pytest.mark.ranks
def test_trained_models_and_memory_on_four_ranks(tmp_path: Path) -> None:
    trained = [
        deployment(None, tmp_path / name, parallel={"tp_degree": 2, "pp_degree": 2}, model={**TRAINED, **more})
        for name, more in (("biased", {"qkv_bias": True, "tie_embeddings": True}), ("normed", {"qk_norm": True}))
    ]
    large = deployment(
        None,
        tmp_path / "large",
        parallel={"tp_degree": 2, "pp_degree": 2},
        pipeline={"cuts": ["embedding..2.mlp", "3.attn..head"]},
        model={"preset": "tiny", **LARGE, "weights": str(large_folder(tmp_path))},
        export={"max_file_size": "0.05 GB"},
        workload={"kind": "forward"},
    )
    half = {
        "model": {**TRAINED, "dtype": "bfloat16"},
        "parallel": {"pp_degree": 2, "dp_degree": 2, "shard_optimizer": True},
    }
    wide, narrow = (
        deployment(None, tmp_path / dtype, **half, export={"dtype": dtype}) for dtype in ("float32", "bfloat16")
    )
    models.transformers_or_skip()
    run_ranks(4, train_and_save, trained, large, wide, narrow)
    for settings in trained:
        assert_loss_of_transformers(settings)
    masters, rounded = models.tensors_of(tmp_path / "float32"), models.tensors_of(tmp_path / "bfloat16")
    assert masters.keys() == rounded.keys()
    for name, master in masters.items():
        assert torch.equal(master.bfloat16(), rounded[name]), name
        assert not torch.equal(master, rounded[name].float()), f"{name} was rounded"


@pytest.mark.alone
def test_a_run_exports_at_its_end_and_tells_so_before_if_it_cannot(tmp_path: Path) -> None:
    values = small(
        export={"folder": "models/mine"}, data={"source": "python-stdlib"}, checkpoint={"folder": "checkpoints"}
    )
    first = run("run", write_json(tmp_path / "file.json", values), "--run-folder", "run", folder=tmp_path)
    assert first.code in (0, 3), first
    assert "model: models/mine" in first.err
    found = models.tensors_of(tmp_path / "models" / "mine")
    assert {name: tuple(t.shape) for name, t in found.items()} == tensor_shapes(
        shape_from_hugging_face(tmp_path / "models" / "mine")
    )
    values["workload"]["steps"] = 8
    write_json(tmp_path / "file.json", values)
    on = run("run", "file.json", "--run-folder", "on", "--resume", "latest", folder=tmp_path)
    assert on.code in (0, 3), on
    assert json.loads((tmp_path / "models/mine" / MARK).read_text())["step"] == 8
    later = models.tensors_of(tmp_path / "models" / "mine")
    assert not any(torch.equal(tensor, later[name]) for name, tensor in found.items())
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["mine"], "the one of six steps is gone"
    values["checkpoint"]["folder"] = "others"
    again = run("run", write_json(tmp_path / "file.json", values), "--run-folder", "again", folder=tmp_path)
    assert again.code == 2
    assert "models/mine: already exists" in again.err
    assert "step" not in again.err


TRAINED = {"preset": "tiny", **parity.SHAPE}
LARGE = {"vocab_size": 40_000, "hidden_size": 512, "ffn_size": 2048, "num_layers": 6, "num_heads": 8}  # 264 MB


def large_folder(root: Path) -> Path:
    """Of zeros, mostly holes in the file system."""
    folder = root / "zeros"
    folder.mkdir()
    shapes = tensor_shapes(with_overrides(PRESETS["tiny"], LARGE))
    layout = lay_out({name: ("F32", size) for name, size in shapes.items()}, 10**8)
    for file, entries in layout.files.items():
        create_file(folder / file, header_of(entries), layout.file_bytes(file))
    (folder / "model.safetensors.index.json").write_text(str(layout.index()))
    return folder


def some_steps(settings: Deployment) -> tuple[Parts, Groups, Built]:
    plan, groups, mine = built(settings)
    parts = assemble(settings, plan, groups, mine, parity.source(), NullRecorder(torch.device("cpu")))
    for step in range(3):
        run_step(parts, Order(step, step))
    return parts, groups, mine


def train_and_save(
    rank: int, trained: list[Deployment], large: Deployment, wide: Deployment, narrow: Deployment
) -> None:
    _, groups, mine = some_steps(wide)
    save(narrow, groups, mine)
    save(wide, groups, mine)
    for settings in trained:
        parts, groups, mine = some_steps(settings)
        save(settings, groups, mine)
        loss, _ = run_step(parts, Order(3, 3))
        assert settings.export is not None
        if rank == 0:
            Path(f"{settings.export.folder}.loss").write_text(str(loss))
    plan, specs, groups = joined(large)
    before = peak_bytes(reset=True)
    mine = build(large, plan, specs, groups)
    held = sum(parameter.nbytes for unit in mine.units.values() for parameter in unit.parameters())
    loaded = peak_bytes(reset=True)
    save(large, groups, mine)
    saved = peak_bytes()
    whole = sum(row[0] for row in groups.gather_numbers([float(held)]))
    assert loaded - before < 1.3 * whole / 4 + 32 * MIB < whole / 2, (rank, before, loaded, held)
    assert saved - loaded < 32 * MIB, (rank, loaded, saved)


def peak_bytes(*, reset: bool = False) -> int:
    """The most resident memory of this process, mapped files included; since now after a reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def assert_loss_of_transformers(settings: Deployment) -> None:
    """Of the batch that the ranks went on with."""
    assert settings.export is not None
    batch = parity.whole_batch(settings, 3)
    assert batch.targets is not None
    logits = models.logits_of_tokens(Path(settings.export.folder), batch.tokens)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
    expected = float(Path(f"{settings.export.folder}.loss").read_text())
    assert loss.item() == pytest.approx(expected, rel=1e-5)
