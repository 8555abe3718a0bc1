from __future__ import annotations

import json
from pathlib import Path

import pytest

from hybrid_runtime.plan import read_plan
from hybrid_runtime.planner.given import read_given
from tests.commands import command, run, small, write_json
from tests.deployment_files import write
from tests.planner.planning import calibration, deployment
from tests.rehearsals import deployed, plan_of, rehearsal
from tests.rehearsals import write as write_rehearsal

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


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("num_layers = 13", "hidden_size = 36, num_heads = 12, num_kv_heads = 12", "head_dim 3 is odd"),
        ("tp_degree = 2", "tp_degree = 3", "does not divide by tp 3"),
        ("global_batch_size = 6", "global_batch_size = 7, dp_degree = 2", "dp_degree"),
        ('"schedule"], schedules = ["1f1b", "zb_v"] }', '] }\npipeline = { schedule = "zzz" }', "zzz"),
        ("global_batch_size = 6", "global_batch_size = 600000000", "actions a step are more than the 1000000"),
    ],
)
def test_odd_files_are_one_sentence_at_once(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in FILE
    done = command("plan", write(tmp_path, FILE.replace(old, new)), "--analytic", "--out", tmp_path / "plan.json", "-q")
    assert (done.code, "Traceback" in done.err, words in done.err) == (2, False, True), done


def test_an_impossible_request_is_one_sentence(tmp_path: Path) -> None:
    content = FILE + 'hardware = { memory_per_device = "1 MB" }\n'
    done = command("plan", write(tmp_path, content), "--analytic", "--out", tmp_path / "plan.json")
    assert done.code == 2
    assert "no layout fits 1 MB less 5 %" in done.err
    assert not (tmp_path / "plan.json").exists()


@pytest.mark.alone
def test_the_best_two_are_tried_and_the_faster_one_is_chosen(tmp_path: Path) -> None:
    """Two plans really run on two ranks; the file says what both took, and runs."""
    search = {"vary": ["schedule"], "schedules": ["1f1b", "gpipe"], "top": 0}
    file = write_json(tmp_path / "job.json", small(parallel={"pp_degree": 2}, search=search))
    done = run("plan", file, "--analytic", "--try", "2", "--out", "plan.json", "--quiet", folder=tmp_path)
    assert done.code == 0, done.err
    plan = read_plan(tmp_path / "plan.json")
    assert plan.predicted is not None
    tried = [one for one in plan.predicted.alternatives if one.measured_ns is not None]
    assert len(tried) == 2
    chosen = min(tried, key=lambda one: one.measured_ns or 0)
    assert "chosen: the fastest when tried" in chosen.why_not
    assert f", {plan.schedule}," in chosen.description
    assert len(list((tmp_path / "runs").glob("small-try*/verdict.json"))) == 2


def test_a_rehearsal_is_one_source_of_costs(tmp_path: Path) -> None:
    """It goes with a calibration only, and must be a rehearsal."""
    file = write_json(tmp_path / "job.json", small(parallel={"pp_degree": 2}))
    for more in (["--analytic"], ["--try", "2"]):
        refused = command("plan", file, "--rehearsal", tmp_path, *more, "--out", tmp_path / "plan.json")
        assert (refused.code, "goes with neither --analytic nor --try" in refused.err) == (2, True)
    missing = command("plan", file, "--rehearsal", tmp_path / "none", "--out", tmp_path / "plan.json")
    assert (missing.code, "name a folder that rehearse wrote" in missing.err) == (2, True)
    other = deployed(parallel={"pp_degree": 2})
    made = plan_of(other)
    folder = write_rehearsal(tmp_path / "lone", other, made, rehearsal(made, (1000, 1500), (10**8, 10**8))).path
    wrong = command("plan", file, "--rehearsal", folder, "--out", tmp_path / "plan.json")
    assert (wrong.code, "is a plan for other work" in wrong.err) == (2, True)
    done = command("plan", folder / "deployment.json", "--rehearsal", folder, "--out", tmp_path / "plan.json")
    assert done.code == 0, done.err
    assert "compute shares differ by 19.481 pp as rehearsed" in done.out  # 9000 of 46,200 ns, updates included
    after = read_plan(tmp_path / "plan.json")
    assert after.predicted is not None
    assert after.predicted.source == "rehearsal"
