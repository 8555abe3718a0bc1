"""From text, JSONL and Parquet to a corpus, by as many processes as there are cores.

    pieces --window of 2 per process--> processes: read, check, encode --in order--> one writer --> corpus

Whatever the inputs' size, no more than the pieces of the window are in memory. The corpus does not depend on the number
of processes. A document of JSONL or Parquet is encoded as a whole; a text file is one document, encoded in blocks of
whole lines. About every second the writer notes how many pieces are in the corpus. A try that was ended is gone on with
behind those where inputs, tokenizer and options are the same, and the corpus has the same bytes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hybrid_runtime.data import inputs as cut
from hybrid_runtime.data import text
from hybrid_runtime.data.corpus import CorpusHeader
from hybrid_runtime.data.corpus_writer import CorpusWriter
from hybrid_runtime.data.inputs import Kind, Line, Piece, input_files, lines_of, pieces_of
from hybrid_runtime.errors import EnvironmentProblem, UsageError
from hybrid_runtime.stop_signals import stops_held
from hybrid_runtime.tokenizer_file import BYTES, END_OF_TEXT, load_tokenizer, tokenizer_sha256

ENCODED_AT_ONCE = 256  # documents that the tokenizer gets in one call; it keeps more than their ids in memory
NOTE_EVERY_S = 1.0
NO_END = "none"  # instead of a token's name: nothing stands behind a document


class Coding(NamedTuple):
    """How text becomes ids.

    Attributes:
        tokenizer: path of a `tokenizers` file, or "bytes".
        end_of_document: the id behind every document, or None.
        field: of JSONL and Parquet.
    """

    tokenizer: str
    vocab_size: int
    end_of_document: int | None
    field: str

    @property
    def dtype(self) -> str:
        """The smallest type that the vocabulary fits; of a tokenizer's, at least uint16."""
        if self.tokenizer == BYTES:
            return "uint8"
        return "uint16" if self.vocab_size <= 1 << 16 else "uint32"


class Encoded(NamedTuple):
    """A piece in ids: its documents one after the other, or for text one part of a document.

    Attributes:
        lengths: ids of each document that has any, its end included.
        num_lines: lines that the piece has, to count on from.
        bad: (number of the line in the piece, what is wrong with it).
        num_empty: documents without text.
    """

    ids: NDArray[Any]
    lengths: NDArray[np.int64]
    num_lines: int
    bad: list[tuple[int, str]]
    num_empty: int


@dataclass
class Progress:
    """How far it is, and what was left out.

    Attributes:
        earlier_tokens: of `num_tokens`, those of an earlier try that is gone on with.
        anew: why what an earlier try left is not gone on with.
    """

    num_bytes: int = 0
    total_bytes: int = 0
    num_tokens: int = 0
    num_empty: int = 0
    bad: list[str] = field(default_factory=list)  # the first few, each with file and line
    num_bad: int = 0
    earlier_tokens: int = 0
    anew: str = ""


def coding_of(tokenizer: str, end_of_document: str | None, field: str) -> Coding:
    """Looks up what a tokenizer says.

    Args:
        end_of_document: the token's name; None for the tokenizer's usual one, NO_END for none.

    Raises:
        UsageError: the tokenizer is unusable, or has no such token.
    """
    if tokenizer == BYTES:
        if end_of_document not in (None, NO_END):
            raise UsageError(f"--end-of-document {end_of_document!r}: bytes have no such token; leave it out")
        return Coding(tokenizer, 256, None if end_of_document else text.SEPARATOR[0], field)
    loaded = load_tokenizer(Path(tokenizer))
    size = 1 + max(loaded.get_vocab(with_added_tokens=True).values(), default=0)
    return Coding(tokenizer, size, _end_id(loaded, tokenizer, end_of_document), field)


def _end_id(loaded: Any, tokenizer: str, name: str | None) -> int | None:
    if name == NO_END:
        return None
    names = END_OF_TEXT if name is None else (name,)
    found: int | None = next((id for token in names if (id := loaded.token_to_id(token)) is not None), None)
    if found is None:
        what = f"none of {', '.join(names)}" if name is None else f"no token {name!r}"
        raise UsageError(
            f"{tokenizer}: has {what} to set behind a document; name one of its tokens with --end-of-document, or "
            f"'{NO_END}'"
        )
    return found


