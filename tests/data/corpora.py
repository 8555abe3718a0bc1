"""Small corpora for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hybrid_runtime.data.corpus import Corpus, open_corpus
from hybrid_runtime.data.corpus_writer import CorpusWriter


def write_corpus(
    folder: Path,
    documents: Sequence[Sequence[int]],
    *,
    dtype: str = "uint16",
    vocab_size: int = 50,
    tokenizer_sha256: str | None = None,
) -> Path:
    """A corpus of these documents' ids."""
    with CorpusWriter(folder, dtype) as writer:
        for ids in documents:
            writer.add(np.array(ids, dtype=dtype))
        writer.end_documents(np.array([len(ids) for ids in documents], dtype=np.int64))
        writer.finish(
            vocab_size=vocab_size, end_of_document=None, tokenizer="t.json", tokenizer_sha256=tokenizer_sha256
        )
    return folder


def random_documents(count: int, seed: int = 0, vocab_size: int = 50, longest: int = 13) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(0, vocab_size, random.integers(1, longest)).tolist() for _ in range(count)]


def random_corpus(folder: Path, count: int = 200, seed: int = 0) -> Corpus:
    return open_corpus(write_corpus(folder, random_documents(count, seed)))
