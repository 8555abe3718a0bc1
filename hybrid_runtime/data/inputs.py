"""Documents on disk, cut into pieces that several processes can read at once.

kind      by its name          a document is      a piece is
jsonl     .jsonl, .ndjson      a line's field     the lines that begin in PIECE_BYTES of the file
parquet   .parquet, .pq        a row's column     a row group
text      anything else        the file           the lines that begin in PIECE_BYTES of the file

bytes   |  line  |   line     |  line |            a line belongs to the piece in which it begins,
pieces  |---------------|---------------|          so pieces need no look at the file before they are read
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from hybrid_runtime.data.text import text_files
from hybrid_runtime.errors import EnvironmentProblem, UsageError

PIECE_BYTES = 1 << 20
ROWS_AT_ONCE = 512
Kind = Literal["text", "jsonl", "parquet"]
_KINDS: dict[str, Kind] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".pq": "parquet"}
_COMPRESSED = {".gz", ".zst", ".bz2", ".xz", ".zip"}


class Piece(NamedTuple):
    """A part of an input.

    Attributes:
        start, stop: bytes of the file; of Parquet, `start` is the number of a row group.
        num_bytes: of the input that is done with when this piece is.
        is_last: of its file.
    """

    path: Path
    kind: Kind
    start: int
    stop: int
    num_bytes: int
    is_last: bool


class Line(NamedTuple):
    """A line of text, or a document of another kind, by its number in its piece; `problem` says why it is unusable."""

    number: int
    text: str
    problem: str | None = None


def input_files(inputs: Sequence[Path]) -> list[tuple[Path, Kind]]:
    """All files that are named, or lie in a folder that is, in this order.

    Raises:
        UsageError: nothing is there, or it is compressed.
    """
    files = [file for path in inputs for file in text_files(path, "**/*")]
    squeezed = next((file for file in files if file.suffix.lower() in _COMPRESSED), None)
    if squeezed is not None:
        raise UsageError(f"{squeezed}: is compressed; unpack it first, or leave it out")
    return [(file, _KINDS.get(file.suffix.lower(), "text")) for file in files]


def pieces_of(path: Path, kind: Kind, field: str) -> Iterator[Piece]:
    """The pieces of a file, in order; at least one.

    Raises:
        UsageError: it cannot be read, or is no Parquet file with such a column.
        EnvironmentProblem: pyarrow is missing.
    """
    if kind == "parquet":
        yield from _row_groups(path, field)
        return
    try:
        size = path.stat().st_size
    except OSError as problem:
        raise unreadable(path, problem) from None
    for start in range(0, max(1, size), PIECE_BYTES):
        stop = min(size, start + PIECE_BYTES)
        yield Piece(path, kind, start, stop, stop - start, stop == size)


def lines_of(piece: Piece, field: str) -> Iterator[Line]:
    """The lines or documents of a piece, in order; blank lines of JSONL are left out.

    Raises:
        UsageError: the file cannot be read.
    """
    if piece.kind == "parquet":
        yield from _rows(piece, field)
        return
    for number, raw in enumerate(_raw_lines(piece)):
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError:
            yield Line(number, "", "is not UTF-8 text")
            continue
        if piece.kind == "text":
            yield Line(number, line)
        elif line.strip():
            yield _field_of(number, line, field)


def _raw_lines(piece: Piece) -> Iterator[bytes]:
    try:
        with piece.path.open("rb") as file:
            if piece.start:
                file.seek(piece.start - 1)
                file.readline()  # ends the line before, or only its newline
            while file.tell() < piece.stop and (line := file.readline()):
                yield line
    except OSError as problem:
        raise unreadable(piece.path, problem) from None


def _field_of(number: int, line: str, field: str) -> Line:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as problem:
        return Line(number, "", f"is not JSON ({problem.msg} at character {problem.pos + 1})")
    except (ValueError, RecursionError) as problem:
        return Line(number, "", f"is not JSON that can be read ({problem})")
    if not isinstance(value, dict):
        return Line(number, "", "is no JSON object")
    if field not in value:
        known = ", ".join(map(str, list(value)[:8]))
        return Line(number, "", f"has no field {field!r} (it has {known})" if known else f"has no field {field!r}")
    return _text_of(number, value[field], f"its field {field!r}")


def _text_of(number: int, value: object, what: str) -> Line:
    if not isinstance(value, str):
        return Line(number, "", f"{what} is {type(value).__name__}, not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return Line(number, "", f"{what} holds half of a surrogate pair")
    return Line(number, value)


def _row_groups(path: Path, field: str) -> Iterator[Piece]:
    file = _parquet(path)
    columns = file.schema_arrow.names
    if field not in columns:
        raise UsageError(f"{path}: has no column {field!r}; name one of {', '.join(columns)} with --field")
    sizes = [file.metadata.row_group(group).total_byte_size for group in range(file.num_row_groups)]
    if not sizes:
        raise UsageError(f"{path}: holds no rows; leave it out")
    on_disk, done, before = path.stat().st_size, 0, 0
    for group, size in enumerate(sizes):  # sizes are of what is unpacked; so every group has its share of the file
        done += size
        through = on_disk * done // max(1, sum(sizes))
        yield Piece(path, "parquet", group, group + 1, through - before, group + 1 == len(sizes))
        before = through


def _rows(piece: Piece, field: str) -> Iterator[Line]:
    batches = _parquet(piece.path).iter_batches(batch_size=ROWS_AT_ONCE, row_groups=[piece.start], columns=[field])
    number = 0
    for batch in batches:
        for value in batch.column(0).to_pylist():
            yield _text_of(number, value, f"its column {field!r}")
            number += 1


def _parquet(path: Path) -> Any:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise EnvironmentProblem(
            f"{path}: Parquet files need the package pyarrow: run `pip install 'hybrid-runtime[parquet]'`"
        ) from None
    try:
        return ParquetFile(path)
    except OSError as problem:
        raise unreadable(path, problem) from None
    except ArrowException as problem:
        raise UsageError(f"{path}: is no Parquet file ({problem}); give it another name if it is text") from None


def unreadable(path: Path, problem: OSError) -> UsageError:
    """The one sentence about a file that cannot be read."""
    return UsageError(f"{path}: cannot be read ({problem.strerror or problem}); make it readable or leave it out")
