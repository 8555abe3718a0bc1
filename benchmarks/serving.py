"""What serving promises on two cores, verified: each row is a claim of `hybrid-runtime verify` against its baseline.

    scripts/bench serving [--quick] [--save] [--only tp|pp|interleave]

    tp           configs/serving_two_cores_tp.toml           prefill on two tensor ranks against one rank: latency
    pp           configs/serving_two_cores_pp.toml           two stages against one rank at saturated load: tokens/s
    interleave   configs/serving_two_cores_interleave.toml   two microbatches in flight against one: tokens/s

The machine should do nothing else: a case takes one to four minutes, each side's ranks have a core each.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import RESULTS, arguments_given, environment, markdown_table, save

ROOT = Path(__file__).parents[1]
CASES = ("tp", "pp", "interleave")
_QUICK = {"warmup_steps": 4, "batch_steps": 1, "block_steps": 2, "settle_steps": 0, "blocks": 6, "looks": 1}


def main(arguments: Sequence[str] | None = None) -> int:
    """Verifies the cases, prints the table, and with --save keeps the result. Returns 1 after a FAIL."""
    parser = argparse.ArgumentParser(prog="scripts/bench serving", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="hardly any rounds: does it work at all")
    parser.add_argument("--save", action="store_true", help="keep the result under benchmarks/")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for --save")
    parser.add_argument("--only", choices=CASES, help="one case")
    options = parser.parse_args(arguments)
    result: dict[str, Any] = {"environment": environment(arguments_given(), "serving"), "cases": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for case in [options.only] if options.only else CASES:
            result["cases"][case] = verified(case, Path(scratch), quick=options.quick)
    table = table_of(result["cases"])
    print(table)
    if options.save:
        print(f"kept: {save('serving', result, table, options.results)}")
    return int(any(claim["outcome"] == "FAIL" for case in result["cases"].values() for claim in case["claims"]))


def verified(case: str, scratch: Path, *, quick: bool) -> dict[str, Any]:
    """One verification: seconds, and its claims as verdict.json has them.

    Raises:
        SystemExit: it came to no verdict.
    """
    values = tomllib.loads((ROOT / "configs" / f"serving_two_cores_{case}.toml").read_text())
    if quick:
        values["measurement"] = _QUICK | {"self_test": False}
    file, verdict = scratch / f"{case}.json", scratch / f"verdict-{case}.json"
    file.write_text(json.dumps(values))
    start_s = time.monotonic()
    done = subprocess.run(
        [
            sys.executable, "-m", "hybrid_runtime", "verify", str(file), "--quiet",
            "--run-folder", str(scratch / f"run-{case}"), "--json", str(verdict),
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode not in (0, 1, 3):
        raise SystemExit(f"{case}: verify ended with {done.returncode}: {done.stderr.strip()}")
    return {"seconds": time.monotonic() - start_s, "claims": json.loads(verdict.read_text())["claims"]}


def table_of(cases: dict[str, Any]) -> str:
    """A row per claim."""
    rows = [
        [case, claim["id"], f"{claim['op']} {claim['threshold']} {claim['unit']}", _figure(claim), claim["outcome"]]
        for case, found in cases.items()
        for claim in found["claims"]
    ]
    return markdown_table(["case", "claim", "required", "measured [interval]", "verdict"], rows)


def _figure(claim: dict[str, Any]) -> str:
    measured = claim["measured"]
    if measured is None:
        return f"- ({claim['reason']})"
    value, low, high = (f"{float(measured[name]):.2f}" for name in ("point", "lower", "upper"))
    return f"{value} [{low}, {high}]"


if __name__ == "__main__":
    raise SystemExit(main())
