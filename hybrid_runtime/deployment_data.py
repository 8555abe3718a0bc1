"""The deployment's table [data]: where tokens come from, in which proportions, and what is kept for validation.

[data]                               one source             source, path, glob, tokenizer, token_dtype
[[data.sources]]                     several, by weight     the same keys, and weight
[[data.validation_sources]]          of validation          or validation_fraction of every source's documents
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import Field

from hybrid_runtime.deployment_fields import PathText, PositiveNumber, Table, UpToHalf

SourceKind = Literal["python-stdlib", "text", "tokens", "corpus"]
_LIBRARY = "python-stdlib"


class Source(Table):
    """One source of tokens. The default is real text that every machine has: Python's own standard library."""

    source: SourceKind = "python-stdlib"
    path: PathText | None = Field(
        None,
        description="text: a file or folder; tokens: a file of raw token ids; corpus: a folder that "
        "`hybrid-runtime tokenize` wrote",
        examples=["data/books"],
    )
    glob: str = Field("**/*", description="text folders: which files")
    tokenizer: PathText = Field("bytes", description="bytes, or the path of a `tokenizers` JSON file")
    token_dtype: Literal["uint16", "uint32"] = "uint16"

    @classmethod
    def rules(cls, given: Collection[str], values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        source = values.get("source", cls.model_fields["source"].default)
        if source in ("text", "tokens", "corpus") and "path" not in given:
            yield f"has the source {source!r} but no path", 'add path, for example path = "data/books"'
        if source == _LIBRARY and "path" in given:
            yield (
                f"has a path, which the source {_LIBRARY!r} does not read",
                "set source to 'corpus', 'text' or 'tokens'",
            )


class WeightedSource(Source):
    """One of several sources: a corpus, unless it says otherwise."""

    source: SourceKind = "corpus"
    weight: PositiveNumber = Field(
        Decimal(1), description="of all samples, weight / (sum of weights) come from this source"
    )


Sources = Annotated[list[WeightedSource], Field(max_length=1000)]


class Data(Source):
    """Where tokens come from: one source, or several by weight; and what is kept apart to validate with."""

    sources: Sources = Field([], description="several sources by weight, instead of source and path")
    pack: bool = Field(
        False,
        description="true: a token sees only its own document, positions begin anew in each, and nothing is predicted "
        "across its end (corpora only); false: documents flow into each other",
    )
    validation_fraction: UpToHalf | None = Field(
        None,
        description="this part of every corpus's documents is never trained on, and validated with",
        examples=["0.01"],
    )
    validation_sources: Sources = Field([], description="sources to validate with, instead of validation_fraction")

    @classmethod
    def rules(cls, given: Collection[str], values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        yield from super().rules(given, values)
        if values.get("sources") and (values.get("source", _LIBRARY) != _LIBRARY or "path" in given):
            yield "has a source of its own beside [[data.sources]]", "move it into a [[data.sources]] of its own"
        if values.get("validation_sources") and "validation_fraction" in given:
            yield (
                "has validation_sources and validation_fraction, but one set of documents is validated with",
                "keep one of them",
            )

    @property
    def train_sources(self) -> list[Source]:
        """Where training samples come from, and by which weights they count: `sources`, or the table's own source."""
        return list(self.sources) or [self]

    @property
    def validates(self) -> bool:
        """Whether documents are kept apart."""
        return bool(self.validation_sources) or self.validation_fraction is not None
