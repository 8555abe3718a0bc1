"""Plans of two ranks, predicted from one calibration of the machine and then run: for benchmarks of predictions.

calibrate   plan A, B, C   run A, B, C   run C, B, A        a drift of the machine hits first and last alike
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybrid_runtime.plan import read_plan
from hybrid_runtime.records import read_side
from hybrid_runtime.verifier.metrics import measure
from hybrid_runtime.verifier.side import load_side

MODEL = {"preset": "tiny", "hidden_size": 256, "num_layers": 4, "num_heads": 8, "num_kv_heads": 8, "ffn_size": 512}
BATCH = {"global_batch_size": 8, "microbatch_size": 1, "sequence_length": 256}
WHOLE: Mapping[str, Any] = {"parallel": {"tp_degree": 2}}  # calibrating it measures what any plan of two ranks asks for


def predicted_and_run(
    folder: Path, cases: Mapping[str, Mapping[str, Any]], steps: int, *, calibrated: Mapping[str, Any] = WHOLE
) -> dict[str, Any]:
    """Calibrates, plans every case and runs each twice, in turn.

    Args:
        cases: name -> what its deployment says beyond the model and batch that all have in common.
        calibrated: the same of the deployment that is calibrated.

    Returns:
        By name, what was predicted, what both runs measured, and the signed errors: predicted / measured - 1.
    """
    files = [write_case(folder / f"case{number}.json", case, steps) for number, case in enumerate(cases.values())]
    whole = write_case(folder / "all.json", calibrated, steps)
    _command("calibrate", str(whole), "--out", str(folder / "calibration.json"))
    print("calibrated", flush=True)
    for file in files:
        _command("plan", str(file), "--calibration", str(folder / "calibration.json"), "--out", str(_plan(file)))
    numbered = list(zip(cases, files))
    for turn, order in enumerate((numbered, numbered[::-1])):
        for name, file in order:
            _command("run", str(file), "--plan", str(_plan(file)), "--run-folder", str(_run(file, turn)))
            print(f"{name}: run {turn + 1} is done", flush=True)
    return {name: _compared(file) for name, file in numbered}


def write_case(file: Path, case: Mapping[str, Any], steps: int) -> Path:
    """A case's deployment file, in which nothing is left for the planner to choose."""
    values = {
        "name": file.stem,
        "model": MODEL,
        "batch": BATCH,
        "workload": {"steps": steps},
        "hardware": {"device": "cpu"},
        "measurement": {"warmup_steps": min(10, steps // 2)},
        "search": {"vary": []},
    }
    file.write_text(json.dumps(values | case), encoding="utf-8")
    return file


def _plan(file: Path) -> Path:
    return file.with_suffix(".plan.json")


def _run(file: Path, turn: int) -> Path:
    return file.with_suffix(f".run{turn}")


def _command(name: str, *arguments: str) -> None:
    command = [sys.executable, "-m", "hybrid_runtime", name, *arguments, "--quiet"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode not in (0, 3):  # without targets there is little to conclude
        raise SystemExit(f"{' '.join(command)}: {done.stderr.decode()}")


def _compared(file: Path) -> dict[str, Any]:
    predicted = read_plan(_plan(file)).predicted
    assert predicted is not None
    runs = [json.loads((_run(file, turn) / "verdict.json").read_text())["prediction"] for turn in (0, 1)]
    steps_ns = [int(measure(load_side(_run(file, turn), "candidate")).bare.median_step_ns) for turn in (0, 1)]
    held = {rank.header.pp: [step.memory for step in rank.steps] for rank in read_side(_run(file, 0))}
    peaks = [max(memory.ledger_peak or 0 for memory in held[rank.pp_rank]) for rank in predicted.ranks]
    activations = [max(memory.activations_peak or 0 for memory in held[rank.pp_rank]) for rank in predicted.ranks]
    measured_ns = sum(steps_ns) / len(steps_ns)
    return {
        "predicted_ns": predicted.step_time.p50_ns,
        "measured_ns": steps_ns,
        "error": predicted.step_time.p50_ns / measured_ns - 1,
        "inside": [predicted.step_time.p10_ns <= step_ns <= predicted.step_time.p90_ns for step_ns in steps_ns],
        "busy_errors": [_busy_errors(run) for run in runs],
        "bytes_errors": [rank.memory.ledger_peak / peak - 1 for rank, peak in zip(predicted.ranks, peaks)],
        "activations": activations,
        "activations_errors": [
            rank.memory.activations / peak - 1 for rank, peak in zip(predicted.ranks, activations) if peak
        ],
        "budgets": [run["budget"] for run in runs],
        "disturbed": [run["detail"] if run["verdict"] == "UNJUDGED" else "" for run in runs],
    }


def _busy_errors(run: Mapping[str, Any]) -> list[str]:
    """Of every pipeline rank, as text in percent."""
    return [rank["error"] for found in run["quantities"] if found["id"] == "busy" for rank in found["ranks"]]


def disturbed(cases: Mapping[str, Any]) -> list[str]:
    """Runs whose time the verifier would not judge, and why: goals that they miss say nothing. One line each."""
    told = ((name, turn, words) for name, case in cases.items() for turn, words in enumerate(case["disturbed"], 1))
    return [f"- {name}, run {turn}: {words.partition(';')[0]}" for name, turn, words in told if words]


def times_of(case: Mapping[str, Any]) -> list[str]:
    """Cells of a table: predicted, measured, error, inside the predicted interval or not."""
    measured = " / ".join(f"{step_ns / 1e6:.1f}" for step_ns in case["measured_ns"])
    inside = "".join("y" if each else "n" for each in case["inside"])
    return [f"{case['predicted_ns'] / 1e6:.1f}", measured, f"{100 * case['error']:+.2f} %", inside]
