"""Each benchmark runs end to end with tiny sizes, and what it saves is complete."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.blocks import combine, ratio
from benchmarks.cases import QUICK, Case, make_deployment
from benchmarks.gpu_jobs import main as write_jobs
from benchmarks.on_and_off import judged
from benchmarks.on_and_off import table_of as on_and_off_table
from benchmarks.peer_model import build_blocks, random_weights
from benchmarks.results import environment, markdown_table
from hybrid_runtime.deployment import load_deployment
from tests.ranks import forking

ROOT = Path(__file__).parents[2]


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("name", "case", "sides"),
    [
        ("peers", "tp2", ("ours", "torch")),
        ("peers", "pp2", ("ours", "torch")),
        ("telemetry", "tp2", ("on", "off")),
        ("checkpoints", "pp2", ("on", "off")),
        ("faults", "pp2", ("on", "off")),
    ],
)
def test_quick_run_saves_a_complete_result(
    name: str, case: str, sides: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, and with the tests' ranks: nobody reads these times."""
    arguments = ["--quick", "--only", case, "--save", "--results", str(tmp_path / "results")]
    monkeypatch.setattr("benchmarks.ranks.mp.get_context", lambda method: forking())
    monkeypatch.setattr("sys.argv", [name, *arguments])
    code = importlib.import_module(f"benchmarks.{name}").main(arguments)
    assert code in (0, 1)  # tiny sizes may miss the goal
    (file,) = (tmp_path / "results").glob("*.json")
    result = json.loads(file.read_text())
    figures = result["cases"][case]
    for metric in ("step_time_ratio", "cpu_ratio"):
        low, middle, high = (figures[metric][key] for key in ("minimum", "median", "maximum"))
        assert 0 < low <= middle <= high
    if sides[0] == "on":
        assert figures["verdict"] == "INCONCLUSIVE", "two pairs decide nothing"
        assert figures["ratio"]["lower"] <= figures["ratio"]["point"] <= figures["ratio"]["upper"]
    else:
        assert figures["met"] == (figures[figures["metric"]]["median"] <= figures["goal"])
    assert tuple(figures["sides"]) == sides
    first = [figures["sides"][side]["losses"][0] for side in sides]
    assert first[0] == pytest.approx(first[1], abs=1e-4)
    section = (tmp_path / "results" / "RESULTS.md").read_text()
    assert result["environment"]["torch"] in section
    for text in (section, file.read_text()):
        assert str(tmp_path) not in text, "a result names no path"


def test_ratio_is_taken_over_pairs_of_blocks() -> None:
    assert ratio([1.0, 4.0, 3.0], [2.0, 2.0, 2.0]) == (0.5, 1.5, 2.0)


def test_step_time_is_the_slowest_rank_and_cpu_time_the_sum() -> None:
    def rank(wall_s: int, cpu_s: int) -> dict[str, object]:
        steps = [[[wall_s * 10**9, cpu_s * 10**9, 10**9]]]
        return {"losses": {"a": [1.0], "b": [1.0]}, "blocks": {"a": steps, "b": [[[10**9, 10**9, 10**9]]]}}

    figures = combine([rank(3, 2), rank(2, 1)])
    assert figures["sides"]["a"]["step_time_s"] == 3
    assert figures["sides"]["a"]["cpu_s"] == 3
    assert figures["sides"]["a"]["busy"] == 2 / (2 * 3)
    assert figures["cpu_ratio"]["median"] == 1.5


@pytest.mark.parametrize(("on_ms", "verdict"), [(1003, "PASS"), (1020, "FAIL"), (1005, "INCONCLUSIVE")])
def test_what_is_on_and_off_is_judged_by_its_interval(on_ms: int, verdict: str) -> None:
    def steps(ms: int) -> list[list[list[int]]]:
        return [[[(10 * ms + noise) * 10**5, 10**9, 10**9]] for noise in (0, 2, -2, 2, -2, 0, 2, -2)]

    answer = {"losses": {"on": [1.0], "off": [1.0]}, "blocks": {"on": steps(on_ms), "off": steps(1000)[::-1]}}
    found = judged(Case("x", 1, 1, goal=1.005), [answer | {"bytes": 3}])
    assert found["verdict"] == verdict
    assert found["met"] == (verdict == "PASS")
    assert found["bytes"] == [3]
    assert f"<= 1.005: {verdict}" in on_and_off_table({"x": found}, 1, {})


def test_fused_weights_give_the_same_model_for_every_tp_degree() -> None:
    deployment = make_deployment(Case("x", 1, 1), QUICK, Path(), "cpu", check_files=False)
    shape = deployment.shape
    assert shape is not None
    weights = random_weights(shape, 0)
    one, two = (build_blocks(shape, shape.unit_names(), weights, 8, tp_degree=tp) for tp in (1, 2))
    name = "0/mlp"
    gate, up = weights["model.layers.0.mlp.gate_proj.weight"], weights["model.layers.0.mlp.up_proj.weight"]
    assert torch.equal(one[name].mlp.gate_up.weight, torch.cat((gate, up)))  # type: ignore[union-attr, arg-type]
    half = two[name].mlp.gate_up.weight.chunk(2)[1]  # type: ignore[union-attr, operator]
    assert torch.equal(half, torch.cat((gate.chunk(2)[1], up.chunk(2)[1])))


@pytest.mark.parametrize(("gpus", "names"), [(1, ["one-rank", "shared"]), (4, ["one-rank", "shared", "every-gpu"])])
def test_gpu_jobs_are_valid_deployments(gpus: int, names: list[str], tmp_path: Path) -> None:
    write_jobs(str(tmp_path), str(gpus))
    worlds = [load_deployment(tmp_path / f"{name}.json").mesh.world_size for name in names]
    assert worlds == [1, 6, 4][: len(names)]
    assert len(list(tmp_path.iterdir())) == len(names)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_gpu_check_says_that_there_is_no_gpu() -> None:
    done = subprocess.run(
        ["scripts/gpu_check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"},
        check=False,
    )
    assert done.returncode == 4
    assert "no GPU" in done.stderr


def test_a_missing_gpu_is_a_sentence() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    command = [sys.executable, "-m", "benchmarks.peers", "--quick", "--device", "cuda"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "no GPU" in done.stderr
    assert "Traceback" not in done.stderr


def test_environment_names_versions_and_no_host() -> None:
    import platform

    found = environment(["--quick"], "peers")
    assert found["command"] == "scripts/bench peers --quick"
    assert platform.node() not in json.dumps(found)


def test_table_is_markdown() -> None:
    table = markdown_table(["a", "b"], [["1", "long"]])
    assert table.splitlines() == ["| a | b    |", "|---|------|", "| 1 | long |"]
