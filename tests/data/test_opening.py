"""Every kind of source opens and reads; every kind of bad data is one sentence that names the file and the way out."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hybrid_runtime.data import opening, text
from hybrid_runtime.data.opening import Opened, check_source, open_data, open_source
from hybrid_runtime.data.tokens import ArrayTokens, InVocabulary
from hybrid_runtime.deployment import Data
from hybrid_runtime.errors import UsageError
from tests.data.corpora import write_corpus


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def words_tokenizer(path: Path, *words: str) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: id for id, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))
    return path


def test_the_default_is_the_standard_library_and_every_process_reads_the_same() -> None:
    source = open_source(Data())
    assert source.vocab_size == 256
    assert 4_000_000 < len(source) <= text.LIBRARY_BYTES
    read = source.read(0, 20_000)
    assert read.dtype == np.int64
    assert "def " in bytes(read.astype(np.uint8)).decode(errors="replace")
    assert open_source(Data()).read(len(source) - 9, 9).tolist() == source.read(len(source) - 9, 9).tolist()
    names = [file.as_posix() for file in text.library_files()]
    assert not any("/site-packages/" in name or "/test/" in name for name in names)


@pytest.mark.parametrize(("dtype", "top"), [("uint16", 65_535), ("uint32", 70_000)])
def test_token_files_are_little_endian_and_read_by_position(tmp_path: Path, dtype: str, top: int) -> None:
    path = tmp_path / "ids.bin"
    np.array([5, 7, top, 1], dtype=dtype).astype(f"<u{np.dtype(dtype).itemsize}").tofile(path)
    source = open_source(Data.model_validate({"source": "tokens", "path": str(path), "token_dtype": dtype}))
    assert isinstance(source, ArrayTokens)
    assert isinstance(source.ids, np.memmap)
    assert (len(source), source.read(1, 3).tolist()) == (4, [7, top, 1])


def test_one_text_file_is_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("né".encode())
    assert open_source(Data(source="text", path=str(path))).read(0, 3).tolist() == [110, 0xC3, 0xA9]


def test_a_folder_is_its_files_in_order_of_path_with_a_separator_and_without_hidden_ones(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name, content in {"b/z.txt": "Z", "a.txt": "A", ".git": "no", "c.txt": "", "d.txt": "D", "e.md": "no"}.items():
        (tmp_path / name).write_text(content)
    source = open_source(Data(source="text", path=str(tmp_path), glob="**/*.txt"))
    assert bytes(source.read(0, len(source)).astype(np.uint8)) == b"A\0Z\0D"
    (tmp_path / "a.txt").write_text("changed")  # other content is another key, never a stale cache
    assert len(open_source(Data(source="text", path=str(tmp_path), glob="**/*.txt"))) == 11


def test_a_tokenizer_file_is_used_once_and_its_tokens_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in {"a.txt": "to be\nor not", "b.txt": "to be"}.items():
        (tmp_path / name).write_text(content)
    tokenizer = words_tokenizer(tmp_path / "tokenizer.json", "?", "to", "be", "or", "not", "</s>")
    data = Data(source="text", path=str(tmp_path), glob="*.txt", tokenizer=str(tokenizer))
    first = open_source(data)
    assert (first.vocab_size, first.read(0, len(first)).tolist()) == (6, [1, 2, 3, 4, 5, 1, 2, 5])
    monkeypatch.setattr(text, "token_blocks", lambda *_: pytest.fail("tokenised twice"))
    second = open_source(data)
    assert second.read(0, len(second)).tolist() == [1, 2, 3, 4, 5, 1, 2, 5]
    words_tokenizer(tokenizer, "?", "to", "not", "be")
    with pytest.raises(pytest.fail.Exception, match="tokenised twice"):  # another tokenizer is another key
        open_source(data)


def test_large_text_is_tokenised_in_blocks_of_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "BLOCK_CHARACTERS", 10)
    (tmp_path / "a.txt").write_text("to be\n" * 50)
    tokenizer = words_tokenizer(tmp_path / "tokenizer.json", "?", "to", "be")
    source = open_source(Data(source="text", path=str(tmp_path / "a.txt"), tokenizer=str(tokenizer)))
    assert source.read(0, len(source)).tolist() == [1, 2] * 50


BAD_DATA = {  # kind: (the [data] table, what the message must say)
    "no file": ({"source": "tokens", "path": "nowhere"}, r"nowhere: cannot be read \(No such file"),
    "a folder": ({"source": "tokens", "path": "."}, r"\.: cannot be read \(Is a directory\); name a readable file"),
    "odd size": ({"source": "tokens", "path": "3bytes"}, r"3bytes: 3 bytes .* uint16 tokens .* token_dtype"),
    "empty tokens": ({"source": "tokens", "path": "empty"}, r"empty: holds no text; name"),
    "empty text": ({"source": "text", "path": "empty"}, r"empty: holds no text; name"),
    "no text": ({"source": "text", "path": "nowhere"}, r"nowhere: does not exist; name a text file"),
    "no match": ({"source": "text", "path": ".", "glob": "*.x"}, r"\.: no file in it matches '\*\.x'; change"),
    "bad glob": ({"source": "text", "path": ".", "glob": "/abs"}, r"glob '/abs' is not a pattern"),
    "no tokenizer": (
        {"source": "text", "path": "latin", "tokenizer": "t.json"},
        r"t.json: no such tokenizer file; name",
    ),
    "not a tokenizer": (
        {"source": "text", "path": "latin", "tokenizer": "latin"},
        r"latin: is not a `tokenizers` JSON",
    ),
    "not utf-8": (
        {"source": "text", "path": "latin", "tokenizer": "good.json"},
        r"latin: is not UTF-8 text; convert it",
    ),
}


@pytest.mark.parametrize("kind", BAD_DATA)
def test_bad_data_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    for name, content in {"3bytes": b"abc", "empty": b"", "latin": b"\xe9\xe8"}.items():
        (tmp_path / name).write_bytes(content)
    words_tokenizer(tmp_path / "good.json", "?")
    monkeypatch.chdir(tmp_path)
    table, message = BAD_DATA[kind]
    with pytest.raises(UsageError, match=message) as caught:
        open_source(Data.model_validate(table))
    assert "\n" not in str(caught.value)


def test_only_empty_files_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    (tmp_path / "b.txt").touch()
    with pytest.raises(UsageError, match="holds no text"):
        open_source(Data(source="text", path=str(tmp_path)))


def test_a_python_without_sources_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(UsageError, match="holds no Python sources; set"):
        open_source(Data())


def source_of(*ids: int, vocab_size: int = 65_536) -> ArrayTokens:
    return ArrayTokens("ids.bin", vocab_size, np.array(ids, dtype=np.uint16))


def test_a_source_must_fill_one_sample_and_its_targets() -> None:
    source = source_of(1, 2, 3, 4)
    assert check_source(source, 5, sequence_length=3) is source
    with pytest.raises(UsageError, match=r"ids.bin: holds 4 tokens, but one sample needs sequence_length \+ 1 = 5;"):
        check_source(source, 5, sequence_length=4)


def test_an_id_beyond_the_model_is_found_before_the_run() -> None:
    with pytest.raises(UsageError, match=r"ids.bin: token 2 has id 9, but the model's vocab_size is 9;"):
        check_source(source_of(1, 8, 9, 4), 9, sequence_length=2)


def test_a_source_that_cannot_exceed_the_model_is_not_scanned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ArrayTokens, "read", lambda *_: pytest.fail("scanned"))
    source = source_of(1, 2, 3, vocab_size=256)
    assert check_source(source, 256, sequence_length=2) is source
    assert check_source(source, None, sequence_length=2) is source


def test_a_huge_file_is_checked_at_every_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "SCANNED_IN_ADVANCE", 3)
    checked = check_source(source_of(1, 2, 3, 4, 99), 50, sequence_length=2)
    assert isinstance(checked, InVocabulary)
    assert (len(checked), checked.name, checked.read(1, 3).tolist()) == (5, "ids.bin", [2, 3, 4])
    with pytest.raises(UsageError, match="token 4 has id 99"):
        checked.read(3, 2)


def test_a_token_source_needs_no_torch() -> None:
    probe = "import sys, hybrid_runtime.data.opening; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


def corpus_table(folder: Path, name: str, documents: list[list[int]], **header: str) -> dict[str, object]:
    return {"source": "corpus", "path": str(write_corpus(folder / name, documents, **header))}  # type: ignore[arg-type]


def opened(vocab_size: int | None = 50, sequence_length: int = 4, **data: object) -> Opened:
    return open_data(Data.model_validate(data), vocab_size, sequence_length)


def test_contents_tell_tokens_and_documents_apart(tmp_path: Path) -> None:
    for name, documents in {"a": [[1, 2], [3]], "b": [[1, 2], [3]], "c": [[1, 2], [4]], "d": [[1], [2, 3]]}.items():
        write_corpus(tmp_path / name, documents)
    same, also, tokens, ends = (
        opened(source="corpus", path=str(tmp_path / name), sequence_length=2).contents for name in "abcd"
    )
    assert same == also
    assert len({same, tokens, ends}) == 3
    found = set()
    for place in (None, 0, 700_000, 1_299_999):  # of a file without checksum: its ends, and pieces between
        ids = np.zeros(1_300_000, dtype="<u2")
        if place is not None:
            ids[place] = 1
        ids.tofile(tmp_path / "ids.bin")
        found.add(opened(source="tokens", path=str(tmp_path / "ids.bin")).contents)
    assert len(found) >= 3


def test_one_source_several_sources_and_what_is_held_out(tmp_path: Path) -> None:
    documents = [[number % 50] * 5 for number in range(100)]
    one = corpus_table(tmp_path, "one", documents)
    two = {**corpus_table(tmp_path, "two", documents[:10]), "weight": Decimal(3)}
    assert [len(source) for source in opened(**one).training.sources] == [500]
    assert opened(**one).validation is None
    both = opened(sources=[one, two], validation_fraction=Decimal("0.1"))
    assert [len(source) for source in both.training.sources] == [450, 45]
    assert both.training.weights == (1, 3)
    assert both.validation is not None
    assert [len(source) for source in both.validation.sources] == [50, 5]
    assert [content.num_tokens for content in both.contents] == [450, 45, 50, 5]
    assert len({content.sha256 for content in both.contents}) == 2, "of the corpus, whatever part of it is taken"
    apart = opened(**one, validation_sources=[two])
    assert [len(source) for source in apart.training.sources] == [500]
    assert apart.validation is not None
    assert len(apart.validation) == 50


BAD_MIXTURES: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"sources": [{"path": "nowhere"}]}, "nowhere: is no folder, so it is no finished corpus"),
    "short": ({"sources": [{"path": "good"}, {"path": "short"}]}, r"short: holds 3 tokens, but one sample needs .* 5"),
    "large id": ({"sources": [{"path": "large"}]}, "large: has id 50, but the model's vocab_size is 50; use this"),
    "other tokenizer": (
        {"sources": [{"path": "good"}, {"path": "other"}]},
        "other: another tokenizer than that of good, so the same ids would mean other words; tokenize all",
    ),
    "text among ids": ({"sources": [{"path": "other"}, {"source": "text", "path": "t.txt"}]}, "'bytes': another tok"),
    "no documents to pack": ({"pack": True}, r"python-stdlib: \[data\] pack = true needs to know where documents"),
    "no documents to keep": ({"validation_fraction": Decimal("0.1")}, r"\[data\] validation_fraction needs to know"),
    "one document": (
        {"sources": [{"path": "short"}], "validation_fraction": Decimal("0.1")},
        r"short: has 1 document\(s\), too few",
    ),
    "too little is kept": (
        {"sources": [{"path": "good"}], "validation_fraction": Decimal("0.1")},
        r"good \(validation\): holds 2 tokens, but one sample needs",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_MIXTURES)
def test_bad_corpora_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_corpus(Path("good"), [[1, 2]] * 10)
    write_corpus(Path("short"), [[1, 2, 3]])
    write_corpus(Path("large"), [[50] * 10], vocab_size=51)
    write_corpus(Path("other"), [[1, 2]] * 10, tokenizer_sha256="0" * 64)
    Path("t.txt").write_text("to be or not")
    table, message = BAD_MIXTURES[kind]
    with pytest.raises(UsageError, match=message) as caught:
        opened(**table)
    assert "\n" not in str(caught.value)
