"""Rehearsed against really run: busy time and peak bytes of every pipeline rank, on the same machine in one call.

    scripts/bench rehearsed [--quick] [--save] [--only CASE]

Each case is run for real, rehearsed, and run again; the rehearsal is compared with both runs together. CPU only: busy
is thread CPU time, bytes are the ledger's. Goals: busy of every rank within 3 %, peak bytes within 0.5 %.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.results import RESULTS, arguments_given, environment, markdown_table, save
from hybrid_runtime.planner.rehearsed import busy_ns
from hybrid_runtime.records import DATA, REDUCE_GRAD, RankRecords, read_side
from hybrid_runtime.rehearsal import FILE, read_rehearsal

BUSY_GOAL, BYTES_GOAL = 0.03, 0.005
CASES = {"tp2": (2, 1), "pp2": (1, 2), "tp2pp2": (2, 2)}  # tp, pp
_MODEL = {"preset": "tiny", "hidden_size": 256, "num_layers": 4, "num_heads": 8, "num_kv_heads": 8, "ffn_size": 512}
_COMMUNICATION = (DATA, REDUCE_GRAD)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the cases, prints the table, and with --save keeps the result. Returns 1 when a goal is missed."""
    parser = argparse.ArgumentParser(prog="scripts/bench rehearsed", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps; says nothing about the goals")
    parser.add_argument("--save", action="store_true", help="keep the result under benchmarks/results")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for --save")
    parser.add_argument("--only", choices=CASES, help="one case")
    options = parser.parse_args(arguments)
    result: dict[str, Any] = {"environment": environment(arguments_given(), "rehearsed"), "cases": {}}
    for name in [options.only] if options.only else CASES:
        result["cases"][name] = _case(name, steps=8 if options.quick else 40)
        print(f"{name}: done", flush=True)
    table = table_of(result)
    print(table)
    if options.save:
        print(f"saved {save('rehearsed', result, table, options.results).name}")
    return 0 if all(case["met"] for case in result["cases"].values()) else 1


def _case(name: str, steps: int) -> dict[str, Any]:
    tp_degree, pp_degree = CASES[name]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        file = folder / "job.json"
        file.write_text(json.dumps(_deployment(name, tp_degree, pp_degree, steps)), encoding="utf-8")
        first = _run(file, folder / "first")
        _command("rehearse", str(file), "--run-folder", str(folder / "rehearsal"))
        second = _run(file, folder / "second")
        rehearsal = read_rehearsal(folder / "rehearsal" / FILE)
        return _compared(first, second, rehearsal.ranks)


def _deployment(name: str, tp_degree: int, pp_degree: int, steps: int) -> dict[str, Any]:
    return {
        "name": name,
        "model": _MODEL,
        "parallel": {"tp_degree": tp_degree, "pp_degree": pp_degree},
        "batch": {"global_batch_size": 8, "microbatch_size": 1, "sequence_length": 128},
        "workload": {"steps": steps},
        "hardware": {"device": "cpu", "oversubscribe": True},
        "measurement": {"warmup_steps": min(10, steps // 2)},
    }


def _run(file: Path, folder: Path) -> Sequence[RankRecords]:
    _command("run", str(file), "--run-folder", str(folder))
    return read_side(folder)


def _command(name: str, *arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "hybrid_runtime", name, *arguments, "--quiet"], capture_output=True)
    if done.returncode not in (0, 3):  # without targets there is little to conclude
        raise SystemExit(done.stderr.decode())


def _compared(first: Sequence[RankRecords], second: Sequence[RankRecords], lone: Sequence[Any]) -> dict[str, Any]:
    ranks = []
    for rank in lone:
        real = [record for record in (*first, *second) if record.header.pp == rank.pp_rank]
        turns = [median(_busy_ns(record)) for record in real]
        busy, peak = busy_ns(rank), max(memory.ledger_peak or 0 for memory in rank.memory)
        peaks = {step.memory.ledger_peak for record in real for step in record.steps if step.memory.ledger_peak}
        really = sum(turns) / len(turns)
        ranks.append(
            {
                "pp_rank": rank.pp_rank,
                "real_busy_ns": really,
                "real_spread": max(turns) / min(turns) - 1,
                "rehearsed_busy_ns": busy,
                "busy_error": busy / really - 1,
                "real_peak_bytes": max(peaks),
                "rehearsed_peak_bytes": peak,
                "bytes_error": peak / max(peaks) - 1,
            }
        )
    met = all(abs(rank["busy_error"]) <= BUSY_GOAL and abs(rank["bytes_error"]) <= BYTES_GOAL for rank in ranks)
    return {"ranks": ranks, "met": met, "goal_busy": BUSY_GOAL, "goal_bytes": BYTES_GOAL}


def _busy_ns(record: RankRecords) -> list[int]:
    """Per measured step, CPU time of the rank's thread in what counts as compute."""
    return [sum(span.cpu_ns for span in step.spans if span.name not in _COMMUNICATION) for step in record.measured()]


def table_of(result: dict[str, Any]) -> str:
    """One row per pipeline rank."""
    rows = []
    for name, case in result["cases"].items():
        for rank in case["ranks"]:
            rows.append(
                [
                    name,
                    str(rank["pp_rank"]),
                    f"{rank['real_busy_ns'] / 1e6:.2f} ({100 * rank['real_spread']:.1f} %)",
                    f"{rank['rehearsed_busy_ns'] / 1e6:.2f}",
                    f"{100 * rank['busy_error']:+.2f} %",
                    f"{rank['real_peak_bytes']}",
                    f"{100 * rank['bytes_error']:+.3f} %",
                    "met" if case["met"] else "missed",
                ]
            )
    headings = ["case", "pp rank", "real busy ms (runs apart)", "rehearsed", "error", "real peak", "error", "goals"]
    return markdown_table(headings, rows)


if __name__ == "__main__":
    raise SystemExit(main())
