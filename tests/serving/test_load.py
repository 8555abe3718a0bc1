"""Rounds of [load]: what is asked, and when."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hybrid_runtime.errors import UsageError
from hybrid_runtime.serving.load import ClosedLoop, Listed, traffic_of
from hybrid_runtime.serving.requests import Answer
from tests.serving.deployments import serving
from tests.serving.traffic import asked


def test_synthetic_prompts_are_the_same_in_every_round_and_others_with_another_seed() -> None:
    load = {"requests": 40, "prompt_tokens": [3, 9], "output_tokens": [2, 5]}
    first = traffic_of(serving(load=load)).requests
    assert first == traffic_of(serving(load=load)).requests
    assert first != traffic_of(serving(load=load, workload={"seed": 1})).requests
    assert {len(request.prompt) for request in first} == set(range(3, 10))
    assert {request.max_new_tokens for request in first} == {2, 3, 4, 5}
    assert all(0 <= token < 256 for request in first for token in request.prompt)
    assert [request.id for request in first] == list(range(40))
    assert {request.stop_tokens for request in first} == {frozenset()}


def test_a_prefill_workload_asks_for_one_token() -> None:
    requests = traffic_of(serving(workload={"kind": "forward"})).requests
    assert {request.max_new_tokens for request in requests} == {1}


def test_sampling_of_the_load() -> None:
    load = {"temperature": "0.5", "top_k": 7, "top_p": "0.9", "stop_tokens": [3]}
    request = traffic_of(serving(load=load, workload={"seed": 5})).requests[0]
    assert (request.sampling.temperature, request.sampling.top_k, request.sampling.top_p) == (0.5, 7, 0.9)
    assert (request.sampling.seed, request.stop_tokens) == (5, {3})


def test_the_fingerprint_names_what_is_asked_otherwise(tmp_path: Path) -> None:
    """A file of prompts that keeps its name; lengths and numbers of answers; the times of an open loop."""
    path = tmp_path / "prompts.txt"

    def of(text: str, **load: object) -> dict[str, str]:
        path.write_text(text)
        return traffic_of(serving(load={"requests": 2, "prompts": str(path)} | load)).fingerprint

    before = of("one\ntwo\n")
    assert before == of("one\n\ntwo")
    assert _differing(before, of("one\nten\n")) == ["prompts"]
    assert _differing(before, of("one\ntwo\n", output_tokens=3)) == ["answers"]
    assert _differing(before, of("one\ntwo\n", concurrency=1)) == ["arrivals"]
    assert _differing(before, of("one\ntwo\n", arrivals="open", rate_per_s=2)) == ["arrivals"]


def _differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return [name for name in one if one[name] != other[name]]


def test_closed_loop() -> None:
    source = ClosedLoop([asked(0), asked(1), asked(2)], 2)
    assert source.next_ns == 0
    assert [request.id for request in source.due(5)] == [0, 1]
    assert (source.due(6), source.next_ns, source.is_exhausted) == ([], None, False)
    source.ended(Answer(asked(1), 0, 0, 1, 30, (1,), "length"), 30)
    assert source.next_ns == 30
    [last] = source.due(31)
    assert (last.id, last.arrival_ns, source.is_exhausted) == (2, 30, True)
    source.ended(Answer(last, 30, 30, 40, 41, (1,), "length"), 41)
    assert (source.due(50), source.is_exhausted) == ([], True)


def test_open_loop_is_a_poisson_process() -> None:
    load = {"requests": 4000, "arrivals": "open", "rate_per_s": 50, "prompt_tokens": 1}
    traffic = traffic_of(serving(load=load))
    times = [request.arrival_ns / 1e9 for request in traffic.requests]
    gaps = [b - a for a, b in zip([0.0, *times], times, strict=False)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(1 / 50, rel=0.05)
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) == pytest.approx(mean**2, rel=0.15)
    assert times == sorted(times)
    source = traffic.begin()
    assert source.due(traffic.requests[0].arrival_ns - 1) == []
    assert [request.id for request in source.due(traffic.requests[1].arrival_ns)] == [0, 1]
    assert source.next_ns == traffic.requests[2].arrival_ns


def test_a_list_in_order_of_arrival() -> None:
    source = Listed([asked(0, arrival_ns=5), asked(1, arrival_ns=2)])
    assert [request.id for request in source.due(9)] == [1, 0]
    assert (source.is_exhausted, source.next_ns) == (True, None)


def test_clients_are_the_slots_unless_said() -> None:
    assert traffic_of(serving()).clients == 4
    assert traffic_of(serving(load={"concurrency": 3})).clients == 3


def test_prompts_from_a_file_of_lines_as_bytes(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("one\n\nzwölf\r\n", encoding="utf-8")
    traffic = traffic_of(serving(load=from_file(tmp_path / "prompts.txt")))
    assert [bytes(request.prompt).decode() for request in traffic.requests] == ["one", "zwölf", "one"]
    assert {request.stop_tokens for request in traffic.requests} == {frozenset({0})}


def test_the_mark_at_the_begin_of_a_file_is_no_part_of_its_first_prompt(tmp_path: Path) -> None:
    for name, content in (("prompts.txt", "one"), ("prompts.jsonl", '{"prompt": "one"}')):
        (tmp_path / name).write_text(content, encoding="utf-8-sig")
        requests = traffic_of(serving(load=from_file(tmp_path / name))).requests
        assert {bytes(request.prompt) for request in requests} == {b"one"}


def test_prompts_from_json_lines(tmp_path: Path) -> None:
    lines = [{"prompt": "ab", "max_new_tokens": 7}, {"prompt": [5, 6]}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    traffic = traffic_of(serving(load=from_file(tmp_path / "prompts.jsonl")))
    assert [(request.prompt, request.max_new_tokens) for request in traffic.requests[:2]] == [
        ((97, 98), 7),
        ((5, 6), 4),
    ]


def from_file(path: Path) -> dict[str, object]:
    return {"prompts": str(path), "requests": 3}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "line 2 is not JSON (Expecting property name enclosed in double quotes"),
        ('"text"', 'line 2 has no field "prompt"'),
        ('{"prompt": 5}', "line 2 has a prompt that is neither text nor a list of token ids (5)"),
        ('{"prompt": [true]}', "line 2 has a prompt that is neither text nor a list of token ids ([True])"),
        (
            '{"prompt": "a", "max_tokens": 5}',
            "line 2 has the field 'max_tokens', which nothing reads (known are prompt",
        ),
        (
            '{"prompt": "a", "max_new_tokens": 0}',
            "line 2 has max_new_tokens = 0, which is not a whole number from 1 on",
        ),
        ('{"prompt": "\\ud800"}', "line 2 holds half of a surrogate pair"),
        ('{"prompt": []}', "[load] request 1 has an empty prompt; send at least one token"),
        (
            '{"prompt": [256]}',
            "[load] request 1 has the token 256 at place 0 of its prompt, and the model knows 0 to 255",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, why: str) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "good"}\n' + line + "\n")
    with pytest.raises(UsageError) as found:
        traffic_of(serving(load=from_file(tmp_path / "prompts.jsonl")))
    assert why in str(found.value)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"\n \n", "holds no prompt; write one on every line"),
        (b"a\n\xff\n", "line 2 is not UTF-8 text; convert the file"),
        (None, "cannot be read (No such file or directory); name a file of prompts"),
    ],
)
def test_a_bad_file(tmp_path: Path, content: bytes | None, why: str) -> None:
    if content is not None:
        (tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(UsageError) as found:
        traffic_of(serving(load=from_file(tmp_path / "prompts.txt")))
    assert why in str(found.value)


def test_a_load_that_no_slot_holds_is_refused_before_anything_runs() -> None:
    with pytest.raises(UsageError, match=r"\[load\] request 0 needs 70 tokens of cache \(62 of its prompt and 8 new"):
        traffic_of(serving(load={"prompt_tokens": 62, "output_tokens": 8}))
