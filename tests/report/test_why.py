"""The first screen: the pair that sets the range, the busiest and idlest device, the longest wait, by name."""

from __future__ import annotations

from pathlib import Path

from hybrid_runtime.records import Wait
from hybrid_runtime.report.why import why_lines
from tests.report.runs import small_run


def test_it_names_devices_stages_and_the_wait(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    last = run.ranks[2]
    start = last.steps[-1].start_ns
    waits = (Wait("2RECV_F13", start, start + 1_000_000), Wait("2RECV_F14", start, start + 3_000_000))
    waits += (Wait("all_reduce", start, start + 2_000_000),)
    ranks = [
        *run.ranks[:2],
        last._replace(steps=(*last.steps[:-1], last.steps[-1].model_copy(update={"waits": waits}))),
    ]
    lines = dict(why_lines(run.verdict, ranks))
    claim = next(claim for claim in run.verdict.claims if claim.metric == "time_share_range")
    assert lines["What sets the balance of compute?"] == claim.detail
    assert "host:2 (stage 2) computes " in lines["Which device works most, which least?"]
    said = lines["Which wait is the longest?"]
    assert "Rank 2 (stage 2) waits 4 ms in all for activations from stage 1 (2RECV_F)" in said
    assert "longest single wait: 3 ms, rank 2 (stage 2) in step 23 for 2RECV_F14" in said


def test_it_names_the_sum_of_a_sharded_embedding(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    for name, words in (
        ("0EF", "the sum of a sharded embedding (0EF)"),
        ("2EB", "the gradient of a sharded embedding's sum (2EB)"),
    ):
        last = run.ranks[2].steps[-1]
        waits = tuple(Wait(f"{name}{i}", last.start_ns, last.start_ns + 2_000_000) for i in (1, 12))
        steps = (*run.ranks[2].steps[:-1], last.model_copy(update={"waits": waits}))
        said = dict(why_lines(run.verdict, [*run.ranks[:2], run.ranks[2]._replace(steps=steps)]))[
            "Which wait is the longest?"
        ]
        assert f"waits 4 ms in all for {words}" in said


def test_without_waits_and_devices_there_is_no_such_line(tmp_path: Path) -> None:
    run = small_run(tmp_path, devices=(), claims=())
    assert why_lines(run.verdict, run.ranks) == []
