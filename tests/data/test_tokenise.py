"""The corpus is the documents' tokens in order, however many processes and pieces made it; bad lines are named."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from hybrid_runtime.data import inputs, tokenise
from hybrid_runtime.data.corpus import Corpus, open_corpus
from hybrid_runtime.data.tokenise import Progress, coding_of
from hybrid_runtime.errors import EnvironmentProblem, Stopped, UsageError
from hybrid_runtime.stop_signals import signals_stop
from tests.commands import environment, run
from tests.data.test_opening import words_tokenizer

WORDS = ("?", "to", "be", "or", "not", "</s>")


class Pool:
    """In place of processes: Ctrl-C comes while one is being started, before anybody knows it."""

    known: ClassVar[list[str]] = []

    def __init__(self, *_: object, **__: object) -> None: ...

    def submit(self, *_: object) -> Future[object]:
        signal.raise_signal(signal.SIGINT)
        self.known.append("process")
        return Future()

    def shutdown(self, **_: object) -> None:
        self.known.append("ended")


def test_a_process_of_the_pool_is_known_before_a_stop_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenise, "ProcessPoolExecutor", Pool)
    Path("a.txt").write_text("to be")
    with pytest.raises(Stopped, match="SIGINT"), signals_stop():
        make("a.txt", num_processes=2)
    assert Pool.known == ["process", "ended"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words_tokenizer(tmp_path / "t.json", *WORDS)


def make(*names: str, out: str = "corpus", end: str | None = None, **how: Any) -> tuple[Corpus, Progress]:
    coding = coding_of(how.pop("tokenizer", "t.json"), end, how.pop("field", "text"))
    how = {"num_processes": 1} | how
    _, done = tokenise.tokenise([Path(name) for name in names], Path(out), coding, **how)
    return open_corpus(Path(out)), done


def texts(corpus: Corpus) -> list[str]:
    bounds = corpus.offsets.tolist()
    ids = corpus.read(0, len(corpus)).tolist()
    return [" ".join(WORDS[id] for id in ids[first:stop]) for first, stop in pairwise(bounds)]


def jsonl(name: str, values: Sequence[object]) -> str:
    Path(name).write_text("".join(json.dumps(value) + "\n" for value in values))
    return name


def test_a_line_of_jsonl_is_a_document_and_empty_ones_are_left_out() -> None:
    jsonl("a.jsonl", [{"text": "to be"}, {"text": ""}, {"text": "or not", "more": 3}])
    corpus, done = make("a.jsonl")
    assert texts(corpus) == ["to be </s>", "or not </s>"]
    assert (done.num_empty, done.num_bad, done.num_tokens, done.num_bytes) == (1, 0, 6, done.total_bytes)
    header = corpus.header
    assert (header.dtype, header.vocab_size, header.largest_id, header.end_of_document) == ("uint16", 6, 5, 5)
    assert header.tokenizer == "t.json"


def test_another_field_and_no_end() -> None:
    jsonl("a.ndjson", [{"body": "to be"}])
    assert texts(make("a.ndjson", field="body", end="none")[0]) == ["to be"]
    assert texts(make("a.ndjson", field="body", end="not", out="other")[0]) == ["to be not"]


def test_files_of_a_folder_are_documents_in_order_of_their_paths() -> None:
    os.mkdir("books")
    for name, text in {"b.txt": "or not", "a.txt": "to be\n", "c.md": "\n", ".hidden": "to"}.items():
        Path("books", name).write_text(text)
    corpus, done = make("books")
    assert texts(corpus) == ["to be </s>", "or not </s>"]
    assert done.num_empty == 1


def test_bytes_need_no_tokenizer() -> None:
    Path("a.txt").write_text("né")
    corpus, _ = make("a.txt", tokenizer="bytes")
    assert corpus.read(0, len(corpus)).tolist() == [110, 0xC3, 0xA9, 0]
    assert (corpus.header.dtype, corpus.header.tokenizer_sha256) == ("uint8", None)


@pytest.mark.parametrize("size", [1, 7, 64, 10**6])
def test_it_does_not_matter_how_files_are_cut_into_pieces(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    lines = [" ".join(random.choice(WORDS[1:5], count)) for count in random.integers(0, 9, 60)]
    jsonl("a.jsonl", [{"text": line} for line in lines])
    Path("b.txt").write_text("\n".join(lines))  # the last line has no end
    monkeypatch.setattr(inputs, "PIECE_BYTES", size)
    corpus, _ = make("a.jsonl", "b.txt")
    assert texts(corpus) == [f"{line} </s>" for line in lines if line] + [" ".join(filter(None, [*lines, "</s>"]))]


BAD_LINES = {
    "not json": ('{"text": to}', r"a.jsonl: line 3: is not JSON \(Expecting value at character 10\); correct it, or"),
    "a list": ("[1]", "line 3: is no JSON object"),
    "no field": ('{"txt": "to"}', r"line 3: has no field 'text' \(it has txt\)"),
    "no text": ('{"text": 7}', "line 3: its field 'text' is int, not text"),
    "half a pair": (r'{"text": "\ud800"}', "line 3: its field 'text' holds half of a surrogate pair"),
    "not utf-8": (b'{"text": "\xff"}', "line 3: is not UTF-8 text"),
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_line_is_named_and_nothing_is_left_or_it_is_left_out(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "PIECE_BYTES", 20)  # lines are counted over pieces, blank ones too
    line, message = BAD_LINES[kind]
    bad = line if isinstance(line, bytes) else line.encode()
    Path("a.jsonl").write_bytes(b'{"text": "to be"}\n\n' + bad + b'\n{"text": "or"}\n')
    with pytest.raises(UsageError, match=message):
        make("a.jsonl")
    assert sorted(os.listdir()) == ["a.jsonl", "t.json"]
    corpus, done = make("a.jsonl", skip_bad=True)
    assert texts(corpus) == ["to be </s>", "or </s>"]
    assert (done.num_bad, len(done.bad)) == (1, 1)


def test_parquet_rows_are_documents() -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"text": ["to be", "or", "", "not"], "number": [1, 2, 3, 4]})
    parquet.write_table(table, "a.parquet", row_group_size=3)
    assert texts(make("a.parquet")[0]) == ["to be </s>", "or </s>", "not </s>"]
    with pytest.raises(UsageError, match=r"a.parquet: row 1: its column 'number' is int, not text"):
        make("a.parquet", field="number", out="other")
    with pytest.raises(UsageError, match=r"a.parquet: has no column 'body'; name one of text, number with --field"):
        make("a.parquet", field="body", out="other")
    Path("b.parquet").write_text("to be")
    with pytest.raises(UsageError, match=r"b.parquet: is no Parquet file"):
        make("b.parquet", out="other")


def test_without_pyarrow_parquet_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    Path("a.parquet").touch()
    with pytest.raises(
        EnvironmentProblem, match=r"Parquet files need the package pyarrow: run `pip install 'hybrid-ru"
    ):
        make("a.parquet")


REFUSED = {
    "missing": (("nowhere",), {}, "nowhere: does not exist; name a text file or a folder"),
    "compressed": (("a.jsonl.gz",), {}, r"a.jsonl.gz: is compressed; unpack it first"),
    "no text": (("empty.txt",), {}, r"empty.txt: hold no text; name files with documents"),
    "no tokenizer": (("empty.txt",), {"tokenizer": "nope.json"}, r"nope.json: no such tokenizer file; name 'bytes' or"),
    "no such token": (("empty.txt",), {"end": "<x>"}, r"t.json: has no token '<x>' to set behind a document; name one"),
    "bytes have none": (("empty.txt",), {"tokenizer": "bytes", "end": "<x>"}, "bytes have no such token"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_bad_input_is_one_sentence(kind: str) -> None:
    for name in ("a.jsonl.gz", "empty.txt"):
        Path(name).touch()
    names, how, message = REFUSED[kind]
    with pytest.raises(UsageError, match=message) as caught:
        make(*names, **how)
    assert "\n" not in str(caught.value)
    assert not Path("corpus").exists()


def test_a_tokenizer_without_a_usual_end_is_refused() -> None:
    words_tokenizer(Path("u.json"), "?", "to")
    with pytest.raises(UsageError, match=r"u.json: has none of .*</s>.* behind a document; name one .* or 'none'"):
        coding_of("u.json", None, "text")


def test_the_command_with_several_processes_makes_the_same_corpus(tmp_path: Path) -> None:
    jsonl("a.jsonl", [{"text": "to be or not " * (number % 900)} for number in range(900)])  # several pieces
    alone, _ = make("a.jsonl", out="alone")
    made = run("tokenize", "a.jsonl", "--tokenizer", "t.json", "--out", "many", "--processes", "2", folder=tmp_path)
    assert made.code == 0, made.err
    assert "many: 899 documents, 1,619,099 tokens of uint16, vocabulary 6 (t.json), id 5 behind every" in made.out
    assert re.search(r"0 bad lines left out; [\d .]+ tokens/s\n", made.out)
    assert open_corpus(Path("many")).header == alone.header
    shown = run("corpus", "many", folder=tmp_path)
    assert shown.code == 0, shown.err
    assert "checksums are right" in shown.out


KILLED = """
import os, signal
from pathlib import Path
from hybrid_runtime.data import inputs, tokenise
inputs.PIECE_BYTES, tokenise.NOTE_EVERY_S = 64, 0

