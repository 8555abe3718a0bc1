from __future__ import annotations

import json
from pathlib import Path

import pytest

from hybrid_runtime.planner.given import read_given
from tests.commands import command
from tests.deployment_files import write
from tests.planner.planning import calibration, deployment

FILE = """
name = "planned"
model = { preset = "tiny", num_layers = 13, vocab_size = 384 }
parallel = { tp_degree = 2, pp_degree = 3 }
batch = { global_batch_size = 6, microbatch_size = 1, sequence_length = 64 }
search = { vary = ["cuts", "schedule"], schedules = ["1f1b", "zb_v"] }
"""


def test_from_a_calibration(tmp_path: Path) -> None:
    file, out, figures = write(tmp_path, FILE), tmp_path / "plan.json", tmp_path / "figures.json"
    measured = tmp_path / "calibration.json"
    measured.write_text(calibration(deployment()).to_json())
    refused = command("plan", file, "--calibration", measured, "--out", out, "-q")
    assert refused.code == 2
    assert "was taken elsewhere, host: " in refused.err
    assert "say --elsewhere to plan for the machine that was calibrated" in refused.err
    done = command("plan", file, "--calibration", measured, "--elsewhere", "--out", out, "--json", figures, "-q")
    assert (done.code, done.err) == (0, "")
    plan = read_given(out)
    assert plan.schedule == "zb_v"
    assert plan.predicted is not None
    assert plan.predicted.fingerprint == {"host": "somewhere"}
    for words in ("chosen: tp 2 x pp 3 x dp 1, zb_v", "naive_pipeline", "other candidates", "rehearsed: compute"):
        assert words in done.out
    assert json.loads(figures.read_text())["schedule"] == "zb_v"


def test_by_formula(tmp_path: Path) -> None:
    file, out = write(tmp_path, FILE), tmp_path / "plan.json"
    done = command("plan", file, "--analytic", "--out", out, "-q")
    assert done.code == 0
    assert "analytic: declared are 100 TFLOP/s per device" in done.out
    assert "recomputation is not searched" in done.out
    first = out.read_text()
    assert command("plan", file, "--analytic", "--out", out, "-q").code == 0
    assert out.read_text() == first


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "plan needs the costs of one source"),
        (["--analytic", "--calibration", "c.json"], "plan needs the costs of one source"),
        (["--calibration", "absent.json"], "absent.json: cannot be read"),
        (["--analytic", "--out", "/absent/plan.json"], "there is no folder /absent"),
    ],
)
def test_what_is_refused(tmp_path: Path, options: list[str], words: str) -> None:
    done = command("plan", write(tmp_path, FILE), *options)
    assert done.code == 2
    assert words in done.err
    assert "Traceback" not in done.err


def test_an_impossible_request_is_one_sentence(tmp_path: Path) -> None:
    content = FILE + 'hardware = { memory_per_device = "1 MB" }\n'
    done = command("plan", write(tmp_path, content), "--analytic", "--out", tmp_path / "plan.json")
    assert done.code == 2
    assert "no layout fits 1 MB less 5 %" in done.err
    assert not (tmp_path / "plan.json").exists()
