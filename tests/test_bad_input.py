"""Whatever is wrong with what a user gives, the answer is one clear sentence and the documented exit code.

COMMANDS   found before any process starts; called in this process
JOBS       found by a rank; called one after the other in one other process
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from hybrid_runtime.run_folder import RunFolder
from hybrid_runtime.verifier.judge import judge, write_verdict
from tests.commands import ROOT, Done, command, environment, small, write_json
from tests.deployment_files import JARGON
from tests.verifier.synthetic import deployment, steady, write_run

FAIL, USAGE, ERROR = 1, 2, 4


class Case(NamedTuple):
    """`words` must all be said; `arguments` gets an empty folder and makes there what it needs."""

    name: str
    arguments: Callable[[Path], list[object]]
    code: int
    words: tuple[str, ...]


def check(values: dict[str, Any]) -> Callable[[Path], list[object]]:
    return lambda folder: ["check", write_json(folder / "file.json", values)]


def content(text: str | bytes, name: str = "file.toml") -> Callable[[Path], list[object]]:
    def write(folder: Path) -> list[object]:
        (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
        return ["check", folder / name]

    return write


def run(*options: object, values: dict[str, Any] | None = None) -> Callable[[Path], list[object]]:
    return lambda folder: [
        "run", write_json(folder / "file.json", values or small()), "--run-folder", folder / "run", *options,
    ]  # fmt: skip


def into_used_folder(folder: Path) -> list[object]:
    RunFolder(folder / "run").create()
    (folder / "run" / "records" / "rank0.jsonl").write_text("old\n")
    return run()(folder)


def into_a_file(folder: Path) -> list[object]:
    (folder / "run").write_text("a file")
    return run()(folder)


def judged(folder: Path) -> RunFolder:
    run = RunFolder(folder / "judged")
    write_run(run.path, steady([10, 10, 10], 20), deployment())
    write_verdict(judge(run.path), run.verdict)
    return run


def changed_byte(folder: Path) -> list[object]:
    files = judged(folder)
    path = files.records / "rank1.jsonl"
    before = path.read_bytes()
    path.write_bytes(before.replace(b"1024", b"1025", 1))
    assert path.read_bytes() != before
    return ["verify", "--recheck", files.path]


def damaged(folder: Path) -> list[object]:
    files = judged(folder)
    files.verdict.unlink()
    (files.records / "rank1.jsonl").write_text('{"half a')
    return ["verify", "--recheck", files.path]


def missing_rank(folder: Path) -> list[object]:
    files = judged(folder)
    files.verdict.unlink()
    (files.records / "rank2.jsonl").unlink()
    return ["verify", "--recheck", files.path]


def edited_verdict(folder: Path) -> list[object]:
    files = judged(folder)
    files.verdict.write_text("not a verdict")
    return ["verify", "--recheck", files.path]


NO_MODEL, NO_BATCH = small(model=None), small(batch=None)
CUTS = {"cuts": ["embedding..0.mlp", "1.mlp..head"]}

COMMANDS = [
    Case("file missing", lambda folder: ["check", folder / "no.toml"], USAGE, ("no.toml", "cannot be read", "name an")),
    Case("file is a folder", lambda folder: ["check", folder], USAGE, ("Is a directory", "name an existing")),
    Case("not UTF-8", content(b'name = "\xff"'), USAGE, ("not UTF-8", "byte 8", "save the file as UTF-8")),
    Case("not TOML", content("name = = 3"), USAGE, ("not valid TOML", "line 1")),
    Case("not JSON", content("{", "file.json"), USAGE, ("not valid JSON", "line 1")),
    Case("JSON named .toml", content('{"name": "x"}'), USAGE, ("its name must end in .json",)),
    Case("empty file", content(""), USAGE, ("1 problem", "name")),
    Case("larger than 1 MiB", content("#" * (1 << 20) + "\n"), USAGE, ("larger than 1 MiB",)),
    Case("wrong type", check(small(batch={"sequence_length": "x"})), USAGE,
         ("batch.sequence_length", "a whole number")),
    Case("unknown key", check(small(parallel={"tp_degre": 2})), USAGE, ("parallel.tp_degre", "tp_degree")),
    Case("unknown table", check(small() | {"modle": {}}), USAGE, ("modle", "model")),
    Case("two at once", check(small(workload={"steps": -1, "seeds": 1})), USAGE, ("2 problems", "workload.steps = -1")),
    Case("no model", run(values=NO_MODEL), USAGE, ("needs [model]", "add it")),
    Case("no batch", run(values=NO_BATCH), USAGE, ("needs [batch]", "add it")),
    Case("unknown preset", check(small(model={"preset": "tinny"})), USAGE, ("unknown preset", "'tiny'")),
    Case("units without a function", check({"name": "x", "model": {"units": "m"}}), USAGE, ("'module:function'",)),
    Case("two models", check(small(model={"units": "m:f"})), USAGE, ("preset and units", "keep one")),
    Case(
        "hf_config missing", check({"name": "x", "model": {"hf_config": "/no/such"}}), USAGE,
         ("/no/such", "config.json")
    ),
    Case("devices", check(small(parallel={"tp_degree": 2}, hardware={"devices": 3, "oversubscribe": False})), FAIL,
         ("2 * 1 * 1 = 2, not 3",)),
    Case("heads", check(small(parallel={"tp_degree": 4})), FAIL, ("2 heads over tp 4",)),
    Case("more stages than units", check(small(parallel={"pp_degree": 9})), FAIL, ("9 parts",)),
    Case("layer missing", check(small(parallel={"pp_degree": 2}, pipeline=CUTS)), FAIL, ("1.attn",)),
    Case("batch does not divide", check(small(batch={"global_batch_size": 5, "microbatch_size": 2})), FAIL,
         ("5", "global_batch_size 4 or 6")),
    Case("unknown schedule", check(small(pipeline={"schedule": "1f2b"})), FAIL, ("1f2b", "gpipe")),
    Case("a plan that fails is not run", run(values=small(parallel={"tp_degree": 4})), FAIL, ("must not be run",)),
    Case("run folder under a file", into_a_file, ERROR, ("run folder cannot be written", "--run-folder")),
    Case("run folder used", into_used_folder, USAGE, ("already holds the records", "name another")),
    Case("--json into a folder", run("--json", "/"), USAGE, ("--json /", "is a folder", "name another file")),
    Case("--json into no folder", run("--json", "/no/x"), USAGE, ("--json /no/x", "no folder /no")),
    Case("nodes without endpoint", run("--nodes", 2), USAGE, ("--nodes 2 needs --rdzv-endpoint HOST:PORT",)),
    Case("no node rank", run("--nodes", 2, "--rdzv-endpoint", "a:1"), USAGE, ("--nodes 2 needs --node-rank",)),
    Case("node rank too high", run("--node-rank", 1), USAGE, ("--node-rank 1", "from 0 to 0")),
    Case("no nodes", run("--nodes", 0), USAGE, ("--nodes 0",)),
    Case("endpoint without port", run("--rdzv-endpoint", "node0"), USAGE, ("node0", "needs HOST:PORT")),
    Case("ranks over nodes", run("--nodes", 2, "--node-rank", 0, "--rdzv-endpoint", "a:1"), USAGE,
         ("1 ranks cannot be divided equally over --nodes 2",)),
    Case("nodes is no number", run("--nodes", "two"), USAGE, ("'--nodes': it must be a whole number", "run --help")),
    Case("nodes without run folder", lambda folder: ["run", run(values=small(parallel={"dp_degree": 2}))(folder)[1],
         "--nodes", 2, "--node-rank", 0, "--rdzv-endpoint", "127.0.0.1:1"], USAGE, ("--nodes 2 needs --run-folder",)),
    Case("verify nothing", lambda folder: ["verify"], USAGE, ("needs a deployment FILE, or --recheck",)),
    Case("verify both", lambda folder: ["verify", "x.toml", "--recheck", folder], USAGE, ("not both",)),
    Case("recheck of no run", lambda folder: ["verify", "--recheck", folder], USAGE, ("plan.json",)),
    Case("recheck of nothing", lambda folder: ["verify", "--recheck", folder / "no"], USAGE, ("no/plan.json",)),
    Case("recheck, byte changed", changed_byte, ERROR, ("rank1.jsonl", "was changed since", "make the run again")),
    Case("recheck, record damaged", damaged, ERROR, ("rank1.jsonl",)),
    Case("recheck, rank missing", missing_rank, ERROR, ("2",)),
    Case("recheck, verdict damaged", edited_verdict, ERROR, ("verdict.json", "judge the run again")),
    Case("unknown option", lambda folder: ["check", "--bogus", "x"], USAGE, ("--bogus", "hybrid-runtime check --help")),
    Case("unknown command", lambda folder: ["chek"], USAGE, ("chek", "hybrid-runtime --help")),
    Case("no command", lambda folder: [], USAGE, ("Missing command", "hybrid-runtime --help")),
    Case("no file", lambda folder: ["check"], USAGE, ("FILE", "hybrid-runtime check --help")),
]  # fmt: skip


@pytest.mark.parametrize("case", COMMANDS, ids=lambda case: case.name)
def test_bad_input_is_one_sentence(case: Case, tmp_path: Path) -> None:
    done = command(*case.arguments(tmp_path))
    assert done.code == case.code, done
    said = done.out if case.code == FAIL else done.err
    assert_clear(said, case.words)
    if case.code == FAIL:
        assert f"FAIL: {'small'}: " in said
        assert "(exit code 1)" in said
        assert done.err == ""
    else:
        assert done.out == ""
        sentence, *more = said.splitlines()
        assert sentence.startswith("hybrid-runtime: ")
        assert all(line.startswith("  ") for line in more), "only a list of problems may follow"


def test_a_port_in_use_is_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        done = command(*run("--rdzv-endpoint", f"127.0.0.1:{port}")(tmp_path))
    assert done.code == ERROR
    assert_clear(done.err, (f"127.0.0.1:{port}", "Address already in use", "choose a free port"))


class Job(NamedTuple):
    """A rank that cannot start or go on; the same in `tables` of the deployment, files and environment."""

    name: str
    tables: Callable[[Path], dict[str, Any]]
    code: int
    words: tuple[str, ...]
    environment: dict[str, str] = {}  # noqa: RUF012 - never changed


def text(size: int, **data: object) -> Callable[[Path], dict[str, Any]]:
    def write(folder: Path) -> dict[str, Any]:
        (folder / "corpus").write_bytes(b"a" * size)
        return {"data": {"source": "text", "path": str(folder / "corpus")} | data}

    return write


def no_match(folder: Path) -> dict[str, Any]:
    return {"data": {"source": "text", "path": str(folder), "glob": "*.md"}}


def tokens(content: bytes) -> Callable[[Path], dict[str, Any]]:
    def write(folder: Path) -> dict[str, Any]:
        (folder / "tokens").write_bytes(content)
        return {"data": {"source": "tokens", "path": str(folder / "tokens")}}

    return write


def bad_tokenizer(folder: Path) -> dict[str, Any]:
    (folder / "tokenizer.json").write_text("{}")
    return text(100, tokenizer=str(folder / "tokenizer.json"))(folder)


def units(function: str) -> Callable[[Path], dict[str, Any]]:
    path = function if ":" in function else f"tests.bad_models:{function}"
    return lambda folder: {"model": None, "units": path}


JOBS = [
    Job("wrong --nproc-per-node", lambda folder: {"parallel": {"tp_degree": 2}}, USAGE,
        ("tp 2 x pp 1 x dp 1 needs 2 ranks, torchrun started 3", "--nproc-per-node"), {"WORLD_SIZE": "3"}),
    Job("RANK is no number", lambda folder: {}, USAGE, ("RANK", "start the job with torchrun"), {"RANK": "x"}),
    Job("no model", lambda folder: {"model": None}, USAGE, ("needs", "model")),
    Job("no such text", lambda folder: {"data": {"source": "text", "path": "/no/such"}}, USAGE,
        ("/no/such", "does not exist", "[data] path")),
    Job("no such token file", lambda folder: {"data": {"source": "tokens", "path": "/no/such"}}, USAGE,
        ("/no/such", "cannot be read", "[data] path")),
    Job("token file is a folder", lambda folder: {"data": {"source": "tokens", "path": str(folder)}}, USAGE,
        ("Is a directory", "[data] path")),
    Job("no file matches", no_match, USAGE, ("no file in it matches '*.md'", "[data] glob")),
    Job("empty corpus", text(0), USAGE, ("holds no text", "[data] path")),
    Job("corpus too short", text(16), USAGE, ("holds 16 tokens", "sequence_length + 1 = 17", "give more text")),
    Job("token id too large", tokens(b"\0\0\0\1" * 50), USAGE, ("token 1 has id 256", "vocab_size is 256")),
    Job("half a token", tokens(b"abc"), USAGE, ("3 bytes are not a whole number of uint16 tokens", "token_dtype")),
    Job("no tokenizer file", text(100, tokenizer="/no/such.json"), USAGE, ("/no/such.json", "tokenizer.json")),
    Job("not a tokenizer", bad_tokenizer, USAGE, ("tokenizer.json", "is not a `tokenizers` JSON file")),
    Job("GPU demanded", lambda folder: {"hardware": {"device": "cuda"}}, ERROR,
        ("torch sees no GPU here", "'auto' or 'cpu'"), {"CUDA_VISIBLE_DEVICES": ""}),
    Job("no module", units("no_such_module:units"), USAGE,
         ("importing 'no_such_module' failed", "start in the folder")),
    Job("no function", units("NO_FUNCTION"), USAGE, ("has no function 'NO_FUNCTION'",)),
    Job("function raises", units("raises"), USAGE, ("raised KeyError: 'width'", "mend the function")),
    Job("function returns garbage", units("garbage"), USAGE, ("returned a dict", "a list of UnitSpec")),
    Job("unit twice", units("twice"), USAGE, ("'a' appears twice",)),
    Job("unit is no module", units("no_module"), USAGE, ("unit 'a'", "str", "nn.Module")),
    Job("unit decides on values", units("decides_on_values"), USAGE, ("unit 'gate' cannot be measured", "on values")),
    Job("unit returns a tensor", units("returns_a_tensor"), USAGE, ("unit 'head'", "a tuple of tensors")),
    Job("weights missing", lambda folder: {"model": {"weights": "/no/such"}}, USAGE,
         ("/no/such", "is not a folder; model.weights")),
    Job("export exists", lambda folder: {"export": {"folder": str(folder)}}, USAGE,
         ("already exists; name another folder",)),
    Job("export of nothing transformers has", lambda folder: {"model": {"qkv_bias": True, "qk_norm": True},
         "export": {"folder": str(folder / "new")}}, USAGE, ("qkv_bias and qk_norm cannot be exported",)),
    Job("export on a full disk", lambda folder: {"model": {"ffn_size": 10**8, "num_layers": 1000}, "export":
         {"folder": str(folder / "new")}}, ERROR, ("GB are to be written and", "free on the disk")),
    Job("checkpoints cannot be written", lambda folder: {"checkpoint": {"folder": "/proc/x"}}, ERROR,
         ("checkpoint.folder = '/proc/x' cannot be written", "name another folder")),
    Job("checkpoints of nothing", lambda folder: {"workload": {"kind": "forward"}, "checkpoint": {"folder": "x"}},
         USAGE, ("[checkpoint]: a workload of kind 'forward' trains nothing", "workload.kind")),
    Job("folder used", lambda folder: {}, USAGE, ("already holds the records", "--run-folder")),
]  # fmt: skip


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    """What every bad job says; they run one after the other in one process."""
    root = tmp_path_factory.mktemp("jobs")
    cases = []
    for number, case in enumerate(JOBS):
        folder = root / str(number)
        folder.mkdir()
        tables = case.tables(folder)
        path = tables.pop("units", None)
        values = small(**tables) | ({"model": {"units": path}} if path else {})
        if case.name == "folder used":
            into_used_folder(folder)
        arguments = [str(write_json(folder / "file.json", values)), "--run-folder", str(folder / "run")]
        cases.append({"arguments": arguments, "environment": case.environment})
    done = subprocess.run(
        [sys.executable, "-m", "tests.job_cases", str(write_json(root / "cases.json", cases))],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    return {case.name: Done(code, "", said) for case, (code, said) in zip(JOBS, results, strict=True)}


@pytest.mark.parametrize("case", JOBS, ids=lambda case: case.name)
def test_a_rank_that_cannot_start_says_why_in_one_sentence(case: Job, jobs: dict[str, Done]) -> None:
    done = jobs[case.name]
    assert done.code == case.code, done
    assert_clear(done.err, case.words)
    assert len(done.err.splitlines()) == 1


def assert_clear(said: str, words: tuple[str, ...]) -> None:
    flat = " ".join(said.split())
    for word in words:
        assert word in flat, (word, said)
    assert not JARGON.search(said), said


def test_there_are_enough_kinds() -> None:
    assert len(COMMANDS) + len(JOBS) >= 35
