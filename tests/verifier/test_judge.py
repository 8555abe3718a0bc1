"""Run folders as files: whole ones give a verdict that can be derived again, damaged ones one sentence."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hybrid_runtime.errors import HybridRuntimeError, PlanError, RecordsError
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.verdict import Outcome
from hybrid_runtime.verifier.judge import judge, read_verdict, recheck, write_verdict
from tests.verifier.synthetic import MS, Synthetic, deployment, noisy, planted, steady, write_run

TARGETS = {"compute_balance_pp": 1, "memory_balance_pp": 1, "latency_reduction_percent": 30}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A small whole run with a baseline."""
    small = noisy([10 * MS, 10 * MS, 10 * MS], 0.002, 1, steps=20, block_steps=2)
    other = noisy([20 * MS] * 3, 0.002, 2, steps=20, block_steps=2)
    deployed = deployment(targets=TARGETS, baseline={"kind": "pp_only"}, measurement={"batch_steps": 1})
    return write_run(tmp_path / "run", small, deployed, baseline=other)


def test_a_verdict_is_derived_again_from_the_files_alone(run: Path) -> None:
    verdict = judge(run)
    assert [row.id for row in verdict.claims] == ["compute_balance", "memory_balance", "latency_reduction"]
    assert verdict.counts["total"] == len(verdict.claims) + len(verdict.static_checks)
    assert sum(verdict.counts[outcome.value] for outcome in Outcome) == verdict.counts["total"]
    assert [side.role for side in verdict.sides] == ["candidate", "baseline"]
    assert [file.path for file in verdict.raw][:3] == ["deployment.json", "plan.json", "records/rank0.jsonl"]
    assert len(verdict.raw) == 10
    write_verdict(verdict, run / "verdict.json")
    assert read_verdict(run / "verdict.json") == verdict
    assert recheck(run.rename(run.parent / "elsewhere")) == verdict


def test_a_folder_that_was_never_judged_is_judged_by_recheck(run: Path) -> None:
    assert recheck(run) == judge(run)


def test_the_measurement_outranks_what_the_file_said_about_the_same_requirement(tmp_path: Path) -> None:
    shares = {"a": "33%", "b": "33%", "c": "34%"}
    deployed = deployment(targets={"memory_balance_pp": 1}, declared={"memory_distribution": shares})
    side = steady([MS] * 3, memory_bytes=[20, 20, 28])
    verdict = judge(write_run(tmp_path, side, deployed))
    assert "alloc_peak_share_range" not in {row.id for row in verdict.static_checks}
    assert (verdict.verdict, verdict.exit_code) == (Outcome.FAIL, 1)
    row = next(row for row in verdict.claims if row.id == "memory_balance")
    assert row.declared == "1"


def test_the_worst_row_is_the_verdict(tmp_path: Path) -> None:
    balance = deployment(targets={"compute_balance_pp": 1})
    for extra_pp, outcome, code in ((0.5, Outcome.PASS, 0), (2.0, Outcome.FAIL, 1)):
        verdict = judge(write_run(tmp_path / outcome, planted(extra_pp), balance))
        assert (verdict.verdict, verdict.exit_code) == (outcome, code)


