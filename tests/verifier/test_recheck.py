"""Tampered run folders: what `verify --recheck` finds, and what a forger who has them judged anew gets past.

changed, removed or added file, edited verdict      always found: every raw file is hashed, every figure made anew
forged records under a verdict made anew            found where records contradict each other, the plan or time
invented records without any contradiction          not found: nothing is signed, keep verdict.json where you trust
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from hybrid_runtime.errors import RecordsError
from hybrid_runtime.verdict import Outcome, Verdict, overridden
from hybrid_runtime.verifier.differences import differences
from hybrid_runtime.verifier.judge import judge, read_verdict, recheck, write_verdict
from tests.commands import command
from tests.verifier.runs import whole
from tests.verifier.synthetic import rewrite

ERROR = 4


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole(tmp_path_factory.mktemp("original") / "run")


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "run"))


RAW = [
    *(f"{side}{name}" for side in ("", "baseline/") for name in ("deployment.json", "plan.json")),
    *(f"{side}records/rank{rank}.jsonl" for side in ("", "baseline/") for rank in range(3)),
    *(f"{side}records/nvml-host.jsonl" for side in ("", "baseline/")),
    "sampling.json",
    "baselines/dp_only/infeasible.txt",
]


def test_every_file_that_is_read_is_hashed(original: Path) -> None:
    assert {file.path for file in read_verdict(original / "verdict.json").raw} == set(RAW)
    assert recheck(original) == read_verdict(original / "verdict.json")


@pytest.mark.parametrize("file", RAW)
def test_one_changed_byte(run: Path, file: str) -> None:
    content = bytearray((run / file).read_bytes())
    content[len(content) // 2] ^= 1
    (run / file).write_bytes(bytes(content))
    done = command("verify", "--recheck", run)
    assert (done.code, done.out) == (ERROR, "")
    assert f"{file}: was changed since it was judged" in done.err


@pytest.mark.parametrize("file", RAW)
def test_a_removed_file(run: Path, file: str) -> None:
    (run / file).unlink()
    with pytest.raises(RecordsError, match=f"{file}: is missing; it was there"):
        recheck(run)


@pytest.mark.parametrize(
    "file",
    ["records/rank3.jsonl", "records/nvml-other.jsonl", "baseline/infeasible.txt", "baselines/tp_only/plan.json"],
)
def test_an_added_file(run: Path, file: str) -> None:
    (run / file).parent.mkdir(exist_ok=True)
    (run / file).write_text("")
    with pytest.raises(RecordsError, match=f"{file}: was added since"):
        recheck(run)


def _swapped_rank(run: Path, tmp_path: Path) -> None:
    other = whole(tmp_path / "other")
    shutil.copy(other / "records/rank2.jsonl", run / "records/rank2.jsonl")
    text = (run / "records/rank2.jsonl").read_text()
    (run / "records/rank2.jsonl").write_text(text.replace('"cores_busy_ns":1', '"cores_busy_ns":2'))


def _cut(run: Path, tmp_path: Path) -> None:
    path = run / "records/rank1.jsonl"
    path.write_bytes(path.read_bytes()[:-400])


def _reordered(run: Path, tmp_path: Path) -> None:
    path = run / "records/rank1.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    lines[5], lines[6] = lines[6], lines[5]
    path.write_text("".join(lines))


@pytest.mark.parametrize("tamper", [_swapped_rank, _cut, _reordered])
def test_changed_records_are_found_whatever_is_in_them(
    run: Path, tmp_path: Path, tamper: Callable[[Path, Path], None]
) -> None:
    tamper(run, tmp_path)
    done = command("verify", "--recheck", run)
    assert done.code == ERROR
    assert "was changed since it was judged; make the run again" in done.err


# verdict.json itself


def leaves(values: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    inside = [leaf for key, value in items for leaf in leaves(value, (*place, key))]
    yield from inside or [place]


def edited(values: Any, place: tuple[Any, ...]) -> Any:
    """A copy in which one leaf says something else of its own kind."""
    copy = json.loads(json.dumps(values))
    inside = copy
    for key in place[:-1]:
        inside = inside[key]
    old = inside[place[-1]]
    if isinstance(old, int):
        inside[place[-1]] = not old if isinstance(old, bool) else old + 1
    else:
        inside[place[-1]] = ["x"] if old in ([], {}) else f"{old}1"
    return copy


def test_every_figure_and_word_of_a_verdict_is_derived_anew(original: Path) -> None:
    """Each leaf of verdict.json in turn: an edit is no verdict any more, or is found where it is."""
    honest = read_verdict(original / "verdict.json")
    values = honest.model_dump(mode="json")
    found = 0
    for place in leaves(values):
        dotted = ".".join(map(str, place))
        if dotted.startswith(("tool_version", "provenance.tool", "schema_version")):
            continue
        try:
            forged = Verdict.model_validate(edited(values, place))
        except ValidationError:
            found += 1
            continue
        if place[0] == "overrides":
            with pytest.raises(RecordsError, match="there is no override"):
                differences(forged, honest)
            continue
        assert differences(forged, honest), dotted
        found += 1
    assert found > 250


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        ({"verdict": "PASS", "exit_code": 0}, "verdict.json: its verdict is not what the records say; it was edited"),
        ({"raw": [], "claims": []}, "was added since"),
        ({"raw": []}, "names no raw files"),
        ({"raw2": []}, "not a verdict: raw2"),
        ({"schema_version": "9"}, "schema_version 9 is not"),
        ({"overrides": {"claims": "pass"}}, "there is no override claims"),
        ({"overrides": {"inconclusive": "maybe"}}, "there is no override inconclusive = 'maybe'"),
        ({"overrides": {"inconclusive": "pass"}, "exit_code": 3}, "exit_code"),
    ],
)
def test_an_edited_verdict(run: Path, edit: dict[str, Any], says: str) -> None:
    path = run / "verdict.json"
    before = json.loads(path.read_text())
    assert before["verdict"] == "INCONCLUSIVE"
    path.write_text(json.dumps(before | edit))
    done = command("verify", "--recheck", run)
    assert (done.code, done.out) == (ERROR, "")
    assert says in done.err


def test_a_verdict_of_other_rules_is_made_anew_and_says_which_rows_differ(run: Path) -> None:
    """Whoever claims other rules gets no edited figure shown: the rows are those of the records."""
    path = run / "verdict.json"
    before = read_verdict(path)
    better = [claim.model_copy(update={"outcome": Outcome.PASS, "reason": None}) for claim in before.claims]
    write_verdict(before.model_copy(update={"ruleset": "2025.1", "claims": tuple(better)}), path)
    now = recheck(run)
    assert now.claims == before.claims
    *_, note = now.warnings
    assert note.startswith("verdict.json was written by rules 2025.1 of version")
    assert "compute_balance: PASS then, INCONCLUSIVE now" in note


def test_an_override_changes_the_exit_code_only_and_is_written_down(run: Path) -> None:
    honest = read_verdict(run / "verdict.json")
    for option, code in (("pass", 0), ("fail", 1)):
        changed = overridden(honest, {"inconclusive": option})
        assert (changed.exit_code, changed.verdict) == (code, honest.verdict)
        assert changed.model_copy(update={"exit_code": 3, "overrides": {}}) == honest
        write_verdict(changed, run / "verdict.json")
        assert command("verify", "--recheck", run).code == 3
        done = command("verify", "--recheck", run, f"--inconclusive={option}")
        assert done.code == code
        assert f"override: inconclusive counts as {option} in the exit code" in done.out
    assert command("verify", "--recheck", run, "--inconclusive=maybe").code == 2


# A forger who has the folder judged anew


def _forged(run: Path) -> Verdict:
    (run / "verdict.json").unlink()
    return judge(run)


@pytest.mark.parametrize("host", ["host", "other"])
def test_a_rank_of_another_run_is_out_of_time(run: Path, host: str) -> None:
    """Same deployment, same plan, same hardware, ten seconds later, on the same host or on another."""

    def later(rank: int, record: dict[str, Any]) -> dict[str, Any]:
        if rank == 2 and record["type"] == "header":
            record["host"]["name"] = host
        if rank == 2 and record["type"] == "step":
            shift = 10**10
            record["start_ns"] += shift
            record["end_ns"] += shift
            record["spans"] = [
                [name, start + shift, end + shift, cpu, wait] for name, start, end, cpu, wait in record["spans"]
            ]
        return record

    rewrite(run, later)
    with pytest.raises(RecordsError, match=r"begins in rank0.jsonl before step \d+ ends in rank2.jsonl"):
        _forged(run)


def test_reordered_and_renumbered_steps_are_out_of_time(run: Path) -> None:
    for rank in range(3):
        path = run / f"records/rank{rank}.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for name in ("start_ns", "end_ns", "spans"):
            lines[9][name], lines[10][name] = lines[10][name], lines[9][name]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(RecordsError, match="step 9 begins in"):
        _forged(run)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda record: record | {"phase": "measure"}, "0 steps of warm-up"),
        (lambda record: record | {"block": 1} if record["block"] == 2 else record, "judged steps; steps were left out"),
        (lambda record: record | {"tokens": -1}, "impossible time or token count"),
    ],
)
def test_steps_of_all_ranks_are_forged_alike(run: Path, edit: Callable[[Any], Any], says: str) -> None:
    rewrite(run, lambda rank, record: edit(record) if record["type"] == "step" else record)
    with pytest.raises(RecordsError, match=says):
        _forged(run)


@pytest.mark.parametrize(
    ("trained", "says"),
    [
        (lambda rank: 99, r"\d+ steps, but 1 were left to train"),
        (lambda rank: -1, "resumed after -1 of 100 steps, which cannot be"),
        (lambda rank: 100, "resumed after 100 of 100 steps, which cannot be"),
        (lambda rank: rank, "rank1.jsonl: resumed another checkpoint than rank0.jsonl"),
    ],
)
def test_a_resumed_run_that_was_none(run: Path, trained: Callable[[int], int], says: str) -> None:
    """Few steps left would excuse a short warm-up."""
    rewrite(
        run,
        lambda rank, record: record | {"trained_before": trained(rank)} if record["type"] == "header" else record,
    )
    with pytest.raises(RecordsError, match=says):
        _forged(run)


def test_a_plan_or_deployment_of_another_run(run: Path) -> None:
    text = (run / "plan.json").read_text()
    (run / "plan.json").write_text(text.replace('"name": "synthetic"', '"name": "other"'))
    with pytest.raises(RecordsError, match="is not the plan that the records were made with"):
        _forged(run)


def test_invented_records_without_a_contradiction_are_not_found(run: Path) -> None:
    """The limit of all this: who halves every time of the candidate, and hashes anew, gets a verdict for it."""

    def halve(rank: int, record: dict[str, Any]) -> dict[str, Any]:
        if record["type"] == "step" and record["phase"] == "measure":
            start = record["start_ns"]
            record["end_ns"] = start + (record["end_ns"] - start) // 2
            record["spans"] = [
                [name, start + (begin - start) // 2, start + (end - start) // 2, cpu, wait]
                for name, begin, end, cpu, wait in record["spans"]
            ]
        return record

    honest = read_verdict(run / "verdict.json").sides[0]
    rewrite(run, halve)
    assert float(_forged(run).sides[0].step_time_s) == pytest.approx(float(honest.step_time_s) / 2, rel=0.01)
