"""Texts of prompts and answers <-> token ids, by the tokenizer that belongs to the model.

Which one, by what is there first:

    [data] tokenizer          the file named there, unless it is 'bytes'
    tokenizer.json            in the folder of [model] weights, then in that of hf_config
    bytes                     every byte is a token; a preset's random weights know no better. Text for a folder's model
                              with a larger vocabulary is refused: it would be read as something else
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.errors import UsageError
from hybrid_runtime.tokenizer_file import BYTES, END_OF_TEXT, load_tokenizer

TOKENIZER = "tokenizer.json"
_MOST_BYTES = 512  # 256 and whatever special tokens somebody adds
_GENERATION, _CONFIG = "generation_config.json", "config.json"


@dataclass(frozen=True)
class Tokenizer:
    """Encodes prompts and decodes answers.

    Attributes:
        name: BYTES, or the tokenizer's file.
        end_tokens: ids after which the model's texts end, as its folder says or, where that is silent, by their name.
        library: a `tokenizers.Tokenizer`; None for bytes.
        missing: why bytes are not what the model was trained on, where that is plain; else "".
    """

    name: str
    end_tokens: frozenset[int]
    library: Any = None
    missing: str = ""

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a prompt, with what the tokenizer sets before it (a beginning of text).

        Raises:
            UsageError: the model's tokenizer is missing.
        """
        if self.missing:
            raise UsageError(self.missing)
        if self.library is None:
            return tuple(text.encode())
        return tuple(self.library.encode(text).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without special ones; bytes that are no UTF-8 become U+FFFD."""
        if self.library is None:
            return bytes(token for token in tokens if token < 256).decode(errors="replace")
        return str(self.library.decode(list(tokens)))


def tokenizer_of(deployment: Deployment) -> Tokenizer:
    """The tokenizer of a deployment's prompts.

    Raises:
        UsageError: its file is unusable.
    """
    folders = _folders(deployment)
    named = deployment.data.tokenizer
    file = Path(named).expanduser() if named != BYTES else _first_file(folders, TOKENIZER)
    if file is None:
        ends = _ends_by_config(folders) or {0}  # byte 0 stands between documents
        return Tokenizer(BYTES, frozenset(ends), missing=_missing(deployment, folders))
    library = load_tokenizer(file)
    by_name = (library.token_to_id(token) for token in END_OF_TEXT)
    ends = _ends_by_config(folders) or {found for found in by_name if found is not None}
    return Tokenizer(str(file), frozenset(ends), library)


def _missing(deployment: Deployment, folders: Sequence[Path]) -> str:
    vocabulary = 0 if deployment.shape is None else deployment.shape.vocab_size
    if not folders or vocabulary <= _MOST_BYTES:
        return ""
    return (
        f"{folders[0]}: has no {TOKENIZER}, and a vocabulary of {vocabulary} tokens is not one of bytes; name the file "
        "by [data] tokenizer, or write prompts as token ids"
    )


def _folders(deployment: Deployment) -> list[Path]:
    """Where the model's files lie."""
    model = deployment.model
    named = [] if model is None else [model.weights, model.hf_config]
    paths = [Path(path).expanduser() for path in named if path is not None]
    return [path if path.is_dir() else path.parent for path in paths]


def _first_file(folders: Sequence[Path], name: str) -> Path | None:
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _ends_by_config(folders: Sequence[Path]) -> set[int]:
    """`eos_token_id` of generation_config.json, else of config.json: a number or a list of them."""
    for name in (_GENERATION, _CONFIG):
        file = _first_file(folders, name)
        if file is None:
            continue
        try:
            ends = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
        except (OSError, ValueError, AttributeError) as problem:
            raise UsageError(f"{file}: is no readable JSON table ({problem}); download it again") from None
        if ends is not None:
            return set(ends if isinstance(ends, list) else [ends])
    return set()
