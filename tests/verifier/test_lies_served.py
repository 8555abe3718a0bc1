"""How a verifier is made to lie about requests: one test per lie, which shows the catch working (see `test_lies`)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hybrid_runtime.errors import RecordsError
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.run_folder import RunFolder
from hybrid_runtime.verdict import Claim, Outcome
from hybrid_runtime.verifier.judge import judge, recheck, write_verdict
from hybrid_runtime.verifier.numerics import answers_apart
from hybrid_runtime.verifier.side import load_side
from tests.verifier.served import serving, write_served
from tests.verifier.synthetic import MS, prediction, rewrite

OPEN = {"requests": 8, "prompt_tokens": 8, "output_tokens": 5, "arrivals": "open", "rate_per_s": 500}
FEW_CLIENTS = {"requests": 8, "prompt_tokens": 8, "output_tokens": 5, "concurrency": 8}


def forge(run: Path, edit: Callable[[dict[str, Any]], dict[str, Any] | None]) -> Path:
    """Rewrites every line of requests.jsonl; None drops it."""
    path = RunFolder(run).requests
    records = [edit(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(record) + "\n" for record in records if record is not None))
    return run


def read(run: Path) -> None:
    load_side(run, "candidate")


def test_an_honest_round_is_believed(tmp_path: Path) -> None:
    read(write_served(tmp_path / "closed", steps=3))
    read(write_served(tmp_path / "open", serving(load=OPEN), steps=3))


def test_slow_requests_are_left_out(tmp_path: Path) -> None:
    """The slowest request of every round is deleted, and the others are as fast as promised."""
    run = forge(write_served(tmp_path, steps=3), lambda record: None if record["id"] == 7 else record)
    with pytest.raises(RecordsError, match="has 7 requests, and the load has 8"):
        read(run)


def test_a_request_is_told_twice(tmp_path: Path) -> None:
    """A fast request takes the place of a slow one."""
    run = forge(write_served(tmp_path, steps=3), lambda record: record | {"id": max(1, record["id"])})
    with pytest.raises(RecordsError, match="each once"):
        read(run)


def test_the_clock_of_a_request_begins_late(tmp_path: Path) -> None:
    """Waiting is not counted: requests are said to have arrived when their slot was free (coordinated omission)."""
    late = serving(load=FEW_CLIENTS | {"concurrency": 4})
    run = write_served(tmp_path / "closed", late, steps=3)

    def late_by(record: dict[str, Any]) -> dict[str, Any]:
        return _later(record, 1000 * (record["id"] > 3))

    with pytest.raises(RecordsError, match=r"at another time than when it had its answer"):
        read(forge(run, late_by))
    run = write_served(tmp_path / "open", serving(load=OPEN), steps=3)
    with pytest.raises(RecordsError, match=r"at other times than the load's seed gives"):
        read(forge(run, late_by))


def _later(record: dict[str, Any], shift: int) -> dict[str, Any]:
    names = ("arrival_ns", "admitted_ns", "first_token_ns", "ended_ns")
    return record | {name: record[name] + shift for name in names}


def test_all_requests_arrive_after_the_work(tmp_path: Path) -> None:
    """Everything is moved to the end of the round, so that latencies are short beside the work that was done."""
    run = forge(write_served(tmp_path, steps=3), lambda record: _later(record, 60 * MS))
    with pytest.raises(RecordsError, match="work began before the first request came"):
        read(run)


@pytest.mark.parametrize("shift", [-MS, 200 * MS])
def test_an_answer_comes_before_it_was_asked_for_or_after_the_round(tmp_path: Path, shift: int) -> None:
    """Ends are moved."""
    moved = {"first_token_ns", "ended_ns"}
    run = write_served(tmp_path, steps=3)
    forge(run, lambda record: {name: value + 3 * shift if name in moved else value for name, value in record.items()})
    with pytest.raises(RecordsError, match="has an impossible time"):
        read(run)


def test_answers_are_shorter_than_was_asked_for(tmp_path: Path) -> None:
    """Three tokens are generated instead of five, in less time."""
    run = forge(write_served(tmp_path, steps=3), lambda record: record | {"output_tokens": 3})
    with pytest.raises(RecordsError, match="ended by length after 3 of 5"):
        read(run)


def test_prompts_are_shorter_than_was_asked_for(tmp_path: Path) -> None:
    """A prefill of one token is a fast one."""
    run = forge(write_served(tmp_path, steps=3), lambda record: record | {"prompt_tokens": 1})
    with pytest.raises(RecordsError, match=r"has 1 tokens, not \d+"):
        read(run)


def test_tokens_are_counted_that_nobody_got(tmp_path: Path) -> None:
    """The step says twice as many tokens as its answers have: tokens/s doubles."""

    def doubled(rank: int, record: dict[str, Any]) -> dict[str, Any]:
        return record | {"tokens": 2 * record["tokens"]} if record["type"] == "step" else record

    run = write_served(tmp_path, steps=3)
    rewrite(run, doubled, "rank*")
    with pytest.raises(RecordsError, match="says 80 tokens, and its answers have 40"):
        read(run)


def _without(run: Path, wrong: Callable[[int, str], bool]) -> Path:
    def edit(rank: int, record: dict[str, Any]) -> dict[str, Any]:
        if record["type"] == "step":
            record["spans"] = [span for span in record["spans"] if not wrong(rank, span[0])]
        return record

    rewrite(run, edit)
    return run


def test_decodes_are_left_out(tmp_path: Path) -> None:
    """All ranks skip a microbatch's decodes; the answers are said to be whole."""
    run = _without(write_served(tmp_path, steps=3), lambda rank, name: name[1:] == "D1")
    with pytest.raises(RecordsError, match="32 tokens after the first, and decodes for 16"):
        read(run)


