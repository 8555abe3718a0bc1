"""The commands about schedules: what they print, their exit codes, one sentence for bad input."""

from __future__ import annotations

import json
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from hybrid_runtime import cli
from hybrid_runtime.deployment import parse_deployment
from hybrid_runtime.plan import Plan, read_plan
from hybrid_runtime.planner.costs import unit_costs
from hybrid_runtime.planner.make import make_plan
from hybrid_runtime.schedule.files import save_lists
from hybrid_runtime.schedule.registry import SCHEDULES, generate

BATCH_OF_4 = {"global_batch_size": 4, "microbatch_size": 1, "sequence_length": 32}
Said = tuple[int, str, str]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command; its exit code, stdout and stderr."""

    def run(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["hybrid-runtime", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


def plan_of(**tables: Any) -> Plan:
    values = {
        "name": "test",
        "model": {"preset": "tiny", "num_layers": 8},
        "parallel": {"tp_degree": 2, "pp_degree": 2},
        "batch": {"global_batch_size": 8, "microbatch_size": 1, "sequence_length": 32},
    }
    deployment = parse_deployment(values | tables, source="test")
    assert deployment.shape is not None
    workload = deployment.workload.kind
    costs = unit_costs(deployment.shape, microbatch_size=1, sequence_length=32, workload=workload)
    return make_plan(deployment, costs)


def test_show(said: Any, tmp_path: Path) -> None:
    svg, html = tmp_path / "a.svg", tmp_path / "a.html"
    code, out, _ = said("schedule", "show", "1f1b", "--pp", "2", "--microbatches", "2", "--svg", str(svg), "--html", str(html))  # fmt: skip # noqa: E501
    assert code == 0
    assert "rank 1 ....F0--B0------F1--B1------........\n" in out
    assert "makespan 9, bubble 33.33 %" in out
    assert svg.read_text().startswith("<svg ")
    assert html.read_text().startswith("<!doctype html>")


def test_show_takes_files_and_searches(said: Any, tmp_path: Path) -> None:
    path = tmp_path / "lists.csv"
    save_lists(path, generate("1f1b", 2, 3, "train"))
    code, out, _ = said("schedule", "show", str(path), "--pp", "2", "--microbatches", "3")
    assert (code, "makespan 12" in out) == (0, True)
    code, out, _ = said("schedule", "show", "auto", "--pp", "2", "--microbatches", "3")
    assert (code, "held at once, per rank" in out) == (0, True)


@pytest.mark.parametrize("name", [*SCHEDULES, "auto"])
def test_shown_lists_are_saved_and_taken_again(name: str, said: Any, tmp_path: Path) -> None:
    path, again, size = tmp_path / "lists.csv", tmp_path / "again.csv", ["--pp", "2", "--microbatches", "4"]
    code, drawn, _ = said("schedule", "show", name, *size, "--csv", str(path))
    assert code == 0
    code, out, _ = said("schedule", "check", str(path))
    assert (code, "2 pipeline ranks" in out, "4 microbatches" in out) == (0, True, True), out
    code, redrawn, _ = said("schedule", "show", str(path), *size, "--csv", str(again))
    assert code == 0
    assert redrawn.splitlines()[1:] == drawn.splitlines()[1:]  # all but the title
    assert again.read_text() == path.read_text()
    assert plan_of(pipeline={"schedule": str(path)}, batch=BATCH_OF_4).num_microbatches == 4


def test_saved_lists_keep_overlaps(said: Any, tmp_path: Path) -> None:
    path = tmp_path / "lists.csv"
    said("schedule", "show", "dualpipe_v", "--pp", "2", "--microbatches", "4", "--csv", str(path))
    assert "OVERLAP_F_B" in path.read_text()


def test_a_file_is_not_overwritten_by_itself(said: Any, tmp_path: Path) -> None:
    path = tmp_path / "lists.csv"
    save_lists(path, generate("1f1b", 2, 3, "train"))
    before = path.read_text()
    code, _, err = said("schedule", "show", str(path), "--pp", "2", "--microbatches", "3", "--csv", str(path))
    assert (code, "is the file that is shown; name another one" in err) == (2, True)
    assert path.read_text() == before


def test_compare(said: Any) -> None:
    code, out, err = said("schedule", "compare", "--microbatches", "9", "--pp", "4", "--auto", "--json", "-")
    values = {row["name"].partition(" ")[0]: row for row in json.loads(out)["schedules"]}
    assert code == 0
    assert set(values) == {*SCHEDULES, "auto"}
    assert values["1f1b"]["bubble"] == pytest.approx(3 / 12)
    assert values["1f1b"]["peak_microbatches"] == [4, 3, 2, 1]
    assert not values["1f1b"]["equal_peaks"]
    assert values["zb_h1"]["equal_peaks"]
    assert values["auto"]["bubble"] >= values["auto"]["bound_bubble"]
    assert values["auto"]["bubble"] <= values["zb_v"]["bubble"]
    refused = [name for name, row in values.items() if "problem" in row]
    assert "interleaved_1f1b" in refused
    assert all(f"{name}: " in err for name in refused)


def test_check(said: Any, tmp_path: Path) -> None:
    path = tmp_path / "lists.csv"
    path.write_text("0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1\n")
    code, out, _ = said("schedule", "check", str(path))
    assert (code, "PASS" in out, "2 microbatches" in out) == (0, True, True)
    path.write_text("0F0,0F1,0B0,0B1\n1F0,1B0,1X1,1B1\n")
    code, out, _ = said("schedule", "check", str(path))
    lines = out.splitlines()
    assert code == 1
    assert "row 2, cell 3, 1X1: " in lines[0]
    assert lines[1].index("1X1") == lines[2].index("^^^")
    path.write_text("0F0,0F1,0B0,0B1\n1F0,1B0,1F1\n")
    code, out, _ = said("schedule", "check", str(path))
    assert (code, "row 2, cell 4, 1B1: is missing" in out) == (1, True)
    path.write_text("0F0,0F1,0B0,0B1\n1F0,1B1,1F1,1B0\n")  # 1B1 before its own F, and so before 1B0 too
    code, out, _ = said("schedule", "check", str(path))
    assert (code, "row 2, cell 2, 1B1: " in out.splitlines()[0], "out of order" in out) == (1, True, True)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["schedule", "show", "gpip"], "did you mean 'gpipe'"),
        (["schedule", "show", "interleaved_1f1b", "--microbatches", "9"], "microbatches"),
        (["schedule", "show", "1f1b", "--virtual-stages", "3"], "virtual_stages"),
        (["schedule", "show", "1f1b", "--svg", "/no/such/folder/a.svg"], "--svg /no/such/folder/a.svg: cannot be"),
        (["schedule", "show", "1f1b", "--csv", "lists.txt"], "--csv lists.txt: must end in .csv"),
        (["schedule", "show", "1f1b", "--csv", "/no/such/folder/a.csv"], "--csv /no/such/folder/a.csv: cannot be"),
        (["schedule", "show", "zb_v", "--pp", "256", "--microbatches", "4096"], "give fewer microbatches"),
        (["schedule", "compare", "--forward", "fast"], "--forward fast: must be 0 or a number"),
        (["schedule", "compare", "--hop", "-1"], "--hop -1: must be 0 or a number"),
        (["schedule", "compare", "--forward", "0", "--input-grad", "0", "--weight-grad", "0"], "there is no work"),
        (["schedule", "compare", "--auto", "--limit", "q+1"], "--limit q+1: must be"),
        (["schedule", "check", "/no/such/file.csv"], "cannot be read"),
        (["simulate", "/no/such/plan.json"], "cannot be read"),
        (["simulate", "/no/such/plan.json", "--flops-per-s", "0"], "--flops-per-s 0: "),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], sentence: str, said: Any) -> None:
    code, _, err = said(*arguments)
    assert code == 2
    assert sentence in err
    assert "Traceback" not in err


def test_simulate(said: Any, tmp_path: Path) -> None:
    plan = plan_of()
    path = tmp_path / "plan.json"
    path.write_text(plan.to_json())
    code, out, err = said("simulate", str(path), "--flops-per-s", "1e9", "--json", "-")
    values = json.loads(out)
    assert code == 0
    assert err.startswith("modelled from FLOPs")
    assert values["unit"] == "s"
    busiest = max(range(2), key=lambda rank: plan.prediction.ideal_busy_ppm[rank])
    flops = plan.num_microbatches * plan.prediction.stage_flops[busiest] / plan.tp_degree
    step, rank = Fraction(values["step_time"]), values["ranks"][busiest]
    assert float(Fraction(rank["busy"])) == pytest.approx(flops / 1e9)
    parts = [rank["warm_up"], *rank["waiting"].values(), rank["cool_down"]]
    assert sum(map(Fraction, parts)) == Fraction(rank["idle"]) == step - Fraction(rank["busy"])
    assert sum(map(Fraction, values["critical_path"]["by_kind"].values())) == step


def test_simulate_refuses_an_edited_plan(said: Any, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    text = plan_of().to_json()
    for old, new in (('"0F0"', '"0X0"'), ('"0B0"', '"0B1"'), ('"pp_degree": 2', '"pp_degree": 3')):
        path.write_text(text.replace(old, new, 1))
        code, _, err = said("simulate", str(path))
        assert (code, "plan again, or use the file as it was written" in err) == (2, True), err
    path.write_text(text)
    assert read_plan(path).schedule == "1f1b"
