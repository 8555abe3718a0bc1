"""Whole judged run folders of every kind, for tests that tamper with them and for `benchmarks/fuzz.py`."""

from __future__ import annotations

from pathlib import Path

from hybrid_runtime.run_folder import RunFolder
from hybrid_runtime.verdict import Sampling
from hybrid_runtime.verifier.judge import judge, write_verdict
from tests.verifier.nvml_examples import write_nvml
from tests.verifier.synthetic import MS, deployment, noisy, planted, write_run

TARGETS = {"compute_balance_pp": 1, "memory_balance_pp": 1, "latency_reduction_percent": 30}


def whole(folder: Path) -> Path:
    """A GPU run with every kind of raw file; its verdict is INCONCLUSIVE."""
    deployed = deployment(targets=TARGETS, baseline={"kind": "pp_only"}, measurement={"looks": 1, "budget_s": 9})
    sides = [
        noisy([mean] * 3, 0.002, seed, steps=20, block_steps=2, kind="cuda")
        for seed, mean in enumerate((10 * MS, 20 * MS))
    ]
    write_run(folder, sides[0], deployed, baseline=sides[1])
    write_nvml(folder)
    write_nvml(folder / "baseline")
    sampling = Sampling(looks_allowed=1, alpha_per_look="0.05", budget_s=9, looks=(), stopped="single look")
    RunFolder(folder).sampling.write_text(sampling.model_dump_json())
    other = folder / "baselines/dp_only"
    other.mkdir(parents=True)
    (other / "infeasible.txt").write_text("no room\n")
    write_verdict(judge(folder), folder / "verdict.json")
    return folder


def alone(folder: Path) -> Path:
    """A CPU run without a baseline; its verdict is PASS."""
    deployed = deployment(targets={"compute_balance_pp": 1, "utilisation_percent": 50})
    write_run(folder, planted(0.5, cv=0.003, seed=1), deployed)
    write_verdict(judge(folder), folder / "verdict.json")
    return folder


def judged_runs(folder: Path) -> list[Path]:
    """One of each."""
    return [whole(folder / "whole"), alone(folder / "alone")]
