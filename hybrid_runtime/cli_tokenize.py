"""The commands `tokenize`, which makes a corpus of documents, and `corpus`, which says what is in one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from hybrid_runtime.cli_output import console_for
from hybrid_runtime.report.cells import rate_text

if TYPE_CHECKING:
    from hybrid_runtime.data.corpus import CorpusHeader
    from hybrid_runtime.data.tokenise import Progress as Done

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress")]


def tokenize(
    inputs: Annotated[list[Path], typer.Argument(metavar="INPUT...", help="text, .jsonl and .parquet files, folders")],
    tokenizer: Annotated[str, typer.Option(metavar="FILE", help="a `tokenizers` JSON file, or bytes")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="the corpus; it appears whole or not at all")],
    field: Annotated[str, typer.Option(help="of JSONL and Parquet: which one holds the text")] = "text",
    end_of_document: Annotated[
        str | None, typer.Option(metavar="TOKEN", help="set behind every document; none for nothing")
    ] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="default: one per core")] = None,
    skip_bad_lines: Annotated[bool, typer.Option("--skip-bad-lines", help="leave unusable lines out")] = False,
    quiet: Quiet = False,
) -> None:
    """Make a corpus for the table data: a document per line of JSONL, Parquet row or text file, in constant memory.

    Where it was ended before, by a signal or a crash, the same command goes on with what is there.
    """
    from hybrid_runtime.data.tokenise import coding_of, cores, tokenise

    coding = coding_of(tokenizer, end_of_document, field)
    rate = _Rate()
    with _progress(quiet, str(out)) as (bar, task):

        def show(found: Done) -> None:
            if rate.is_new and not quiet:
                _say_where_it_begins(out, found)
            words = f"{out}: {found.num_tokens:,} tokens, {rate.of(found.num_tokens - found.earlier_tokens)}"
            bar.update(task, completed=found.num_bytes, total=found.total_bytes, description=words)

        header, done = tokenise(
            inputs, out, coding, num_processes=processes or cores(), skip_bad=skip_bad_lines, progress=show
        )
    for line in done.bad:
        _say(f"left out: {line}")
    if done.num_bad > len(done.bad):
        _say(f"left out: {done.num_bad - len(done.bad)} further lines")
    _say(
        f"{out}: {_contents(header)}; {done.num_empty} empty documents and {done.num_bad} bad lines left out; "
        f"{rate.of(done.num_tokens - done.earlier_tokens)}"
    )


class _Rate:
    """Tokens per second since the first time it was asked."""

    def __init__(self) -> None:
        self._began_s: float | None = None

    @property
    def is_new(self) -> bool:
        return self._began_s is None

    def of(self, tokens: int) -> str:
        now_s = time.monotonic()
        self._began_s = self._began_s or now_s
        return f"{rate_text(tokens / max(now_s - self._began_s, 1e-3))} tokens/s"


def _say_where_it_begins(out: Path, found: Done) -> None:
    if found.earlier_tokens:
        _say(f"{out}: goes on behind {found.earlier_tokens:,} tokens that an earlier try has left; they were proved")
    elif found.anew:
        _say(f"{out}: what an earlier try has left is not gone on with: {found.anew}")


def corpus(folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="a corpus that `tokenize` wrote")]) -> None:
    """Say what is in a corpus, and prove its checksums, which runs do by themselves for small ones only."""
    from hybrid_runtime.data.corpus import open_corpus, prove

    opened = open_corpus(folder)
    prove(folder, opened.header)
    _say(f"{folder}: {_contents(opened.header)}; checksums are right")


def _contents(header: CorpusHeader) -> str:
    end = "nothing" if header.end_of_document is None else f"id {header.end_of_document}"
    return (
        f"{header.num_documents:,} documents, {header.num_tokens:,} tokens of {header.dtype}, vocabulary "
        f"{header.vocab_size:,} ({header.tokenizer}), {end} behind every document"
    )


def _say(words: str) -> None:
    console_for(None).print(words, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _progress(quiet: bool, words: str) -> Iterator[tuple[Progress, TaskID]]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        yield bar, bar.add_task(words, total=None)