def tokenise(
    inputs: Sequence[Path],
    folder: Path,
    coding: Coding,
    *,
    num_processes: int,
    skip_bad: bool = False,
    progress: Callable[[Progress], None] = lambda found: None,
) -> tuple[CorpusHeader, Progress]:
    """Writes the corpus of all documents in the inputs.

    Args:
        inputs: files, and folders of them.
        folder: the corpus; it appears whole or not at all. What a try before was ended in is gone on with.
        skip_bad: leave lines out that cannot be used, instead of ending with the first one.
        progress: called before the first and after every piece.

    Raises:
        UsageError: an input is missing, unreadable or holds no text, or one of its lines is unusable.
        EnvironmentProblem: the corpus cannot be written, pyarrow is missing, or a process was killed.
    """
    files = input_files(inputs)
    done = Progress(total_bytes=sum(file.stat().st_size for file, _ in files))
    with CorpusWriter(folder, coding.dtype, _made_of(files, coding, skip_bad=skip_bad)) as writer:
        collector = _Collector(writer, coding, done, skip_bad)
        progress(done)
        left = itertools.islice(_all_pieces(files, coding.field), collector.num_pieces, None)
        for piece, encoded in _in_order(left, coding, num_processes):
            collector.take(piece, encoded)
            progress(done)
        if not writer.num_tokens:
            raise UsageError(f"{', '.join(map(str, inputs))}: hold no text; name files with documents in them")
        header = writer.finish(
            vocab_size=coding.vocab_size,
            end_of_document=coding.end_of_document,
            tokenizer=coding.tokenizer if coding.tokenizer == BYTES else Path(coding.tokenizer).name,
            tokenizer_sha256=tokenizer_sha256(coding.tokenizer),
        )
    return header, done


def _made_of(files: Sequence[tuple[Path, Kind]], coding: Coding, *, skip_bad: bool) -> dict[str, str]:
    """Whatever a corpus depends on. Of inputs, as `make` does, names, sizes and times of their last change."""
    found = [(str(path.resolve()), kind, path.stat().st_size, path.stat().st_mtime_ns) for path, kind in files]
    return {
        "inputs": hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16],
        "tokenizer": f"{coding.tokenizer} {tokenizer_sha256(coding.tokenizer)}",
        "options": f"end {coding.end_of_document}, field {coding.field!r}, skip {skip_bad}, pieces {cut.PIECE_BYTES}",
    }


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


class _Collector:
    """Puts encoded pieces, which come in order, into the corpus.

    Attributes:
        num_pieces: that are in it; above 0 at the begin where an earlier try is gone on with.
    """

    def __init__(self, writer: CorpusWriter, coding: Coding, done: Progress, skip_bad: bool) -> None:
        self._writer, self._coding, self._done, self._skip_bad = writer, coding, done, skip_bad
        earlier = writer.earlier or {"pieces": 0, "lines": 0, "open": 0, "done": {}}
        self.num_pieces: int = earlier["pieces"]
        self._lines: int = earlier["lines"]  # of the current file, before the current piece
        self._open: int = earlier["open"]  # ids of the text file that is not yet complete
        for name, value in earlier["done"].items():
            setattr(done, name, value)
        done.earlier_tokens, done.anew = done.num_tokens, writer.anew
        self._noted_s = time.monotonic()

    def take(self, piece: Piece, encoded: Encoded) -> None:
        for number, problem in encoded.bad:
            self._say_bad(piece, self._lines + number + 1, problem)
        self._lines = 0 if piece.is_last else self._lines + encoded.num_lines
        self._writer.add(encoded.ids)
        if piece.kind == "text":
            self._open += len(encoded.ids)
            if piece.is_last:
                self._end_text()
        else:
            self._writer.end_documents(encoded.lengths)
        done = self._done
        done.num_empty += encoded.num_empty
        done.num_bytes, done.num_tokens = done.num_bytes + piece.num_bytes, self._writer.num_tokens + self._open
        self.num_pieces += 1
        if time.monotonic() - self._noted_s >= NOTE_EVERY_S:
            self._note()

    def _note(self) -> None:
        done = {name: getattr(self._done, name) for name in ("num_bytes", "num_tokens", "num_empty", "bad", "num_bad")}
        self._writer.note({"pieces": self.num_pieces, "lines": self._lines, "open": self._open, "done": done})
        self._noted_s = time.monotonic()

    def _end_text(self) -> None:
        if not self._open:
            self._done.num_empty += 1
            return
        if self._coding.end_of_document is not None:
            self._writer.add(np.array([self._coding.end_of_document], dtype=self._coding.dtype))
            self._open += 1
        self._writer.end_documents(np.array([self._open], dtype=np.int64))
        self._open = 0

    def _say_bad(self, piece: Piece, number: int, problem: str) -> None:
        what = f"{piece.path}: {'row' if piece.kind == 'parquet' else 'line'} {number}: {problem}"
        if not self._skip_bad:
            raise UsageError(f"{what}; correct it, or leave such lines out with --skip-bad-lines")
        self._done.num_bad += 1
        if len(self._done.bad) < 20:
            self._done.bad.append(what)


