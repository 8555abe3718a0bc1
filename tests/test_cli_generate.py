"""The command `generate`: what it refuses before ranks start, and one real call with every kind of bad request."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.commands import command, run, small, start, wait, write_json
from tests.data.corpora import write_corpus

LOAD = {
    "workload": {"kind": "generate"},
    "load": {"requests": 2, "prompt_tokens": 8, "output_tokens": 4},
    "batch": {"global_batch_size": 2, "microbatch_size": 2, "sequence_length": 32},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_json(tmp_path / "small.json", small())


def refused(*arguments: object) -> str:
    done = command("generate", *arguments)
    assert done.code == 2, done.err
    assert done.out == ""
    return done.err


def test_nothing_to_continue(file: Path) -> None:
    assert "give --prompt TEXT or --prompts FILE" in refused(file)


def test_two_places_for_answers(file: Path, tmp_path: Path) -> None:
    assert "drop one of them" in refused(file, "--prompt", "a", "--json", "--output", tmp_path)


@pytest.mark.parametrize("top_p", ["0", "1.5", "nan"])
def test_top_p_is_a_probability(file: Path, top_p: str) -> None:
    assert f"--top-p {top_p}" in refused(file, "--prompt", "a", "--top-p", top_p)


def test_a_temperature_that_is_no_number(file: Path) -> None:
    assert "Invalid value for '--temperature'" in refused(file, "--prompt", "a", "--temperature", "nan")


@pytest.mark.parametrize(("option", "value"), [("seed", 2**63), ("top-k", 2**63), ("temperature", "inf")])
def test_numbers_that_no_rank_can_be_told(file: Path, option: str, value: object) -> None:
    assert f"Invalid value for '--{option}'" in refused(file, "--prompt", "a", f"--{option}", value)


def test_an_answer_longer_than_any_cache(file: Path) -> None:
    assert "have 1000000001 tokens, and a cache at most 1000000000" in refused(
        file, "--prompt", "a", "--max-new-tokens", 10**9
    )


def test_an_unusable_line_of_prompts(file: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n{"text": "b"}\n')
    assert 'line 2 has no field "prompt"' in refused(file, "--prompts", tmp_path / "prompts.jsonl")


def test_weights_that_are_none(file: Path, tmp_path: Path) -> None:
    words = refused(file, "--prompt", "a", "--weights", tmp_path)
    assert f"--weights {tmp_path}: holds neither a whole checkpoint nor safetensors files" in words


def test_a_model_of_ones_own_units(tmp_path: Path) -> None:
    own: dict[str, Any] = small() | {"model": {"units": "tests.own_model:units"}}
    assert "only models of the Llama family can be served" in refused(
        write_json(tmp_path / "o.json", own), "--prompt", "a"
    )


def test_more_stages_than_units(tmp_path: Path) -> None:
    """A plan that cannot be made is a sentence before any rank starts."""
    words = refused(write_json(tmp_path / "o.json", small(parallel={"pp_degree": 40})), "--prompt", "a")
    assert "stages" in words


def test_text_for_a_model_that_reads_other_tokens(tmp_path: Path) -> None:
    """The corpus that it is trained on knows by what it was made; a source of text names its tokenizer itself."""
    write_corpus(tmp_path / "books", [[1, 2]], tokenizer_sha256="0" * 64)
    values = small(data={"source": "corpus", "path": str(tmp_path / "books")})
    words = refused(write_json(tmp_path / "corpus.json", values), "--prompt", "a")
    assert "was made with t.json, so it does not read text as bytes; name that file by --tokenizer" in words
    sources = [{"source": "text", "path": "books", "tokenizer": str(tmp_path / "gone.json")}]
    words = refused(write_json(tmp_path / "text.json", small(data={"sources": sources})), "--prompt", "a")
    assert "gone.json" in words


def planned(folder: Path, **tables: Any) -> Path:
    """The plan of a file, by formula."""
    path = folder / "plan.json"
    done = command("plan", write_json(folder / "planned.json", small(**tables)), "--analytic", "--out", path, "-q")
    assert done.code == 0, done.err
    return path


def test_plans_of_something_else(file: Path, tmp_path: Path) -> None:
    """A training, another model, other caches, more devices than there are: each a sentence before any rank starts."""
    serving = write_json(tmp_path / "serving.json", small(**LOAD))
    training = planned(tmp_path)
    assert "workload 'train' in the plan, 'forward' in small" in refused(serving, "--prompt", "a", "--plan", training)
    assert "is a plan of a training; plan a file with [load]" in refused(file, "--prompt", "a", "--plan", training)
    other = planned(tmp_path, **LOAD, model={"hidden_size": 64})
    assert "is a plan for other work: another model: " in refused(serving, "--prompt", "a", "--plan", other)
    longer = planned(tmp_path, **{**LOAD, "batch": LOAD["batch"] | {"sequence_length": 64}})
    assert "sequence_length 64 in the plan, 32 in small" in refused(serving, "--prompt", "a", "--plan", longer)
    two = planned(tmp_path, **LOAD, parallel={"pp_degree": 2})
    one = write_json(tmp_path / "one.json", small(**LOAD, hardware={"devices": 1, "oversubscribe": False}))
    assert f"--plan {two}: cannot be served: " in refused(one, "--prompt", "a", "--plan", two)


def test_answers_that_are_there_already(file: Path, tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_text("an answer")
    assert "already holds 1.txt; name a new folder" in refused(file, "--prompt", "a", "--output", tmp_path)


@pytest.mark.ranks
def test_bad_requests_harm_no_other(tmp_path: Path) -> None:
    """Good prompts beside an empty one, one longer than the cache, one of unknown tokens, and one that nobody reads."""
    file = write_json(tmp_path / "serving.json", small(**LOAD))
    (tmp_path / "prompts.jsonl").write_text(
        '{"prompt": [104, 105], "max_new_tokens": 5}\n'
        '{"prompt": ""}\n'
        f'{{"prompt": {[65] * 40}}}\n'
        '{"prompt": [65, 256]}\n'
        '{"prompt": "nobody reads", "max_new_tokens": 20}\n'
        '{"prompt": "hi", "max_new_tokens": 5}\n'
    )
    output = tmp_path / "answers"
    output.mkdir()
    os.mkfifo(output / "5.txt")
    done = run("generate", file, "--prompts", "prompts.jsonl", "--output", output, folder=tmp_path)
    assert done.code == 4, done
    assert done.out == ""
    words = done.err.splitlines()
    assert words[0] == "hybrid-runtime: weights are random, so the text is noise; name trained ones with --weights"
    assert sorted(words[1:-1]) == [
        "hybrid-runtime: request 2 has an empty prompt; send at least one token",
        "hybrid-runtime: request 3 needs 41 tokens of cache (40 of its prompt and 1 new ones), and a sequence has 32; "
        "shorten the prompt to 31 or fewer, or raise batch.sequence_length to 41",
        "hybrid-runtime: request 4 has the token 256 at place 1 of its prompt, and the model knows 0 to 255; use the "
        "model's own tokenizer",
        f"hybrid-runtime: request 5 is cancelled: {output / '5.txt'} is not read by anybody",
    ]
    assert re.fullmatch(r"hybrid-runtime: 3 answers, \d+ tokens in .* tokens/s", words[-1])
    assert sorted(os.listdir(output)) == ["1.txt", "5.txt", "6.txt"]
    assert (output / "1.txt").read_text() == (output / "6.txt").read_text()  # the same prompt, greedy


@pytest.mark.ranks
def test_a_stopped_rank_is_named_and_ends_the_command(tmp_path: Path) -> None:
    long = {"global_batch_size": 1, "microbatch_size": 1, "sequence_length": 50_000}
    values = small(parallel={"pp_degree": 2}, faults={"hang_limit_s": 3}) | LOAD | {"batch": long}
    asked = ("--prompt", "a", "--max-new-tokens", 49_000, "--json", "--quiet")
    process = start("generate", write_json(tmp_path / "s.json", values), *asked, folder=tmp_path, TMPDIR=str(tmp_path))
    assert process.stdout is not None
    assert process.stdout.readline().startswith('{"prompt": 1, "token": ')
    [status] = tmp_path.glob("hybrid-runtime-*/status/rank1")
    found = re.search(r"pid=(\d+)", status.read_text())
    assert found is not None
    os.kill(int(found[1]), signal.SIGSTOP)
    done = wait(process, 30)
    assert done.code == 4
    named = (
        r"hybrid-runtime: rank 1 \(dp 0, pp 1, tp 0\), stage 1, .*: gives no sign of life .*\(SIGSTOP\); rank 0 waits"
    )
    assert re.match(named, done.err), done
