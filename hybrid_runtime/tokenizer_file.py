"""The tokenizer of texts: a `tokenizers` JSON file, or plain bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from hybrid_runtime.errors import UsageError

BYTES = "bytes"  # instead of a tokenizer's file
END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")


def load_tokenizer(path: Path) -> Any:
    """A `tokenizers.Tokenizer` from its JSON file.

    Raises:
        UsageError: the file is missing or not a tokenizer.
    """
    from tokenizers import Tokenizer  # a third of a second, and byte data does not need it

    if not path.is_file():
        raise UsageError(f"{path}: no such tokenizer file; name 'bytes' or a tokenizer.json")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as problem:  # the library raises bare Exception for every malformed file
        raise UsageError(f"{path}: is not a `tokenizers` JSON file ({problem}); name a tokenizer.json") from None


def tokenizer_sha256(tokenizer: str) -> str | None:
    """SHA-256 of a tokenizer's file; None for BYTES.

    Raises:
        UsageError: as `load_tokenizer`.
    """
    if tokenizer == BYTES:
        return None
    path = Path(tokenizer).expanduser()
    load_tokenizer(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()
