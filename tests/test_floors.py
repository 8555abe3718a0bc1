"""The floors of the house hold: a module imports only from its own floor or below, and judging never needs torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hybrid_runtime

PACKAGE = Path(hybrid_runtime.__file__).parent

FLOORS = [
    "__init__ errors exact mesh shapes deployment deployment_declared deployment_fields deployment_errors "
    "deployment_checkpoint deployment_data deployment_export deployment_measurement deployment_search "
    "deployment_telemetry deployment_model deployment_optimizer deployment_text hugging_face_config pieces predicted "
    "calibration company rehearsal would fingerprint plan planted records nvml_records verdict verdict_modelled "
    "verdict_prediction prediction_history schemas run_folder turns launches git_state plan_contradictions peak_rates "
    "deployment_faults deployment_load deployment_parallel deployment_rules deployment_targets deployment_workload "
    "tokenizer_file predicted_serving verdict_measured verdict_served stop_signals",
    "schedule serving",
    "planner verifier report weights faults comm tensor_parallel data_parallel models data telemetry training",
    "pipeline checkpoint inference",
    "job job_checkpoints job_export job_generate job_header job_last_words job_loss job_orders job_parts job_planted "
    "job_progress job_validation job_serving lone job_shared_folder job_disk job_not_finite job_out_of_memory "
    "job_watch",
    "launcher ask sides sampling measure rebalance tried cli cli_convert cli_generate cli_lone cli_output "
    "cli_plan cli_report cli_schedule cli_tokenize __main__",
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names.split()}
TORCH_FREE_ROOMS = {"schedule", "serving", "planner", "verifier", "report", "weights", "faults"}
TORCH_FREE = {*FLOORS[0].split(), *TORCH_FREE_ROOMS, *FLOORS[-1].split()} - {"__main__"}
# What launcher and commands use of a torch floor, itself free of torch (tested below by importing it).
TORCH_FREE_MODULES = (
    *(f"hybrid_runtime.telemetry.{name}" for name in ("account", "status", "host", "machine")),
    *(f"hybrid_runtime.checkpoint.{name}" for name in ("folders", "to_hugging_face", "from_hugging_face")),
    *(f"hybrid_runtime.data.{name}" for name in ("tokenise", "corpus")),
)


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield str(node.module)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_go_down(path: Path) -> None:
    here = room(path)
    for name in imported(path):
        assert not (name.split(".")[0] == "torch" and here in TORCH_FREE), f"{here} imports torch"
        if name.startswith("hybrid_runtime."):
            there = name.split(".")[1]
            assert FLOOR[there] <= FLOOR[here], f"{here} (floor {FLOOR[here]}) may not import {name}"
            if here in TORCH_FREE and there not in TORCH_FREE:
                assert name in TORCH_FREE_MODULES, f"{here} is free of torch and may not import {name}"


def test_an_upward_import_would_be_caught() -> None:
    assert FLOOR["schedule"] < FLOOR["pipeline"] < FLOOR["job"] < FLOOR["cli"]


def test_judging_and_planning_load_no_torch() -> None:
    modules = [
        ".".join(["hybrid_runtime", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
        for path in FILES
        if room(path) in TORCH_FREE and path.name != "__main__.py"
    ] + list(TORCH_FREE_MODULES)
    code = (
        f"import importlib, sys; [importlib.import_module(m) for m in {modules!r}]; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
