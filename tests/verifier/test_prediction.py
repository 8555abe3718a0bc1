"""Every verdict of a prediction comes out where it must, exactly at its limit; none changes an exit code."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from hybrid_runtime.fingerprint import fingerprint
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.verdict_prediction import JudgedPrediction, PredictionVerdict, Quantity
from hybrid_runtime.verifier.judge import judge, recheck, write_verdict
from tests.commands import command
from tests.verifier.synthetic import MS, Synthetic, deployment, prediction, steady, write_run

PREDICTED, OPTIMISTIC = PredictionVerdict.PREDICTED, PredictionVerdict.OPTIMISTIC
PESSIMISTIC, STALE, UNJUDGED = PredictionVerdict.PESSIMISTIC, PredictionVerdict.STALE, PredictionVerdict.UNJUDGED
COMPUTE, HELD, WINDOW = [30 * MS, 36 * MS, 33 * MS], [1000, 2000, 3000], 100 * MS
HERE = fingerprint({}, {}, host="host", device="synthetic", threads_per_rank=1)


def side(steps: int = 20, **more: Any) -> Synthetic:
    """Ranks that compute COMPUTE, hold HELD and need WINDOW for a step."""
    return steady(COMPUTE, steps, **({"window_ns": [WINDOW] * steps, "memory_bytes": HELD} | more))


def judged(folder: Path, measured: Synthetic) -> JudgedPrediction:
    found = judge(write_run(folder, measured)).prediction
    assert found is not None
    return found


def quantity(found: JudgedPrediction, name: str) -> Quantity:
    return next(one for one in found.quantities if one.id == name)


def test_what_was_predicted_and_came_true(tmp_path: Path) -> None:
    found = judged(tmp_path, side(predicted=prediction(95 * MS, [29 * MS, 36 * MS, 33 * MS], HELD, fingerprint=HERE)))
    assert (found.verdict, found.reason, found.source, found.stale) == (PREDICTED, None, "rehearsal", ())
    time, busy, held = (quantity(found, name) for name in ("step_time", "busy", "peak_memory"))
    assert (time.predicted, time.measured, time.error, time.exact) == (95 * MS, WINDOW, "-5", "-1/20")
    assert (time.interval, time.inside, time.worst_rank, time.label) == (
        (85_500_000, 104_500_000),
        True,
        None,
        "modelled",
    )
    assert (busy.worst_rank, busy.error, busy.median_error, busy.label) == (0, "-3.33", "0", "rehearsed")
    assert (held.error, held.limit, held.decides, [one.measured for one in held.ranks]) == ("0", "5", True, HELD)
    idle = quantity(found, "idle")
    assert [(one.predicted, one.measured, one.error) for one in idle.ranks][1] == (59 * MS, 0, "n/a")
    assert (idle.limit, idle.decides) == (None, False)


@pytest.mark.parametrize(
    ("step_ns", "held", "verdict"),
    [
        (90 * MS, [1000, 2000, 3000], PREDICTED),
        (90 * MS - 1, [1000, 2000, 3000], OPTIMISTIC),
        (110 * MS, [1050, 1900, 3000], PREDICTED),
        (110 * MS + 1, [1000, 2000, 3000], PESSIMISTIC),
        (100 * MS, [1000, 1899, 3000], OPTIMISTIC),
        (100 * MS, [1051, 2000, 3000], PESSIMISTIC),
        (120 * MS, [1000, 1899, 3000], OPTIMISTIC),
    ],
)
def test_the_limits_are_exact_and_optimism_outweighs(
    tmp_path: Path, step_ns: int, held: list[int], verdict: PredictionVerdict
) -> None:
    assert judged(tmp_path, side(predicted=prediction(step_ns, COMPUTE, held))).verdict is verdict


def test_another_machine_makes_it_stale_before_anything_is_compared(tmp_path: Path) -> None:
    elsewhere = HERE | {"torch": "2.12.0"}
    found = judged(tmp_path, side(predicted=prediction(WINDOW, COMPUTE, HELD, fingerprint=elsewhere)))
    assert (found.verdict, found.quantities) == (STALE, ())
    assert found.stale == ("torch: n/a: not recorded here, 2.12.0 there",)


def test_without_a_prediction_or_with_too_few_steps_nothing_is_judged(tmp_path: Path) -> None:
    nothing = judged(tmp_path / "a", side())
    assert (nothing.verdict, nothing.reason, nothing.quantities) == (UNJUDGED, "no_prediction", ())
    few = judged(tmp_path / "b", side(4, predicted=prediction(WINDOW, COMPUTE, HELD)))
    assert (few.verdict, few.reason) == (UNJUDGED, "too_few_steps")
    assert [one.id for one in few.quantities] == ["peak_memory"]
    wrong = judged(tmp_path / "c", side(4, predicted=prediction(WINDOW, COMPUTE, [1000, 1000, 3000])))
    assert (wrong.verdict, wrong.reason) == (OPTIMISTIC, None)


def test_on_shared_cores_busy_time_and_memory_are_judged_and_the_step_is_not(tmp_path: Path) -> None:
    cpu = [[20 * MS, 24 * MS, 22 * MS]] * 20
    shared: dict[str, Any] = {"owned": False, "cpu_ns": cpu}
    found = judged(tmp_path / "a", side(predicted=prediction(30 * MS, cpu[0], HELD), **shared))
    assert (found.verdict, found.reason) == (UNJUDGED, "oversubscribed")
    assert [(one.id, one.decides, one.verdict) for one in found.quantities] == [
        ("busy", True, PREDICTED),
        ("peak_memory", True, PREDICTED),
    ]
    assert "thread_cpu" in quantity(found, "busy").method
    assert found.budget_of == "busy"
    assert sum(row.error_ns for row in found.budget) == 0
    slow = judged(tmp_path / "b", side(predicted=prediction(30 * MS, [17 * MS, 24 * MS, 22 * MS], HELD), **shared))
    assert (slow.verdict, slow.reason, quantity(slow, "busy").worst_rank) == (OPTIMISTIC, None, 0)


def test_neighbours_on_the_ranks_cores_make_its_time_no_measurement(tmp_path: Path) -> None:
    found = judged(tmp_path, side(predicted=prediction(50 * MS, COMPUTE, HELD), foreign_percent=20))
    assert (found.verdict, found.reason) == (UNJUDGED, "contended")


@pytest.mark.parametrize("step_ns", [97_000_001, 100 * MS, 104_999_999])
def test_the_errors_of_the_budget_add_up_exactly(tmp_path: Path, step_ns: int) -> None:
    measured = side(predicted=prediction(step_ns, [29_999_999, 37 * MS, 33 * MS], HELD), wait_ns=[MS, 2 * MS, 4 * MS])
    found = judged(tmp_path, measured)
    rows = {row.component: row for row in found.budget}
    time = quantity(found, "step_time")
    assert found.budget_of == "step_time"
    assert sum(row.error_ns for row in found.budget) == time.predicted - time.measured
    assert sum(row.measured_ns for row in found.budget) == time.measured
    assert rows["tensor_parallel"].measured_ns == pytest.approx(7 * MS / 3, abs=1)
    assert rows["forward"].measured_ns + rows["backward"].measured_ns == pytest.approx(99 * MS / 3, abs=2)
    assert all(row.error_ns == row.predicted_ns - row.measured_ns for row in found.budget)


def test_it_changes_no_outcome_and_no_exit_code(tmp_path: Path) -> None:
    deployed = deployment(side().shape, targets={"compute_balance_pp": 60})
    codes = []
    for name, predicted in (("without", None), ("wrong", prediction(50 * MS, COMPUTE, HELD))):
        verdict = judge(write_run(tmp_path / name, side(120, predicted=predicted), deployed))
        codes.append((verdict.verdict, verdict.exit_code, verdict.counts))
    assert codes[0] == codes[1]


def test_the_history_shows_a_model_that_errs_the_same_way(tmp_path: Path) -> None:
    for run in range(7):
        folder = write_run(tmp_path / f"run{run}", side(predicted=prediction((93 + run % 3) * MS, COMPUTE, HELD)))
        assert command("verify", "--recheck", folder).code in (0, 1, 3)
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["run_folder"] for line in lines] == [f"run{run}" for run in range(7)]
    assert json.loads(lines[0])["errors_percent"]["step_time"] == "-7"
    shown = command("report", "--predictions", tmp_path)
    assert shown.code == 0
    row = next(line for line in shown.out.splitlines() if " step_time " in line)
    assert ("-6 %" in row, "7 / 0" in row, "one-sided" in row) == (True, True, True), row
    assert command("report", tmp_path / "run0").code == 0
    assert "Predictions over runs" in (tmp_path / "run0" / "report.md").read_text()
    assert "Predictions over runs" in (tmp_path / "run0" / "report.html").read_text()
    assert command("verify", "--recheck", tmp_path / "run0").code in (0, 1, 3)


def test_a_stored_verdict_whose_prediction_was_edited_is_found(tmp_path: Path) -> None:
    run = write_run(tmp_path, side(predicted=prediction(80 * MS, COMPUTE, HELD)))
    verdict = judge(run)
    assert verdict.prediction is not None
    better = verdict.prediction.model_copy(update={"verdict": PREDICTED})
    write_verdict(verdict.model_copy(update={"prediction": better}), run / "verdict.json")
    with pytest.raises(Exception, match=r"its prediction\.verdict is not what the records say"):
        recheck(run)


def test_several_tensor_ranks_are_one_pipeline_rank(tmp_path: Path) -> None:
    measured = steady(
        [30 * MS, 32 * MS, 40 * MS, 40 * MS],
        20,
        window_ns=[WINDOW] * 20,
        memory_bytes=[1000, 1000, 2000, 1990],
        mesh=Mesh(tp_degree=2, pp_degree=2),
        predicted=prediction(WINDOW, [31 * MS, 40 * MS], [1000, 2000]),
    )
    found = judged(tmp_path, measured)
    assert [one.exact for one in quantity(found, "busy").ranks] == ["0", "0"]
    assert [Fraction(one.measured) for one in quantity(found, "peak_memory").ranks] == [1000, 2000]