def progress(done):
    if done.num_bytes > 1000:
        os.kill(os.getpid(), signal.SIGKILL)

coding = tokenise.coding_of("t.json", None, "text")
tokenise.tokenise([Path("a.jsonl"), Path("b.txt")], Path("corpus"), coding, num_processes=1, progress=progress)
"""


class _EndedError(Exception):
    """A try is ended: as a signal does it."""


def ended_at(num_bytes: int, *names: str, **how: Any) -> None:
    """A try that is ended when so many bytes of its inputs are done with."""

    def progress(done: Progress) -> None:
        if done.num_bytes > num_bytes:
            raise _EndedError

    with pytest.raises(_EndedError):
        make(*names, progress=progress, **how)


def content(folder: str) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


@pytest.fixture
def documents(monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Two kilobytes of lines of JSON, one of them bad, and one of text, in pieces of 64 bytes."""
    monkeypatch.setattr(inputs, "PIECE_BYTES", 64)
    monkeypatch.setattr(tokenise, "NOTE_EVERY_S", 0)
    random = np.random.default_rng(0)
    lines = [" ".join(random.choice(WORDS[1:5], 5)) for _ in range(60)]
    jsonl("a.jsonl", [{"text": line} for line in lines])
    Path("b.txt").write_text("\n".join(lines))
    return "a.jsonl", "b.txt"