def _all_pieces(files: Iterable[tuple[Path, Kind]], field: str) -> Iterator[Piece]:
    for path, kind in files:
        yield from pieces_of(path, kind, field)


def _in_order(pieces: Iterator[Piece], coding: Coding, num_processes: int) -> Iterator[tuple[Piece, Encoded]]:
    """Every piece with what became of it."""
    if num_processes == 1:
        encode = encoder_of(coding)
        yield from ((piece, encode(piece)) for piece in pieces)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_processes, mp_context=context, initializer=_begin, initargs=(coding,))
    try:
        waiting: deque[tuple[Piece, Future[Encoded]]] = deque()
        for piece in itertools.chain(pieces, itertools.repeat(None)):
            if piece is not None:
                with stops_held():  # it starts processes, as long as there are too few
                    waiting.append((piece, pool.submit(_encode_here, piece)))
                if len(waiting) < 2 * num_processes:
                    continue
            if not waiting:
                return
            first, future = waiting.popleft()
            yield first, future.result()
    except BrokenProcessPool:
        raise EnvironmentProblem(
            "a process that tokenised was killed, most likely for want of memory; give fewer --processes"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_encode: Callable[[Piece], Encoded]  # of a process of the pool


def _begin(coding: Coding) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command itself says that it was stopped
    global _encode
    _encode = encoder_of(coding)


def _encode_here(piece: Piece) -> Encoded:
    return _encode(piece)


def encoder_of(coding: Coding) -> Callable[[Piece], Encoded]:
    """Reads and encodes a piece, in the process that calls it."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes have the cores already
    ids_of = _bytes_of if coding.tokenizer == BYTES else _tokenizer_ids(coding)

    def encode(piece: Piece) -> Encoded:
        lines = list(lines_of(piece, coding.field))
        bad = [(line.number, line.problem) for line in lines if line.problem is not None]
        good = [line for line in lines if line.problem is None]
        num_lines = lines[-1].number + 1 if lines else 0
        if piece.kind == "text":
            whole = ids_of(["".join(line.text for line in good)]) if good else []
            return Encoded(_joined(whole, coding), np.zeros(0, dtype=np.int64), num_lines, bad, 0)
        return _documents(good, ids_of, coding, num_lines, bad)

    return encode


def _documents(
    lines: Sequence[Line],
    ids_of: Callable[[list[str]], list[Any]],
    coding: Coding,
    num_lines: int,
    bad: list[tuple[int, str]],
) -> Encoded:
    found: list[NDArray[Any]] = []
    end = [] if coding.end_of_document is None else [coding.end_of_document]
    for first in range(0, len(lines), ENCODED_AT_ONCE):
        texts = [line.text for line in lines[first : first + ENCODED_AT_ONCE]]
        found += [np.array([*ids, *end], dtype=coding.dtype) for ids in ids_of(texts) if len(ids)]
    lengths = np.array([len(ids) for ids in found], dtype=np.int64)
    return Encoded(_joined(found, coding), lengths, num_lines, bad, len(lines) - len(found))


def _joined(parts: Sequence[Any], coding: Coding) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype=coding.dtype), *(np.asarray(ids, dtype=coding.dtype) for ids in parts)])


def _bytes_of(texts: list[str]) -> list[Any]:
    return [np.frombuffer(one.encode("utf-8"), dtype=np.uint8) for one in texts]


def _tokenizer_ids(coding: Coding) -> Callable[[list[str]], list[Any]]:
    tokenizer = load_tokenizer(Path(coding.tokenizer))
    encode_batch = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)  # fast: since tokenizers 0.20
    return lambda texts: [encoding.ids for encoding in encode_batch(texts, add_special_tokens=False)]
