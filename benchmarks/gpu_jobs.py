"""Writes the deployments that `scripts/gpu_check` runs and prints their file names: the demo, on GPUs, without claims.

one-rank       one NCCL rank
shared         six gloo ranks, tp=2 x pp=3, on whatever GPUs there are: function only
every-gpu      one NCCL rank per GPU, where there is more than one
"""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

DEMO = Path(__file__).parent.parent / "configs" / "demo.toml"
STEPS = 60


def jobs(demo: dict[str, Any], gpus: int) -> dict[str, dict[str, Any]]:
    """Deployments by name, made from the demo's."""
    degrees = {"one-rank": (1, 1), "shared": (2, 3)}
    if gpus > 1:
        tp_degree = 2 if gpus % 2 == 0 else 1
        degrees["every-gpu"] = (tp_degree, gpus // tp_degree)
    return {name: _job(demo, name, *degree) for name, degree in degrees.items()}


def _job(demo: dict[str, Any], name: str, tp_degree: int, pp_degree: int) -> dict[str, Any]:
    kept = {table: values for table, values in demo.items() if table not in ("baseline", "targets")}
    return kept | {
        "name": f"gpu-{name}",
        "parallel": {"tp_degree": tp_degree, "pp_degree": pp_degree},
        "workload": demo["workload"] | {"steps": STEPS},
        "hardware": {"device": "cuda", "oversubscribe": name == "shared"},
    }


def main(folder: str, gpus: str) -> None:
    """Writes one JSON file per job into `folder` and prints the paths."""
    for name, values in jobs(tomllib.loads(DEMO.read_text()), int(gpus)).items():
        file = Path(folder, f"{name}.json")
        file.write_text(json.dumps(values, indent=1) + "\n")
        print(file)


if __name__ == "__main__":
    main(*sys.argv[1:])
