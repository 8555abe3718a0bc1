"""A corpus gives back what was written; whatever is wrong with one is a sentence that says what, before any step."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hybrid_runtime.data import corpus as corpora
from hybrid_runtime.data.corpus import DocumentSource, open_corpus, prove
from hybrid_runtime.data.corpus_writer import CorpusWriter
from hybrid_runtime.data.sampler import Batches
from hybrid_runtime.errors import EnvironmentProblem, UsageError
from tests.data.corpora import random_documents, write_corpus


@pytest.mark.parametrize(("dtype", "top"), [("uint8", 255), ("uint16", 65_535), ("uint32", 70_000)])
def test_it_gives_back_what_was_written(tmp_path: Path, dtype: str, top: int) -> None:
    corpus = open_corpus(write_corpus(tmp_path / "c", [[5, 7], [top], [1, 2, 3]], dtype=dtype, vocab_size=top + 1))
    assert isinstance(corpus, DocumentSource)
    assert isinstance(corpus.ids, np.memmap)
    assert (len(corpus), corpus.num_documents, corpus.vocab_size) == (6, 3, top + 1)
    assert corpus.read(1, 4).tolist() == [7, top, 1, 2]
    assert corpus.document_starts(0, 6).tolist() == [0, 2, 3]
    assert corpus.document_starts(1, 3).tolist() == [2]
    assert corpus.document_starts(4, 6).tolist() == []


def test_a_position_among_many_documents_is_found_without_reading_them(tmp_path: Path) -> None:
    documents = random_documents(5000)
    corpus = open_corpus(write_corpus(tmp_path / "c", documents))
    starts = np.cumsum([0, *map(len, documents)])[:-1]
    assert corpus.document_starts(1000, 1500).tolist() == [at for at in starts if 1000 <= at < 1500]


def test_billions_of_tokens_are_mapped_not_read(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "c", [[1], [2], [3]])
    index(0, 1, 2_999_999_990, 3 * 10**9)(folder)
    os.truncate(folder / "tokens.bin", 6 * 10**9)  # a hole on the disk
    header({"num_tokens": 3 * 10**9})(folder)
    corpus = open_corpus(folder)
    assert len(corpus) == 3 * 10**9
    assert corpus.read(0, 3).tolist() == [1, 2, 3]
    assert corpus.read(3 * 10**9 - 4, 4).tolist() == [0] * 4
    assert corpus.document_starts(2, 3 * 10**9).tolist() == [2_999_999_990]
    samples = Batches(corpus, global_batch_size=64, microbatch_size=64, sequence_length=4096, pack=True)
    assert samples.microbatches(10**6)[0].tokens.shape == (64, 4096)


def test_until_it_is_finished_there_is_no_folder_and_afterwards_no_rest(tmp_path: Path) -> None:
    with CorpusWriter(tmp_path / "c", "uint16") as writer:
        writer.add(np.array([1], dtype=np.uint16))
        assert not (tmp_path / "c").exists()
    assert os.listdir(tmp_path) == []
    (tmp_path / ".c.partial").mkdir()  # left over by a crash
    write_corpus(tmp_path / "c", [[1]])
    assert os.listdir(tmp_path) == ["c"]
    with pytest.raises(UsageError, match="c: already exists; name another folder"):
        CorpusWriter(tmp_path / "c", "uint16")


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hybrid_runtime.data.corpus_writer.sync", full)
    with pytest.raises(EnvironmentProblem, match=r"c: cannot be written \(No space left on device\); free some space"):
        write_corpus(tmp_path / "c", [[1]])
    assert os.listdir(tmp_path) == []


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


def header(change: dict[str, object]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        values = json.loads((folder / "corpus.json").read_text())
        (folder / "corpus.json").write_text(json.dumps(values | change))

    return rewrite


def index(*offsets: int) -> Callable[[Path], None]:
    return lambda folder: np.array(offsets, dtype="<u8").tofile(folder / "documents.bin")


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, 8)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no header": (lambda folder: (folder / "corpus.json").unlink(), "no readable corpus.json .* no finished corpus"),
    "half a header": (lambda folder: (folder / "corpus.json").write_text("{"), "in corpus.json, the file is not"),
    "another version": (header({"format": "hybrid_runtime corpus 9"}), "in corpus.json, format is not what"),
    "no tokens": (lambda folder: (folder / "tokens.bin").unlink(), r"tokens.bin: cannot be read \(No such file"),
    "tokens cut off": (cut("tokens.bin"), "tokens.bin has 8 bytes, and .* says 6 of uint16, which are 12"),
    "index cut off": (cut("documents.bin"), "documents.bin has 8 bytes, and .* says 4 of uint64, which are 32"),
    "index of another": (index(0, 2, 3, 5), "documents lie from token 0 to 5, and tokens.bin holds 6"),
    "index out of order": (index(0, 4, 3, 6), "in documents.bin, document 1 ends before it begins"),
    "a flipped bit": (lambda folder: flipped(folder / "tokens.bin"), "tokens.bin has another checksum than the header"),
    "another index": (index(0, 1, 3, 6), "documents.bin has another checksum"),
    "empty": (header({"num_tokens": 0}), "is an empty corpus; tokenize files that hold text"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_corpus_is_refused(tmp_path: Path, kind: str) -> None:
    folder = write_corpus(tmp_path / "c", [[5, 7], [9], [1, 2, 3]])
    spoil, message = DAMAGE[kind]
    spoil(folder)
    with pytest.raises(UsageError, match=message) as caught:
        open_corpus(folder)
    assert "\n" not in str(caught.value)


def test_what_is_no_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere: is no folder, so it is no finished corpus; make one with"):
        open_corpus(tmp_path / "nowhere")


def test_a_large_corpus_is_proved_on_request_and_watched_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpora, "PROVED_BYTES", 0)
    monkeypatch.setattr(corpora, "INDEX_IN_ADVANCE", 0)
    folder = write_corpus(tmp_path / "c", [[5, 7], [9], [1, 2, 3]])
    np.array([5, 7, 49, 1, 2, 3], dtype="<u2").tofile(folder / "tokens.bin")
    index(0, 4, 3, 6)(folder)
    corpus = open_corpus(folder)
    with pytest.raises(UsageError, match=r"an id of tokens.bin from token 1 on is above the header's largest_id"):
        corpus.read(1, 3)
    with pytest.raises(UsageError, match=r"documents.bin is out of order at document 0"):
        corpus.document_starts(0, 6)
    with pytest.raises(UsageError, match=r"tokens.bin has another checksum"):
        prove(folder, corpus.header)
