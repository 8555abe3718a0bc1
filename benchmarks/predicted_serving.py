"""Predicted against measured where requests are served, over layouts and loads of two ranks with a core each.

    scripts/bench predicted_serving [--quick] [--save] [--only CASE]

The machine is calibrated once, every case is planned from that calibration, then all are run, and once more in reverse
order, so that a drift of the machine hits first and last alike. A figure is the median over both runs of what the
verdict found. One rank has a calibration of its own: it has no company.

Goals: median latency of whole answers and of first tokens, and the time of a round, within 6 %; busy time within 3 %;
peak memory exact.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.calibrated_plans import command, plan_file
from benchmarks.results import RESULTS, arguments_given, environment, markdown_table, save

QUANTITIES = ("step_time", "first_token", "output_token", "request", "busy", "idle", "peak_memory")
GOALS = {"step_time": 6.0, "first_token": 6.0, "request": 6.0, "busy": 3.0, "peak_memory": 0.0}  # per cent
_MODEL = {"preset": "tiny", "hidden_size": 512, "num_layers": 6, "num_heads": 8, "num_kv_heads": 4, "ffn_size": 1024}
_BATCH = {"global_batch_size": 16, "microbatch_size": 8, "sequence_length": 64}
_LOAD = {"requests": 32, "prompt_tokens": [16, 32], "output_tokens": 16}
_OPEN = _LOAD | {"arrivals": "open", "rate_per_s": 20}
_EVERYTHING = {"vary": ["tp_degree", "pp_degree", "microbatch_size"]}
_TWO = {"parallel": {"pp_degree": 2}}

CASES: Mapping[str, dict[str, Any]] = {
    "one rank": {"hardware": {"device": "cpu", "devices": 1, "threads_per_rank": 1}},
    "tp 2": {"parallel": {"tp_degree": 2}},
    "pp 2": _TWO,
    "pp 2, one in flight": _TWO | {"batch": _BATCH | {"items_in_flight": 1}},
    "pp 2, 4 microbatches": _TWO | {"batch": _BATCH | {"microbatch_size": 4}},
    "pp 2, chunks of 16": _TWO | {"batch": _BATCH | {"prefill_chunk_tokens": 16}},
    "pp 2, open load": _TWO | {"load": _OPEN},
    "tp 2, open load": {"parallel": {"tp_degree": 2}, "load": _OPEN},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Calibrates, plans, runs, prints the table, and with --save keeps the result. Returns 1 when a goal is missed."""
    parser = argparse.ArgumentParser(prog="scripts/bench predicted_serving", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few rounds; says nothing about the goals")
    parser.add_argument("--save", action="store_true", help="keep the result under benchmarks/results")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for --save")
    parser.add_argument("--only", choices=CASES, action="append", help="one case; can be given again")
    options = parser.parse_args(arguments)
    names = options.only or list(CASES)
    with tempfile.TemporaryDirectory() as scratch:
        cases = _measured(Path(scratch), names, rounds=6 if options.quick else 16)
    result = {"environment": environment(arguments_given(), "predicted_serving"), "cases": cases}
    table = table_of(cases)
    print(table)
    if options.save:
        print(f"saved {save('predicted_serving', result, table, options.results).name}")
    return int(bool(missed(cases)))


def deployment_of(name: str, rounds: int) -> dict[str, Any]:
    """A case's deployment, in which nothing is left for the planner to choose but where stages are cut."""
    values: dict[str, Any] = {
        "name": name.replace(",", "").replace(" ", "-"),
        "model": _MODEL,
        "batch": _BATCH,
        "workload": {"kind": "generate", "steps": rounds},
        "load": _LOAD,
        "hardware": {"device": "cpu", "devices": 2, "threads_per_rank": 1},
        "measurement": {"warmup_steps": min(4, rounds - 5) if rounds > 5 else 1},
        "search": {"vary": ["cuts"]},
    }
    return values | CASES[name]


def _measured(folder: Path, names: Sequence[str], rounds: int) -> dict[str, Any]:
    files = {name: folder / f"case{number}.json" for number, name in enumerate(names)}
    for name, file in files.items():
        file.write_text(json.dumps(deployment_of(name, rounds)), encoding="utf-8")
    _calibrate_and_plan(folder, files, rounds)
    for turn, order in enumerate((list(files.items()), list(files.items())[::-1])):
        for name, file in order:
            command("run", str(file), "--plan", str(plan_file(file)), "--run-folder", str(_run(file, turn)))
            print(f"{name}: run {turn + 1} is done", flush=True)
    return {name: _compared(file) for name, file in files.items()}


def _calibrate_and_plan(folder: Path, files: Mapping[str, Path], rounds: int) -> None:
    for devices in (1, 2):
        of_these = {name: file for name, file in files.items() if devices_of(name) == devices}
        if not of_these:
            continue
        whole, calibration = folder / f"all{devices}.json", folder / f"calibration{devices}.json"
        values = deployment_of(next(iter(of_these)), rounds) | {"load": _LOAD, "batch": _BATCH, "search": _EVERYTHING}
        whole.write_text(json.dumps(values), encoding="utf-8")
        command("calibrate", str(whole), "--out", str(calibration))
        print(f"calibrated for {devices} device(s)", flush=True)
        for file in of_these.values():
            command("plan", str(file), "--calibration", str(calibration), "--out", str(plan_file(file)))


def devices_of(name: str) -> int:
    """Of a case."""
    found: int = deployment_of(name, 1)["hardware"]["devices"]
    return found


def _run(file: Path, turn: int) -> Path:
    return file.with_suffix(f".run{turn}")


def _compared(file: Path) -> dict[str, Any]:
    runs = [json.loads((_run(file, turn) / "verdict.json").read_text())["prediction"] for turn in (0, 1)]
    errors: dict[str, list[float]] = {}
    for run in runs:
        for found in run["quantities"]:
            if found["measured"]:
                errors.setdefault(found["id"], []).append(100 * (found["predicted"] / found["measured"] - 1))
    disturbed = [run["detail"].partition(";")[0] if run["verdict"] == "UNJUDGED" else "" for run in runs]
    return {"errors": errors, "quantities": [run["quantities"] for run in runs], "disturbed": disturbed}


def missed(cases: Mapping[str, Any]) -> list[str]:
    """Goals that the medians over runs miss, in words."""
    return [
        f"{name}: {quantity} {median(case['errors'][quantity]):+.1f} %, goal {goal:g} %"
        for name, case in cases.items()
        for quantity, goal in GOALS.items()
        if quantity in case["errors"] and abs(median(case["errors"][quantity])) > goal
    ]


def table_of(cases: Mapping[str, Any]) -> str:
    """One row per case: signed errors of every run, and below it what is missed and what disturbed runs."""
    rows = [
        [name, *(_words(case["errors"].get(quantity, [])) for quantity in QUANTITIES)] for name, case in cases.items()
    ]
    table = markdown_table(["case", *QUANTITIES], rows)
    notes = [f"- missed: {words}" for words in missed(cases)]
    for name, case in cases.items():
        notes += [f"- {name}, run {turn}: {why}" for turn, why in enumerate(case["disturbed"], 1) if why]
    return "\n".join([table.rstrip("\n"), *(["", *notes] if notes else [])])


def _words(errors: Sequence[float]) -> str:
    return " / ".join(f"{error:+.1f}" for error in errors) + " %" if errors else "-"


if __name__ == "__main__":
    raise SystemExit(main())
