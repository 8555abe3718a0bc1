"""The verifier's self-test again and again on this machine: how often does it raise a false alarm?

    scripts/bench self_test [--repeat 20] [--quick] [--save]

Every repetition is one `hybrid-runtime verify --self-test` of two ranks (`configs/ci_smoke.toml` with more blocks and a
promise of 50 % more throughput): planted imbalances, the candidate against itself, the cost of telemetry. A FAIL is a
false alarm: the instrument is the same on both sides. INCONCLUSIVE is what a noisy machine deserves.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import track

from benchmarks.results import RESULTS, arguments_given, environment, markdown_table, save

ROOT = Path(__file__).parents[1]
OUTCOMES = ("PASS", "FAIL", "INCONCLUSIVE")
NO_ALARM = ("aa",)  # the checks that may never fail; a planted level may, as often as its error budget says


def main(arguments: Sequence[str] | None = None) -> int:
    """Repeats the self-test, prints the table, and with --save keeps the result. Returns 1 after a false alarm."""
    parser = argparse.ArgumentParser(prog="scripts/bench self_test", description=__doc__.partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=20, help="how often")
    parser.add_argument("--quick", action="store_true", help="once, with few steps")
    parser.add_argument("--save", action="store_true", help="keep the result under benchmarks/")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for --save")
    options = parser.parse_args(arguments)
    repeat = 1 if options.quick else options.repeat
    result: dict[str, Any] = {"environment": environment(arguments_given(), "self_test"), "runs": []}
    with tempfile.TemporaryDirectory() as scratch:
        for number in track(range(repeat), description="self-tests", disable=not sys.stderr.isatty()):
            result["runs"].append(once(Path(scratch), number, quick=options.quick))
    table = table_of(result)
    print(table)
    if options.save:
        print(f"saved {save('self_test', result, table, options.results).name}")
    return int(any(run["checks"][name]["outcome"] == "FAIL" for run in result["runs"] for name in NO_ALARM))


def once(scratch: Path, number: int, *, quick: bool) -> dict[str, Any]:
    """One verification of the instrument: seconds, and every check's outcome and figures."""
    values = tomllib.loads((ROOT / "configs" / "ci_smoke.toml").read_text())
    values["targets"] = {"throughput_gain_percent": 50}
    values["measurement"] |= {"blocks": 10, "looks": 1} if quick else {"blocks": 12, "looks": 3}
    if quick:
        values["measurement"] |= {"block_steps": 1}
    file, verdict = scratch / "deployment.json", scratch / f"verdict-{number}.json"
    file.write_text(json.dumps(values))
    start_s = time.monotonic()
    done = subprocess.run(
        [
            sys.executable, "-m", "hybrid_runtime", "verify", "--self-test", str(file), "--quiet",
            "--run-folder", str(scratch / f"run-{number}"), "--json", str(verdict),
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode not in (0, 1, 3):
        raise SystemExit(f"repetition {number} ended with {done.returncode}: {done.stderr.strip()}")
    checks = json.loads(verdict.read_text())["self_test"]
    return {"seconds": time.monotonic() - start_s, "checks": {check["id"]: check for check in checks}}


def table_of(result: dict[str, Any]) -> str:
    """One row per check: how often each outcome, and the range of what was measured."""
    runs = result["runs"]
    rows = []
    for name, first in runs[0]["checks"].items():
        found = [run["checks"][name] for run in runs]
        counts = Counter(check["outcome"] for check in found)
        points = [float(check["measured"]["point"]) for check in found if check["measured"]]
        spread = f"{min(points):.3f} to {max(points):.3f} {first['unit']}" if points else "-"
        alarm = "no FAIL" if name in NO_ALARM else "-"
        met = "" if name not in NO_ALARM else ": met" if not counts["FAIL"] else ": missed"
        rows.append([name, *(str(counts[outcome]) for outcome in OUTCOMES), spread, alarm + met])
    seconds = sum(run["seconds"] for run in runs)
    table = markdown_table(["self-test", *OUTCOMES, "measured", "goal"], rows)
    return f"{table}\n\n{len(runs)} repetitions, {seconds:.0f} s."


if __name__ == "__main__":
    raise SystemExit(main())