def test_a_killed_try_is_gone_on_with_and_makes_the_same_bytes(documents: tuple[str, str], tmp_path: Path) -> None:
    """What was written behind the journal's moment is cut off; pieces before it are not encoded again."""
    killed = subprocess.run([sys.executable, "-c", KILLED], env=environment(), cwd=tmp_path, check=False)
    assert killed.returncode == -signal.SIGKILL
    with Path(".corpus.partial", "tokens.bin").open("ab") as file:
        file.write(b"half a piece")
    before: list[int] = []
    _, done = make(*documents, progress=lambda done: before.append(done.num_bytes))
    assert before[0] > 900
    assert 0 < done.earlier_tokens < done.num_tokens
    make(*documents, out="straight")
    assert content("corpus") == content("straight")
    assert sorted(content("corpus")) == ["corpus.json", "documents.bin", "tokens.bin"]
    assert not Path(".corpus.partial").exists()


@pytest.mark.parametrize(("file", "at"), [(0, 100), (0, 1500), (1, 70), (1, 500)])
def test_it_goes_on_in_the_midst_of_any_file_and_counts_from_there(
    file: int, at: int, documents: tuple[str, str]
) -> None:
    """Lines of a bad one are counted over both tries; a text file that is half done is one document in the end."""
    bad = Path("a.jsonl").read_text().replace('{"text"', '{"txt"', 3)
    Path("a.jsonl").write_text(bad + '{"txt": 1}\n')
    ended_at(file * os.stat(documents[0]).st_size + at, *documents, skip_bad=True)
    _, done = make(*documents, skip_bad=True)
    _, straight = make(*documents, out="straight", skip_bad=True)
    assert content("corpus") == content("straight")
    assert done.earlier_tokens > 0
    assert (done.bad, done.num_bad, done.num_tokens) == (straight.bad, 4, straight.num_tokens)


def test_what_was_damaged_or_made_of_something_else_is_not_gone_on_with(documents: tuple[str, str]) -> None:
    def tokens(name: str) -> Path:
        return Path(f".{name}.partial", "tokens.bin")

    for name, spoil, words in (
        ("flipped", lambda: tokens("flipped").write_bytes(b"?" + tokens("flipped").read_bytes()[1:]), "its tokens.bin"),
        ("short", lambda: os.truncate(tokens("short"), 9), "its tokens.bin is damaged"),
        ("cut", lambda: Path(".cut.partial", "journal.json").write_text("{"), "its journal.json is damaged"),
        ("touched", lambda: os.utime("b.txt", (1, 1)), "it was made of something else: inputs: "),
    ):
        ended_at(1500, *documents, out=name)
        spoil()
        _, done = make(*documents, out=name)
        assert done.earlier_tokens == 0
        assert done.anew.startswith(words)
        assert content(name) == content("touched" if name == "touched" else "flipped")


def test_a_bad_line_leaves_nothing_to_go_on_with_and_two_writers_are_one_too_many(documents: tuple[str, str]) -> None:
    Path("c.jsonl").write_text("no\n")
    with pytest.raises(UsageError, match=r"c.jsonl: line 1"):
        make(*documents, "c.jsonl")
    assert not Path(".corpus.partial").exists()

    def progress(done: Progress) -> None:
        if done.num_bytes > 1000:
            make(*documents)

    with pytest.raises(EnvironmentProblem, match="corpus: another process is writing it; wait for it, or name another"):
        make(*documents, progress=progress)
    assert make(*documents)[1].earlier_tokens > 0
