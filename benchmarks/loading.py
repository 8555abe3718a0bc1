"""Host memory while ranks load a model: from a Hugging Face folder, from a checkpoint; and while one is converted.

    scripts/bench loading [--quick] [--save] [--device cpu|cuda] [--only MESH]

What counts is a process's most resident memory (VmHWM: mapped files too) while it builds its units and reads what is
theirs, less what was resident just before: Python, torch and the ranks' groups. Goal, for N bytes over r ranks: at most
1.3 N / r + 300 MB on every rank. N is the parameters; of a checkpoint, gradients and the optimizer's state too, which
then lie in memory as well. Converting must stay under 100 MB whatever the size.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.options import parser_of
from benchmarks.ours import plan_of
from benchmarks.ranks import run_ranks
from benchmarks.results import arguments_given, environment, markdown_table, save
from hybrid_runtime.checkpoint.folders import whole
from hybrid_runtime.checkpoint.from_hugging_face import from_hugging_face
from hybrid_runtime.checkpoint.same_training import Training
from hybrid_runtime.checkpoint.to_hugging_face import to_hugging_face
from hybrid_runtime.comm.groups import Groups
from hybrid_runtime.data.tokens import ArrayTokens, Content
from hybrid_runtime.deployment import Deployment, parse_deployment
from hybrid_runtime.hugging_face_config import config_of
from hybrid_runtime.job import run_step
from hybrid_runtime.job_checkpoints import open_checkpoints
from hybrid_runtime.job_last_words import LastWords
from hybrid_runtime.job_orders import Order
from hybrid_runtime.job_parts import assemble, build, join_mesh
from hybrid_runtime.models.build import model_units
from hybrid_runtime.plan import Plan
from hybrid_runtime.shapes import PRESETS, LlamaShape, with_overrides
from hybrid_runtime.telemetry.recorder import NullRecorder
from hybrid_runtime.weights.layout import lay_out
from hybrid_runtime.weights.target import Target
from hybrid_runtime.weights.tensor_names import tensor_shapes

MESHES = {"1x1": (1, 1), "tp2": (2, 1), "pp2": (1, 2), "tp2 x pp2": (2, 2)}  # tp, pp
MODEL = {"vocab_size": 32_000, "hidden_size": 1024, "ffn_size": 2816, "num_layers": 4, "num_heads": 16}  # 464 MB
SMALL = {"vocab_size": 1000, "hidden_size": 64, "ffn_size": 128, "num_layers": 2, "num_heads": 4}
MB = 10**6
CONVERT_GOAL_MB = 100
TOKENS = 1000


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures everything, prints the table, and with --save keeps the result. Returns 1 when a goal is missed."""
    options = parser_of("loading", str(__doc__), blocks=1).parse_args(arguments)
    shape = with_overrides(PRESETS["tiny"], SMALL if options.quick else MODEL)
    result: dict[str, Any] = {"environment": environment(arguments_given(), "loading"), "cases": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_model(folder / "model", shape)
        run_ranks(1, make_checkpoint, folder, shape, device=options.device)
        for name, mesh in MESHES.items():
            if options.only in (None, name):
                for source in ("folder", "checkpoint"):
                    args = (folder, shape, mesh, source, options.device)
                    ranks = run_ranks(mesh[0] * mesh[1], measure, *args, device=options.device)
                    result["cases"].append(judged(f"{source}, {name}", ranks))
        result["cases"] += run_ranks(1, measure_convert, folder)[0]
    table = table_of(result["cases"])
    print(table)
    if options.save:
        print(f"saved {save('loading', result, table, options.results).name}")
    return 0 if all(case["met"] for case in result["cases"]) else 1


def make_model(folder: Path, shape: LlamaShape) -> None:
    """A folder whose files are holes: zeros, which are read as any other numbers are."""
    layout = lay_out({name: ("F32", size) for name, size in tensor_shapes(shape).items()}, 200 * MB)
    with Target(folder, layout).appearing(config_of(shape, dtype="float32", max_position_embeddings=64), {}):
        pass


def deployment(folder: Path, mesh: tuple[int, int], device: str, kind: str) -> Deployment:
    """Of the model in folder/model."""
    model = str(folder / "model")
    values = {
        "name": "loading",
        "model": {"hf_config": model, "weights": model},
        "parallel": {"tp_degree": mesh[0], "pp_degree": mesh[1]},
        "batch": {"global_batch_size": 2, "microbatch_size": 1, "sequence_length": 8},
        "workload": {"steps": 2, "kind": kind},
        "hardware": {"device": device, "oversubscribe": True},
        "checkpoint": {"folder": str(folder / "checkpoints")},
    }
    return parse_deployment(
        values if kind == "train" else values | {"checkpoint": None}, source="scripts/bench loading"
    )


def joined(settings: Deployment) -> tuple[Plan, Training]:
    """This rank among its peers."""
    on_gpu = settings.hardware.device == "cuda"
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    plan, specs = plan_of(settings), model_units(settings.model, settings.shape)
    backend = "nccl" if on_gpu else "gloo"
    groups: Groups = join_mesh(plan, specs, device=device, backend=backend, timeout=timedelta(minutes=5))
    return plan, Training(settings, plan, specs, groups, [Content(TOKENS, "")])


def make_checkpoint(rank: int, folder: Path, shape: LlamaShape) -> None:
    """One step on one rank, and everything that it leaves: folder/checkpoints."""
    settings = deployment(folder, (1, 1), "cpu", "train")
    (folder / "checkpoints").mkdir()
    plan, training = joined(settings)
    built = build(settings, plan, training.specs, training.groups)
    checkpoints = open_checkpoints(training, built, None, LastWords(), writing=True)
    source = ArrayTokens("random", shape.vocab_size, np.random.default_rng(0).integers(0, 100, TOKENS, dtype=np.uint16))
    parts = assemble(settings, plan, training.groups, built, source, NullRecorder(training.groups.device), checkpoints)
    _, numbers = run_step(parts, Order(0, 0))
    checkpoints.after_step(1, numbers)
    checkpoints.finish()


def measure(
    rank: int, folder: Path, shape: LlamaShape, mesh: tuple[int, int], source: str, device: str
) -> dict[str, int]:
    """One rank's memory in bytes: before, at most while it loaded, and what it holds."""
    train = source == "checkpoint"
    settings = deployment(folder, mesh, device, "train" if train else "forward")
    plan, training = joined(settings)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    built = build(settings, plan, training.specs, training.groups, weights=not train)
    if train:
        open_checkpoints(training, built, whole(folder / "checkpoints")[-1], LastWords(), writing=False)
    held = {p.data_ptr(): p.nbytes for unit in built.units.values() for p in unit.parameters()}
    copies = 4 if train else 1  # gradients and two moments
    return {"before": before, "peak": resident("VmHWM"), "held": copies * sum(held.values())}


def measure_convert(rank: int, folder: Path) -> list[dict[str, Any]]:
    """The checkpoint into a folder, and a folder into a checkpoint."""
    cases = []
    for name, convert in (
        ("checkpoint to folder", lambda: to_hugging_face(whole(folder / "checkpoints")[-1], folder / "converted")),
        ("folder to checkpoint", lambda: from_hugging_face(folder / "model", folder / "begun")),
    ):
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        convert()
        grown = resident("VmHWM") - before
        cases.append({
            "name": f"convert, {name}", "ranks": [{"before": before, "peak": before + grown, "held": 0}],
            "grown_mb": [grown / MB], "goal_mb": CONVERT_GOAL_MB, "met": grown <= CONVERT_GOAL_MB * MB,
        })  # fmt: skip
    return cases


def resident(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def judged(name: str, ranks: list[dict[str, int]]) -> dict[str, Any]:
    """Every rank against 1.3 N / r + 300 MB."""
    goal_mb = 1.3 * sum(rank["held"] for rank in ranks) / len(ranks) / MB + 300
    grown = [(rank["peak"] - rank["before"]) / MB for rank in ranks]
    return {"name": name, "ranks": ranks, "grown_mb": grown, "goal_mb": goal_mb, "met": max(grown) <= goal_mb}


def table_of(cases: Sequence[dict[str, Any]]) -> str:
    """One row per case."""
    rows = [
        [
            case["name"],
            " ".join(f"{rank['held'] / MB:.0f}" for rank in case["ranks"]),
            " ".join(f"{grown:.0f}" for grown in case["grown_mb"]),
            f"<= {case['goal_mb']:.0f}: {'met' if case['met'] else 'missed'}",
            " ".join(f"{rank['peak'] / MB:.0f}" for rank in case["ranks"]),
        ]
        for case in cases
    ]
    header = ["from, tp x pp", "held MB, per rank", "grown MB, per rank", "goal", "of the whole process MB"]
    return markdown_table(header, rows)


if __name__ == "__main__":
    raise SystemExit(main())
