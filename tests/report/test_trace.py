"""The trace opens: valid JSON, slices nest on every thread, every arrow has both ends on slices, names are whole."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from hybrid_runtime.errors import EnvironmentProblem
from hybrid_runtime.plan import Plan, Prediction, StagePlan
from hybrid_runtime.records import Device, Header, Host, Memory, RankRecords, Span, StepRecord, Wait
from hybrid_runtime.report.trace import Slice, default_steps, lanes, write_trace

MS = 1_000_000
STAGES = 3
MICROBATCHES = 2


def plan() -> Plan:
    zeros = (0,) * STAGES
    return Plan(
        name="demo", workload="train", tp_degree=2, pp_degree=STAGES, dp_degree=1, sequence_parallel=False,
        schedule="gpipe", global_batch_size=2, microbatch_size=1, num_microbatches=MICROBATCHES, sequence_length=8,
        stages=tuple(StagePlan(index=k, pp_rank=k, units=(f"{k}.mlp",)) for k in range(STAGES)), units=(), actions=(),
        prediction=Prediction(stage_flops=zeros, stage_parameters=zeros, peak_in_flight=zeros, receive_depth={},
                              ideal_busy_ppm=zeros),
    )  # fmt: skip


def header(rank: int, offset_ns: int) -> Header:
    return Header(
        plan_fingerprint="p", deployment_fingerprint="d", rank=rank, world_size=6, dp=0, pp=rank // 2, tp=rank % 2,
        stages=(rank // 2,), backend="gloo", clock="wall", clock_offset_ns=offset_ns, clock_uncertainty_ns=0,
        flops_per_step=1, flops_by_kind={}, started_utc="", versions={}, environment={},
        device=Device(kind="cpu", id=f"host:rank{rank}", name="cpu", owned=False, total_bytes=None),
        host=Host(name="host", affinity=(0,), available_cores=2, threads_per_rank=1, local_world_size=6),
    )  # fmt: skip


def span(name: str, start_ms: float, end_ms: float) -> Span:
    return Span(name, round(start_ms * MS), round(end_ms * MS), 1000, 0)


def step_of(stage: int, number: int, start_ms: float, skew_ns: int) -> StepRecord:
    """GPipe, 1 ms an action:  stage 0: F0 F1 . . . . . . B0 B1   stage 1: . F0 F1 ...   stage 2: . . F0 F1 B0 B1"""
    spans, waits = [span("DATA", start_ms, start_ms + 0.1)], []
    for m in range(MICROBATCHES):
        forward = start_ms + 0.1 + stage + m
        backward = start_ms + 0.1 + STAGES + MICROBATCHES + (STAGES - 1 - stage) + m
        spans += [span(f"{stage}F{m}", forward, forward + 1), span(f"{stage}B{m}", backward, backward + 1)]
        waits.append(Wait("all_reduce", round((forward + 0.2) * MS), round((forward + 0.4) * MS)))
        if stage:
            waits.append(Wait(f"{stage}RECV_F{m}", round((forward - 0.05) * MS), round(forward * MS)))
    spans += [span("REDUCE_GRAD", start_ms + 12, start_ms + 13), span("OPTIMIZER", start_ms + 13, start_ms + 14)]
    return StepRecord(
        step=number, block=0, phase="warmup" if number < 2 else "measure", purpose="trace", ledger=number == 0,
        start_ns=round(start_ms * MS) - skew_ns, end_ns=round((start_ms + 15) * MS) - skew_ns, loss=None,
        grad_norm=None, tokens=16, switches=0, cores_busy_ns=-1, process_ns=0,
        memory=Memory(parameters=1, gradients=2, optimizer=3, activations_peak=4 if number == 0 else None,
                      buffers_peak=None, ledger_peak=None, allocated_peak=None, reserved_peak=None),
        spans=tuple(one._replace(start_ns=one.start_ns - skew_ns, end_ns=one.end_ns - skew_ns) for one in spans),
        waits=tuple(one._replace(start_ns=one.start_ns - skew_ns, end_ns=one.end_ns - skew_ns) for one in waits),
    )  # fmt: skip


def records(steps: int = 10, skew_ns: int = 0) -> list[RankRecords]:
    """Six ranks; clocks of odd ranks are behind by `skew_ns`, which their headers' offsets say."""
    found = []
    for rank in range(6):
        skew = skew_ns * (rank % 2)
        some = tuple(step_of(rank // 2, number, 1000 + 20 * number, skew) for number in range(steps))
        found.append(RankRecords(Path(f"rank{rank}.jsonl"), header(rank, skew), some, None))
    return found


def written(tmp_path: Path, ranks: list[RankRecords], **options: Any) -> dict[str, list[dict[str, Any]]]:
    path = tmp_path / "trace.json"
    write_trace(ranks, plan(), path, **options)
    trace = json.loads(path.read_text())
    assert trace["otherData"]["mesh"] == "tp 2 x pp 3 x dp 1"
    events: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in trace["traceEvents"]:
        events[event["ph"]].append(event)
    return events


def times_ns(event: dict[str, Any]) -> tuple[int, int]:
    return round(event["ts"] * 1000), round((event["ts"] + event["dur"]) * 1000)


def assert_nested(slices: list[dict[str, Any]]) -> None:
    threads = defaultdict(list)
    for event in slices:
        threads[event["pid"], event["tid"]].append(times_ns(event))
    for boxes in threads.values():
        open_ends: list[int] = []
        for start, end in sorted(boxes, key=lambda box: (box[0], -box[1])):
            while open_ends and open_ends[-1] <= start:
                open_ends.pop()
            assert not open_ends or end <= open_ends[-1]
            open_ends.append(end)


def test_names_nesting_counters_and_times(tmp_path: Path) -> None:
    events = written(tmp_path, records(skew_ns=7_000_000_123))
    names = {(event["pid"], event["args"]["name"]) for event in events["M"] if event["name"] == "process_name"}
    assert (3, "rank 3 (dp 0, pp 1, tp 1)") in names
    assert len(names) == 6
    threads = [event["args"]["name"] for event in events["M"] if event["name"] == "thread_name" and event["pid"] == 3]
    assert sorted(threads) == ["compute", "phases", "send/receive", "steps", "waits"]
    assert_nested(events["X"])
    assert min(event["ts"] for event in events["X"]) == 0  # after offsets: both clocks begin together
    first = {event["pid"]: event["ts"] for event in events["X"] if event["name"] == "step 0 (warmup)"}
    assert set(first.values()) == {0}
    by_track = {event["name"]: event["cat"] for event in events["X"]}
    assert {by_track[name] for name in ("1F0", "1B1")} == {"compute"}
    assert {by_track[name] for name in ("DATA", "REDUCE_GRAD", "OPTIMIZER")} == {"phases"}
    assert (by_track["all_reduce"], by_track["1RECV_F0"]) == ("waits", "send/receive")
    assert {"parameters": 1, "gradients": 2, "optimizer": 3, "activations_peak": 4} in [
        event["args"] for event in events["C"]
    ]


def test_arrows_join_neighbouring_stages_and_begin_and_end_on_slices(tmp_path: Path) -> None:
    events = written(tmp_path, records(), steps=[3])
    starts = {event["id"]: event for event in events["s"]}
    ends = {event["id"]: event for event in events["f"]}
    assert starts.keys() == ends.keys()
    assert len(starts) == 2 * (STAGES - 1) * MICROBATCHES * 2  # F and B, per microbatch, edge and tp rank
    boxes = {(event["pid"], event["name"]): times_ns(event) for event in events["X"] if event["cat"] == "compute"}
    for id, start in starts.items():
        end = ends[id]
        kind, microbatch = start["name"][0], start["name"][1:]
        source = boxes[start["pid"], f"{start['pid'] // 2}{kind}{microbatch}"]
        target = boxes[end["pid"], f"{end['pid'] // 2}{kind}{microbatch}"]
        assert end["pid"] - start["pid"] == (2 if kind == "F" else -2)
        assert source[0] <= round(start["ts"] * 1000) < source[1]
        assert round(end["ts"] * 1000) == target[0]
        assert start["ts"] <= end["ts"]
        assert end["bp"] == "e"


def test_arrows_enter_an_action_of_several_slices_at_its_first_and_leave_at_its_last(tmp_path: Path) -> None:
    """`1I0 1W7 1I0`: an older weight gradient was worked off while a collective was under way."""
    spans = {0: (span("0I0", 7, 8),), 1: (span("1I0", 3, 4), span("1W7", 4, 5), span("1I0", 5, 6)),
             2: (span("2I0", 1, 2),)}  # fmt: skip
    ranks = [
        rank._replace(steps=(rank.steps[0].model_copy(update={"spans": spans[rank.header.pp], "waits": ()}),))
        for rank in records(1)
        if rank.header.tp == 0
    ]
    events = written(tmp_path, ranks)
    ends = {event["id"]: event for event in events["f"]}
    base_ns = min(times_ns(event)[0] for event in events["X"] if event["name"] == "2I0") - 1 * MS
    joined = {(s["pid"], ends[s["id"]]["pid"]): (s["ts"], ends[s["id"]]["ts"]) for s in events["s"]}
    assert {pair: [round(ts * 1000) - base_ns for ts in times] for pair, times in joined.items()} == {
        (4, 2): [2 * MS - 1, 3 * MS],
        (2, 0): [6 * MS - 1, 7 * MS],
    }


def test_by_default_the_first_and_the_last_five_steps_are_drawn(tmp_path: Path) -> None:
    events = written(tmp_path, records(10))
    assert {event["args"]["step"] for event in events["X"]} == {0, 5, 6, 7, 8, 9}
    assert default_steps(records(3)) == [0, 1, 2]
    assert default_steps([]) == []


def test_slices_that_overlap_by_a_rounding_go_to_a_second_thread(tmp_path: Path) -> None:
    boxes = [Slice("compute", start, end, "0F0", {}) for start, end in [(0, 100), (10, 20), (99, 150), (150, 160)]]
    tids = [tid for _, tid in lanes(boxes)]
    assert tids[0] == tids[1] == tids[3] != tids[2]
    ranks = records(1)
    step = ranks[0].steps[0]
    late = step.spans[1]._replace(end_ns=step.spans[1].end_ns + 500_000)
    bent = step.model_copy(update={"spans": (step.spans[0], late, *step.spans[2:])})
    events = written(tmp_path, [ranks[0]._replace(steps=(bent,)), *ranks[1:]])
    assert_nested(events["X"])
    assert "compute 2" in [event["args"].get("name") for event in events["M"]]


def test_clocks_that_disagree_give_arrows_that_do_not_run_back(tmp_path: Path) -> None:
    ranks = records(1)
    early = ranks[2].header.model_copy(update={"clock_offset_ns": -600_000})
    events = written(tmp_path, [*ranks[:2], ranks[2]._replace(header=early), *ranks[3:]])
    ends = {event["id"]: event["ts"] for event in events["f"]}
    assert sum(event["ts"] == ends[event["id"]] for event in events["s"]) >= MICROBATCHES
    assert all(event["ts"] <= ends[event["id"]] for event in events["s"])


def test_a_path_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="cannot be written"):
        write_trace(records(1), plan(), tmp_path / "no" / "trace.json")
