"""From the table [data] to what samples are drawn from, proved to fit the model before the first step.

source            path             tokenizer         becomes
python-stdlib     -                bytes             this Python's own library sources, in memory
text              file             bytes             the file itself, memory-mapped
text              folder           bytes             a cached token file (uint8), memory-mapped
text              file or folder   a JSON file       a cached token file (uint16 or uint32), memory-mapped
tokens            file             -                 the file itself (uint16 or uint32, little-endian), memory-mapped
corpus            folder           -                 its files, memory-mapped; the only one that knows its documents
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hybrid_runtime.data import cache, text
from hybrid_runtime.data.corpus import Corpus, DocumentSource, open_corpus
from hybrid_runtime.data.mixture import Mixture
from hybrid_runtime.data.split import Part, split
from hybrid_runtime.data.tokens import ArrayTokens, Content, InVocabulary, TokenSource, map_tokens
from hybrid_runtime.deployment_data import Data, Source, WeightedSource
from hybrid_runtime.errors import UsageError
from hybrid_runtime.tokenizer_file import BYTES, load_tokenizer, tokenizer_sha256

BYTE_VOCAB = 256
SCANNED_AT_ONCE = 1 << 22  # tokens; what a check holds in memory
SCANNED_IN_ADVANCE = 1 << 26  # tokens; a longer file is checked at every read instead of at the start
COMPARED_PIECES, COMPARED_AT_ONCE = 64, 1 << 12  # tokens; of files that carry no checksum, what is looked at


class Opened(NamedTuple):
    """What is trained on, and what is validated with, if anything is."""

    training: Mixture
    validation: Mixture | None

    @property
    def contents(self) -> tuple[Content, ...]:
        """As `contents_of`, of both."""
        return contents_of(self.training) + (() if self.validation is None else contents_of(self.validation))


def contents_of(mixture: Mixture) -> tuple[Content, ...]:
    """Of every source in order. Of what carries no checksum, pieces spread over it are compared; of a short one all."""
    return tuple(Content(len(source), _checksum(source)) for source in mixture.sources)


def open_data(data: Data, vocab_size: int | None, sequence_length: int) -> Opened:
    """Everything that a deployment's [data] names.

    Args:
        vocab_size, sequence_length: as of `check_source`.

    Raises:
        UsageError: a source cannot be used, does not know its documents where that is asked for, or was tokenised
            otherwise than another one.
        EnvironmentProblem: the cache folder cannot be written.
    """
    sources = [(source, open_source(source)) for source in data.train_sources]
    apart = [(source, open_source(source)) for source in data.validation_sources]
    _refuse_other_tokenizers([*sources, *apart])
    if data.pack:
        for _, opened in (*sources, *apart):
            _demand_documents(opened, "[data] pack = true")
    kept: list[tuple[Source, TokenSource]] = list(apart)
    if data.validation_fraction is not None:
        parts = [(source, _split(opened, Fraction(data.validation_fraction))) for source, opened in sources]
        sources = [(source, training) for source, (training, _) in parts]
        kept = [(source, validation) for source, (_, validation) in parts]
    mixed = [_mixture(found, vocab_size, sequence_length) for found in (sources, kept) if found]
    return Opened(mixed[0], mixed[1] if len(mixed) > 1 else None)


def _checksum(source: TokenSource) -> str:
    whole = source.source if isinstance(source, Part) else source
    if isinstance(whole, Corpus):
        return hashlib.sha256(f"{whole.header.tokens_sha256} {whole.header.documents_sha256}".encode()).hexdigest()
    found, last = hashlib.sha256(), max(0, len(whole) - COMPARED_AT_ONCE)
    for start in sorted({last * piece // (COMPARED_PIECES - 1) for piece in range(COMPARED_PIECES)}):
        found.update(whole.read(start, min(COMPARED_AT_ONCE, len(whole) - start)).astype("<i8").tobytes())
    return found.hexdigest()


def _mixture(sources: Sequence[tuple[Source, TokenSource]], vocab_size: int | None, sequence_length: int) -> Mixture:
    checked = tuple(check_source(opened, vocab_size, sequence_length) for _, opened in sources)
    weights = (source.weight if isinstance(source, WeightedSource) else 1 for source, _ in sources)
    return Mixture(checked, tuple(map(Fraction, weights)))


def _split(source: TokenSource, fraction: Fraction) -> tuple[TokenSource, TokenSource]:
    _demand_documents(source, "[data] validation_fraction")
    assert isinstance(source, Corpus), "only a corpus knows its documents"
    return split(source, fraction)


def _demand_documents(source: TokenSource, what: str) -> None:
    if not isinstance(source, DocumentSource):
        raise UsageError(
            f"{source.name}: {what} needs to know where documents begin, which this source does not say; make a "
            "corpus of it with `hybrid-runtime tokenize`, and set its source to 'corpus'"
        )


def _refuse_other_tokenizers(sources: Sequence[tuple[Source, TokenSource]]) -> None:
    """Ids of two tokenizers mean different things. Raw token files do not say by which one they were made."""
    known: list[tuple[str, str | None]] = []
    for source, opened in sources:
        if isinstance(opened, Corpus):
            known.append((opened.name, opened.header.tokenizer_sha256))
        if source.source != "tokens" and (source.source != "corpus" or source.tokenizer != BYTES):
            known.append((f"tokenizer = {source.tokenizer!r}", tokenizer_sha256(source.tokenizer)))
    other = next((name for name, found in known if found != known[0][1]), None)
    if other is not None:
        raise UsageError(
            f"{other}: another tokenizer than that of {known[0][0]}, so the same ids would mean other words; tokenize "
            "all of [data] with one tokenizer"
        )


def open_source(data: Source) -> TokenSource:
    """One source that a deployment file names.

    Raises:
        UsageError: a file is missing, unreadable, empty, damaged, not text, or not a whole number of tokens.
        EnvironmentProblem: the cache folder cannot be written.
    """
    if data.source == "python-stdlib":
        return _library(data.tokenizer)
    path = Path(data.path or "").expanduser()
    if data.source == "corpus":
        return open_corpus(path)
    if data.source == "tokens":
        return map_tokens(path, data.token_dtype, vocab_size=2 ** (8 * np.dtype(data.token_dtype).itemsize))
    if not path.exists():
        raise UsageError(f"{path}: does not exist; name a text file or a folder of them in [data] path")
    files = text.text_files(path, data.glob)
    if data.tokenizer != BYTES:
        return _tokenised(str(path), files, Path(data.tokenizer).expanduser())
    if files == [path]:
        return map_tokens(path, "uint8", vocab_size=BYTE_VOCAB)
    made = cache.token_file(text.content_key(files, None), "uint8", lambda: text.byte_blocks(files))
    return map_tokens(made, "uint8", vocab_size=BYTE_VOCAB, name=str(path))


def check_source(source: TokenSource, vocab_size: int | None, sequence_length: int) -> TokenSource:
    """The source to train on: the same, or one that checks every read where scanning all of it would take long.

    Args:
        vocab_size: of the model; every id must be below it. None where it is not known (a user's own units).
        sequence_length: of one sample; its targets need one token more.

    Raises:
        UsageError: too few tokens for one sample, or an id that the model does not have.
    """
    if len(source) < sequence_length + 1:
        raise UsageError(
            f"{source.name}: holds {len(source)} tokens, but one sample needs sequence_length + 1 = "
            f"{sequence_length + 1}; give more text or a smaller [batch] sequence_length"
        )
    if vocab_size is None or source.vocab_size <= vocab_size:
        return source
    if isinstance(source, DocumentSource):  # such a one says which id is its largest
        raise UsageError(
            f"{source.name}: has id {source.vocab_size - 1}, but the model's vocab_size is {vocab_size}; use this "
            "model's tokenizer, or a larger vocab_size"
        )
    checked = InVocabulary(source, vocab_size)
    scanned = min(len(source), SCANNED_IN_ADVANCE)
    for start in range(0, scanned, SCANNED_AT_ONCE):
        checked.read(start, min(SCANNED_AT_ONCE, scanned - start))
    return source if scanned == len(source) else checked


def _library(tokenizer: str) -> TokenSource:
    if tokenizer == BYTES:
        return ArrayTokens("python-stdlib", BYTE_VOCAB, np.frombuffer(text.library_text(), dtype=np.uint8))
    return _tokenised("python-stdlib", text.library_files(), Path(tokenizer).expanduser())


def _tokenised(name: str, files: list[Path], tokenizer_file: Path) -> TokenSource:
    tokenizer = load_tokenizer(tokenizer_file)
    vocab_size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    dtype = "uint16" if vocab_size <= 1 << 16 else "uint32"
    key = text.content_key(files, tokenizer_file)
    made = cache.token_file(key, dtype, lambda: text.token_blocks(files, tokenizer, dtype))
    return map_tokens(made, dtype, vocab_size=vocab_size, name=name)