def test_prefills_are_left_out(tmp_path: Path) -> None:
    """The prompts of a microbatch were never read."""
    run = _without(write_served(tmp_path, steps=3), lambda rank, name: name[1:] == "P1")
    with pytest.raises(RecordsError, match="8 first tokens, and prefills for 4"):
        read(run)


def test_one_stage_does_less(tmp_path: Path) -> None:
    """The second stage skips a decode, which balances a plan that is not balanced."""
    run = _without(write_served(tmp_path, steps=3), lambda rank, name: (rank, name) == (1, "1D1"))
    with pytest.raises(RecordsError, match=r"rank1\.jsonl holds other items than rank0\.jsonl"):
        read(run)


def test_a_training_is_called_serving(tmp_path: Path) -> None:
    """Steps hold forwards, of which nobody knows whose they are."""

    def edit(rank: int, record: dict[str, Any]) -> dict[str, Any]:
        if record["type"] == "step":
            record["spans"] = [[span[0].replace("P", "F"), *span[1:]] for span in record["spans"]]
        return record

    run = write_served(tmp_path, steps=3)
    rewrite(run, edit)
    with pytest.raises(RecordsError, match="which is no work on requests"):
        read(run)


def test_requests_are_edited_after_the_verdict(tmp_path: Path) -> None:
    """requests.jsonl is among the hashed files."""
    run = write_served(tmp_path, steps=3)
    write_verdict(judge(run), run / "verdict.json")
    forge(run, lambda record: record | {"digest": "0" * 16})
    with pytest.raises(RecordsError, match=r"requests\.jsonl: was changed since it was judged"):
        recheck(run)


def test_the_baseline_is_asked_for_more(tmp_path: Path) -> None:
    """Candidate and baseline have different loads: nothing is compared."""
    deployed = serving(targets={"latency_reduction_percent": 1}, baseline={"kind": "single"})
    other = serving(Mesh(), load={"requests": 8, "prompt_tokens": 9, "output_tokens": 5, "concurrency": 8})
    verdict = judge(write_served(tmp_path, deployed, baseline=other, steps=50))
    (claim,) = [claim for claim in verdict.claims if claim.id == "latency_reduction"]
    assert (claim.outcome, claim.reason) == (Outcome.INCONCLUSIVE, "loads_differ")
    assert "load" in claim.detail


def _speed_claim(run: Path, edit: Callable[[dict[str, Any]], dict[str, Any]]) -> Claim:
    (claim,) = [claim for claim in judge(forge(run, edit)).claims if claim.id == "latency_reduction"]
    return claim


def _with_baseline(folder: Path, **tables: Any) -> Path:
    deployed = serving(targets={"latency_reduction_percent": 1}, baseline={"kind": "single"}, **tables)
    return write_served(folder, deployed, baseline=serving(Mesh(), **tables), steps=50)


def test_slow_requests_are_cancelled(tmp_path: Path) -> None:
    """The slowest request of every round ends as cancelled, without a latency: neither limit nor speed is decided."""
    limits: dict[str, Any] = {"targets": {"latency_reduction_percent": 1, "request_latency_s": {"median": 100}}}
    run = write_served(tmp_path, serving(baseline={"kind": "single"}, **limits), baseline=serving(Mesh()), steps=50)
    forge(run, lambda record: record | ({"end": "cancelled", "why": "too slow"} if record["id"] == 7 else {}))
    found = {claim.id: claim for claim in judge(run).claims}
    assert found["request_median"].reason == "not_measured"
    assert found["latency_reduction"].reason == "loads_differ"
    assert all("requests were refused or cancelled" in claim.detail for claim in found.values())


def test_the_candidate_answers_something_else(tmp_path: Path) -> None:
    """A candidate that makes other tokens than the baseline from the same requests has not done the work."""
    claim = _speed_claim(_with_baseline(tmp_path), lambda record: record | {"digest": "0" * 16})
    assert (claim.outcome, claim.reason) == (Outcome.INCONCLUSIVE, "loads_differ")
    assert re.search(r"(\d+) of \1 answers are not the baseline's", claim.detail)


