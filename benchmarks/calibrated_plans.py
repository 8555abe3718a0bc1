"""Plans of two ranks, predicted from one calibration of this machine: what benchmarks of predictions begin with."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MODEL = {"preset": "tiny", "hidden_size": 256, "num_layers": 4, "num_heads": 8, "num_kv_heads": 8, "ffn_size": 512}
BATCH = {"global_batch_size": 8, "microbatch_size": 1, "sequence_length": 256}
WHOLE: Mapping[str, Any] = {"parallel": {"tp_degree": 2}}  # calibrating it measures what any plan of two ranks asks for


def calibrate_and_plan(
    folder: Path, cases: Mapping[str, Mapping[str, Any]], steps: int, *, calibrated: Mapping[str, Any] = WHOLE
) -> dict[str, Path]:
    """Calibrates this machine and plans every case.

    Args:
        cases: name -> what its deployment says beyond the model and batch that all have in common.
        calibrated: the same of the deployment that is calibrated.

    Returns:
        By name, the deployment's file, beside which lies its plan (`plan_file`).
    """
    files = [write_case(folder / f"case{number}.json", case, steps) for number, case in enumerate(cases.values())]
    whole = write_case(folder / "all.json", calibrated, steps)
    command("calibrate", str(whole), "--out", str(folder / "calibration.json"))
    print("calibrated", flush=True)
    for file in files:
        command("plan", str(file), "--calibration", str(folder / "calibration.json"), "--out", str(plan_file(file)))
    return dict(zip(cases, files))


def write_case(file: Path, case: Mapping[str, Any], steps: int) -> Path:
    """A case's deployment file, in which nothing is left for the planner to choose."""
    values: dict[str, Any] = {
        "name": file.stem,
        "model": MODEL,
        "batch": BATCH,
        "workload": {"steps": steps},
        "hardware": {"device": "cpu"},
        "measurement": {"warmup_steps": min(10, steps // 2)},
        "search": {"vary": []},
    }
    file.write_text(json.dumps({**values, **case}), encoding="utf-8")
    return file


def plan_file(file: Path) -> Path:
    """Of a case's deployment file."""
    return file.with_suffix(".plan.json")


def command(name: str, *arguments: str) -> None:
    """Runs `hybrid-runtime NAME ARGUMENTS --quiet`.

    Raises:
        SystemExit: it failed; the message is what it said.
    """
    words = [sys.executable, "-m", "hybrid_runtime", name, *arguments, "--quiet"]
    done = subprocess.run(words, capture_output=True, check=False)
    if done.returncode not in (0, 3):  # without targets there is little to conclude
        raise SystemExit(f"{' '.join(words)}: {done.stderr.decode()}")
