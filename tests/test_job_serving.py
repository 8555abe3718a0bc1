"""Rounds of a load as steps of a job: what is written, told and refused; and a whole run of two ranks."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hybrid_runtime.deployment import load_deployment
from hybrid_runtime.errors import RunError
from hybrid_runtime.job_orders import Order
from hybrid_runtime.job_serving import Rounds
from hybrid_runtime.records import read_side
from hybrid_runtime.run_folder import RunFolder
from hybrid_runtime.serving.load import traffic_of
from hybrid_runtime.serving.request_records import read_requests
from hybrid_runtime.serving.requests import Answer, Source
from hybrid_runtime.telemetry.recorder import StepSummary
from hybrid_runtime.verifier.judge import judge
from tests.commands import command
from tests.verifier.served import serving

MS = 1_000_000


class Instantly:
    """An engine that answers every request after 2 ms with three tokens, the last one 4 ms later."""

    def __init__(self, end: str = "length") -> None:
        self.end = end

    def serve(self, source: Source, batcher: object) -> list[Answer]:
        asked = source.due(0)
        return [Answer(one, 0, 0, 2 * MS, 6 * MS, (1, 2, 3), cast(Any, self.end), "" if self.end == "length" else "why")
                for one in asked]  # fmt: skip

    def follow(self) -> None:
        return None


def rounds(folder: Path, engine: Instantly, *, first: bool = True) -> Rounds:
    deployed = serving()
    recorder: Any = SimpleNamespace(
        close_window=lambda: StepSummary(None, None, 10 * MS), memory_bytes=7, note=lambda name: None,
        end_step=lambda tokens: None, begin_step=lambda *given, **more: None,
    )  # fmt: skip
    groups: Any = SimpleNamespace(barrier=lambda: None, gather_numbers=lambda mine: [mine])
    traffic = traffic_of(deployed) if first else None
    return Rounds(deployed, engine, groups, recorder, RunFolder(folder).create(), traffic)


def test_a_round_is_told_and_written(tmp_path: Path) -> None:
    with rounds(tmp_path, Instantly()) as served:
        brought, numbers = served.run(Order(4, 4))
    assert brought.tokens == 24
    assert brought.medians == {"first_token": 0.002, "output_token": 0.002, "request": 0.006}
    assert numbers[0].memory_bytes == 7
    records = read_requests(RunFolder(tmp_path).requests)
    assert [(one.step, one.id, one.output_tokens) for one in records] == [(4, number, 3) for number in range(8)]


def test_medians_leave_the_warm_up_out(tmp_path: Path) -> None:
    with rounds(tmp_path, Instantly()) as served:
        served.run(Order(0, 0, phase="warmup"))
        served.run(Order(1, 1))
        assert {len(found) for found in served._latencies.values()} == {8}
        served.run(Order(2, 2, phase="warmup"))  # the first of a block
        served.run(Order(3, 3))
        assert {len(found) for found in served._latencies.values()} == {16}


def test_other_ranks_follow_and_write_nothing(tmp_path: Path) -> None:
    with rounds(tmp_path, Instantly(), first=False) as served:
        brought, _ = served.run(Order(0, 0))
    assert (brought.tokens, brought.medians) == (0, {})
    assert not RunFolder(tmp_path).requests.exists()


def test_a_request_that_got_no_answer_ends_the_run_in_a_sentence(tmp_path: Path) -> None:
    with rounds(tmp_path, Instantly("cancelled")) as served, pytest.raises(RunError) as problem:
        served.run(Order(2, 2))
    assert str(problem.value) == "step 2: request 0 was cancelled: why"
    assert len(read_requests(RunFolder(tmp_path).requests)) == 8


@pytest.mark.ranks
def test_two_ranks_serve_and_are_judged(tmp_path: Path) -> None:
    """Records of a real run are honest by every check, and what they hold is in the verdict, the progress, the page."""
    deployed = {
        "name": "two ranks serve", "model": {"preset": "tiny", "num_layers": 2}, "parallel": {"pp_degree": 2},
        "batch": {"global_batch_size": 4, "microbatch_size": 2, "sequence_length": 24, "prefill_chunk_tokens": 8},
        "workload": {"kind": "generate", "steps": 5},
        "load": {"requests": 6, "prompt_tokens": [2, 12], "output_tokens": [1, 6]},
        "targets": {"first_token_s": {"median": 100}, "compute_balance_pp": 90},
        "hardware": {"device": "cpu", "oversubscribe": True}, "measurement": {"warmup_steps": 1, "batch_steps": 1},
    }  # fmt: skip
    file, run = tmp_path / "serve.json", RunFolder(tmp_path / "run")
    file.write_text(json.dumps(deployed))
    done = command("run", file, "--run-folder", run.path)
    assert "time to first token" in done.out, done
    asked = [rank.header.asked for rank in read_side(run.path)]
    assert asked == [traffic_of(load_deployment(file)).fingerprint, {}]
    verdict = judge(run.path)
    (side,) = verdict.served
    assert (side.rounds, side.requests) == (4, 24)
    assert {claim.id for claim in verdict.claims} == {
        "compute_balance", "compute_balance_prefill", "compute_balance_decode", "first_token_median",
    }  # fmt: skip
    assert [phase.kv_cache_bytes for phase in side.phases] == [2 * 4 * 24 * 96 * 4] * 2
    assert '"first_token_s":' in run.progress.read_text().splitlines()[-1]
    assert 'id="requests"' in run.page.read_text()