def _edit(file: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(run: Path) -> None:
        text = (run / file).read_text()
        assert old in text
        (run / file).write_text(text.replace(old, new, 1))

    return edit


def _without_footer(run: Path) -> None:
    path = run / "records/rank2.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def _one_step_less(run: Path) -> None:
    path = run / "records/rank1.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    footer = json.loads(lines[-1]) | {"steps": len(lines) - 3}
    path.write_text("".join(lines[:-2]) + json.dumps(footer) + "\n")


@pytest.mark.parametrize(
    ("damage", "error", "says"),
    [
        (lambda run: (run / "records/rank1.jsonl").unlink(), RecordsError, r"missing \[1\]"),
        (lambda run: (run / "plan.json").unlink(), PlanError, "plan.json: cannot be read"),
        (lambda run: (run / "deployment.json").unlink(), RecordsError, "deployment.json: cannot be read"),
        (lambda run: shutil.rmtree(run / "records"), RecordsError, "holds no records"),
        (lambda run: (run / "baseline/plan.json").unlink(), PlanError, "baseline/plan.json"),
        (_without_footer, RecordsError, "rank2.jsonl: has no footer"),
        (_one_step_less, RecordsError, "rank1.jsonl: has 23 steps"),
        (_edit("plan.json", '"gpipe"', '"1f1b"'), RecordsError, "plan.json: is not the plan"),
        (_edit("deployment.json", '"tiny"', '"small"'), RecordsError, "is not the deployment"),
        (_edit("records/rank1.jsonl", '"pp":1', '"pp":0'), RecordsError, "the plan puts rank 1"),
        (_edit("records/rank1.jsonl", '"stages":[1]', '"stages":[2]'), RecordsError, "held stages"),
        (_edit("records/rank1.jsonl", "host:1", "host:0"), RecordsError, "both say that they own device host:0"),
        (_edit("records/rank1.jsonl", '"kind":"cpu"', '"kind":"cuda"'), RecordsError, "different device kinds"),
        (_edit("records/rank0.jsonl", '"world_size":3', f'"world_size":{10**23}'), RecordsError, "ranks ran"),
        (_edit("records/rank1.jsonl", '"footer","steps":24', f'"footer","steps":{10**23}'), RecordsError, "steps are"),
        (_edit("records/rank1.jsonl", '"block":3', '"block":4'), RecordsError, "differs in block"),
        (_edit("records/rank1.jsonl", '"1F0"', '"junk"'), RecordsError, "unknown span 'junk'"),
        (_edit("records/rank1.jsonl", '"tokens":1024', '"tokens":0'), RecordsError, "block, phase, purpose or tokens"),
    ],
)  # fmt: skip
def test_damage_is_one_sentence(run: Path, damage: Callable[[Path], None], error: type[Exception], says: str) -> None:
    damage(run)
    with pytest.raises(error, match=says):
        judge(run)


def test_a_baseline_of_another_kind_is_refused(tmp_path: Path) -> None:
    side = steady([MS] * 3)
    deployed = deployment(baseline={"kind": "tp_only"}, targets=TARGETS)
    with pytest.raises(RecordsError, match="is not the tp_only baseline"):
        judge(write_run(tmp_path, side, deployed, baseline=side))


def test_a_run_of_warm_up_steps_alone_measured_nothing(run: Path) -> None:
    for path in run.rglob("rank*.jsonl"):
        path.write_text(path.read_text().replace('"phase":"measure"', '"phase":"warmup"'))
    verdict = judge(run)
    assert {row.id: row.reason for row in verdict.claims} == {
        "compute_balance": "not_measured",
        "memory_balance": None,
        "latency_reduction": "not_measured",
    }
    assert (verdict.sides[0].step_time_s, verdict.devices[0].busy) == ("n/a", "n/a")


def test_ranks_of_one_stage_are_devices_of_their_own(tmp_path: Path) -> None:
    mesh = Mesh(tp_degree=2, pp_degree=3)
    side = Synthetic([[10 * MS] * 6] * 120, mesh=mesh)
    verdict = judge(write_run(tmp_path, side, deployment(mesh, targets={"compute_balance_pp": 1})))
    assert [row.device for row in verdict.devices] == [f"host:{rank}" for rank in range(6)]
    assert [row.stages for row in verdict.devices] == [(0,), (0,), (1,), (1,), (2,), (2,)]
    assert verdict.claims[0].outcome is Outcome.PASS


def test_mutated_folders_give_verdicts_or_sentences_only(run: Path) -> None:
    """300 folders, each with a few bytes, numbers or lines changed."""
    chance = random.Random(11)
    files = [path for path in sorted(run.rglob("*")) if path.suffix in (".json", ".jsonl")]
    whole = {path: path.read_bytes() for path in files}
    sentences = []
    for _ in range(300):
        path = chance.choice(files)
        path.write_bytes(_mutated(whole[path], chance))
        try:
            judge(run)
        except HybridRuntimeError as problem:
            sentences.append(str(problem))
        path.write_bytes(whole[path])
    assert len(sentences) > 150
    assert all(sentences)


def _mutated(content: bytes, chance: random.Random) -> bytes:
    match chance.randrange(5):
        case 0:
            where = chance.randrange(len(content))
            return content[:where] + bytes([chance.randrange(256)]) + content[where + 1 :]
        case 1:
            return content[: chance.randrange(len(content))]
        case 2:
            lines = content.splitlines(keepends=True)
            chance.shuffle(lines)
            return b"".join(lines)
        case 3:
            digit = chance.choice([index for index, byte in enumerate(content) if 48 <= byte <= 57])
            number = chance.choice([b"-1", b"0", b"99999999999999999999999", b"1e400", b"null", b"[]", b'"x"'])
            return content[:digit] + number + content[digit + 1 :]
        case _:
            lines = content.splitlines(keepends=True)
            return b"".join(lines[:1] + lines)
