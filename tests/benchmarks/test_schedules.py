"""Two ranks of real matrix products: a step takes as long as the replay of its own records says, and what is saved.

Every step is replayed with what that very step recorded. What is left is what a replay cannot know: time between
actions, an order that the executor would not keep - and other programs on the ranks' cores, so steps are judged only
where the kernel says that there were hardly any.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from benchmarks.cases import Case, Sizes, make_deployment, prepare
from benchmarks.ours import build_parts, stepper
from benchmarks.ranks import cores, run_ranks
from benchmarks.schedules import company
from hybrid_runtime.deployment import Deployment
from hybrid_runtime.plan import read_plan
from hybrid_runtime.planner.measured_costs import measured_costs, pipeline_times_ns
from hybrid_runtime.records import read_side
from hybrid_runtime.run_folder import RunFolder
from hybrid_runtime.schedule.actions import parse_actions
from hybrid_runtime.schedule.choose import AUTO
from hybrid_runtime.schedule.registry import SCHEDULES
from hybrid_runtime.schedule.replay import replay_step

ROOT = Path(__file__).parents[2]
SIZES = Sizes(vocab_size=1024, hidden_size=256, num_layers=4, num_heads=4, ffn_size=704, sequence_length=128)
STEPS = 6
MOST_COMPANY = 0.05
BAR = 0.08 if "CI" in os.environ else 0.05


def run_all(rank: int, deployments: Sequence[Deployment], folder: Path) -> None:
    for deployment in deployments:
        records = RunFolder(folder / deployment.name)
        parts = build_parts(deployment, records.path, torch.device("cpu"))
        step = stepper(parts, warmup_steps=1)
        for _ in range(1 + STEPS):
            step()
        parts.recorder.finish()
        if rank == 0:
            records.plan.write_text(parts.plan.to_json())


def errors_of(folder: Path) -> list[float]:
    """Executed over replayed, less one, of every undisturbed step by its own records."""
    plan, ranks = read_plan(RunFolder(folder).plan), read_side(folder)
    lists, errors = list(map(parse_actions, plan.actions)), list[float]()
    for number in range(1, 1 + STEPS):
        alone = [rank._replace(steps=rank.steps[number : number + 1]) for rank in ranks]
        if company(alone) <= MOST_COMPANY:
            replayed = replay_step(lists, plan.stage_to_rank, measured_costs(alone))
            errors.append(pipeline_times_ns(alone)[0] / float(replayed.makespan) - 1)
    return errors


@pytest.mark.ranks
@pytest.mark.skipif(cores() < 2, reason="two ranks need a core each, this machine gives one")
def test_every_schedule_takes_as_long_as_its_records_replayed(tmp_path: Path) -> None:
    prepare(tmp_path, SIZES)
    cases = [Case(name, 1, 2, pipeline={"schedule": name}) for name in (*SCHEDULES, AUTO)]
    deployments = [make_deployment(case, SIZES, tmp_path, "cpu") for case in cases]
    run_ranks(2, run_all, deployments, tmp_path)
    found = {deployment.name: errors_of(tmp_path / deployment.name) for deployment in deployments}
    print({name: [f"{error:+.1%}" for error in errors] for name, errors in found.items()})
    judged = {name: errors for name, errors in found.items() if errors}
    if not judged:
        pytest.skip(f"other programs used more than {MOST_COMPANY:.0%} of the ranks' cores in every step")
    assert {name: errors for name, errors in judged.items() if min(map(abs, errors)) > BAR} == {}


@pytest.mark.ranks
def test_quick_run_saves_a_complete_result(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.schedules", "--quick", "--only", "zb_v", "--save"]
    command += ["--results", str(tmp_path / "results")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode in (0, 1), done.stderr  # tiny sizes may miss the goals
    (file,) = (tmp_path / "results").glob("*.json")
    case = json.loads(file.read_text())["cases"]["zb_v"]
    assert case["goals_met"] == {
        "step": case["step_time_ratio"]["median"] <= 1,
        "replay": abs(case["replay"]["executed_s"] / case["replay"]["replayed_s"] - 1) <= 0.05,
    }
    assert case["met"] == all(case["goals_met"].values()) == (done.returncode == 0)
    for side in case["sides"].values():
        assert 0 < side["busy"] <= 1
    text = (tmp_path / "results" / "RESULTS.md").read_text()
    assert "| zb_v " in text
    assert str(tmp_path) not in text + file.read_text(), "a result names no path"