def test_the_candidate_answers_something_else_from_the_second_round_on(tmp_path: Path) -> None:
    """The first round's answers are equal: what a slot keeps of the sequence before would be seen in later ones."""
    run = _with_baseline(tmp_path)
    first = json.loads(RunFolder(run).requests.read_text().splitlines()[0])["step"]
    claim = _speed_claim(run, lambda record: record | ({} if record["step"] == first else {"digest": "0" * 16}))
    assert (claim.outcome, claim.reason) == (Outcome.INCONCLUSIVE, "loads_differ")


@pytest.mark.parametrize(("side", "words"), [(".", "are not the baseline's"), ("baseline", "those of its first round")])
def test_answers_are_others_in_the_later_half(tmp_path: Path, side: str, words: str) -> None:
    """The candidate has twice the baseline's rounds, traced ones among them: the later ones have no counterpart."""
    run = _with_baseline(tmp_path)
    steps = sorted({json.loads(line)["step"] for line in RunFolder(run).requests.read_text().splitlines()})
    middle = steps[len(steps) // 2]
    forge(run / side, lambda record: record | ({"digest": "0" * 16} if record["step"] >= middle else {}))
    ours, theirs = load_side(run, "candidate"), load_side(RunFolder(run).baseline.path, "baseline")
    if side == ".":
        theirs = replace(theirs, requests=tuple(request for request in theirs.requests if request.step < middle))
    assert words in str(answers_apart(ours, theirs))


@pytest.mark.parametrize("side", [".", "baseline"])
def test_records_without_first_tokens_are_not_compared(tmp_path: Path, side: str) -> None:
    """Of a run of an older version; where a single one is missing, it differs."""
    run = _with_baseline(tmp_path, model={"preset": "tiny", "dtype": "bfloat16"})
    forge(run / side, lambda record: record | {"first_token_id": None})
    found = judge(run)
    check = next(check for check in found.self_test if check.id == "numerics")
    assert (check.outcome, check.reason) == (Outcome.INCONCLUSIVE, "not_measured")
    assert "records are of an older version, without first tokens, so answers are not compared" in check.detail
    assert next(claim for claim in found.claims if claim.id == "latency_reduction").reason != "loads_differ"
    forge(run / side, lambda record: record | {"first_token_id": record["id"] if record["id"] == 7 else None})
    check = next(check for check in judge(run).self_test if check.id == "numerics")
    assert (check.outcome, check.reason) == (Outcome.FAIL, "loads_differ")


@pytest.mark.parametrize(("first", "reason"), [(lambda number: number, None), (lambda number: 99, "loads_differ")])
def test_in_half_precision_answers_must_begin_alike(
    tmp_path: Path, first: Callable[[int], int], reason: str | None
) -> None:
    """Whole answers differ by rounding, and nothing follows from that; their first tokens hardly do."""
    run = _with_baseline(tmp_path, model={"preset": "tiny", "dtype": "bfloat16"})
    claim = _speed_claim(run, lambda record: record | {"digest": "0" * 16, "first_token_id": first(record["id"])})
    assert claim.reason == reason, claim


PROMPTS = {"prompts": "aaaaaaaaaaaaaaaa", "answers": "b" * 16, "arrivals": "c" * 16}


def asked(run: Path, of: dict[str, str]) -> Path:
    """Writes into rank 0's header of a side what it was asked."""

    def edit(rank: int, record: dict[str, Any]) -> dict[str, Any]:
        return record | {"asked": of} if record["type"] == "header" and record["rank"] == 0 else record

    rewrite(run, edit)
    return run


def test_the_baseline_is_asked_something_else(tmp_path: Path) -> None:
    """The file of prompts is exchanged between the starts of the sides; its name, and all lengths, stay the same."""
    deployed = serving(targets={"throughput_gain_percent": 60}, baseline={"kind": "naive_pipeline"})
    naive = serving(batch={"global_batch_size": 8, "microbatch_size": 4, "sequence_length": 32, "items_in_flight": 1})
    run = asked(write_served(tmp_path, deployed, steps=60, baseline=naive), PROMPTS)
    for others, reason in ((PROMPTS, None), (PROMPTS | {"prompts": "d" * 16}, "loads_differ"), ({}, None)):
        asked(RunFolder(run).baseline.path, others)
        row = next(claim for claim in judge(run).claims if claim.id == "throughput_gain")
        assert row.reason == reason, row
        words = "the sides were asked other requests: prompts: aaaaaaaaaaaaaaaa here, dddddddddddddddd there"
        assert (words in row.detail) is (reason is not None)


def test_a_prediction_is_for_easier_requests(tmp_path: Path) -> None:
    """The plan was made with other prompts in the same file, so whatever it promised was promised for those."""
    others = {"asked": PROMPTS | {"prompts": "d" * 16}}
    predicted = prediction(100 * MS, [10 * MS] * 2, [1000] * 2).model_copy(update=others)
    found = judge(asked(write_served(tmp_path, steps=20, predicted=predicted), PROMPTS)).prediction
    assert found is not None
    assert (found.verdict, found.detail) == (
        "STALE",
        "predicted for other requests: prompts: aaaaaaaaaaaaaaaa here, dddddddddddddddd there",
    )
