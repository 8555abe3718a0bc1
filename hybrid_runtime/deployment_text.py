"""The bytes of a deployment file -> plain values. TOML or JSON; decimals stay `Decimal`; nothing is validated here.

Whatever the bytes are, the only errors are one-sentence ones: files come from editors, templates and accidents.
"""

from __future__ import annotations

import json
import re
import tomllib
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from hybrid_runtime.errors import Problem, UsageError

MAX_BYTES = 1 << 20


def read_values(path: Path) -> tuple[object, list[Problem]]:
    """Reads a file whose name ends in .json as JSON and every other one as TOML.

    Returns:
        The values, and the problems that the parser would have swallowed: JSON keys that stand twice in one object.

    Raises:
        UsageError: the file cannot be read, or its text is neither.
    """
    text = _text(path)
    if path.suffix.lower() == ".json" and (half := _half_character(text)):
        raise UsageError(f"{path}: {half} is half of a character; write the character itself, or both halves")
    repeated: list[Problem] = []
    kind = "JSON" if path.suffix.lower() == ".json" else "TOML"
    try:
        if kind == "TOML":
            return tomllib.loads(text, parse_float=_decimal), repeated
        values = json.loads(
            text, parse_float=_decimal, parse_constant=Decimal, object_pairs_hook=lambda pairs: _table(pairs, repeated)
        )
        return values, repeated
    except RecursionError:
        raise UsageError(
            f"{path}: is nested too deeply to be a deployment file; two levels of tables suffice"
        ) from None
    except ValueError as problem:
        raise UsageError(f"{path}: is not valid {kind} ({_words(problem)}); {_mend(text, kind)}") from None


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as problem:
        raise UsageError(f"{path}: cannot be read ({problem.strerror}); name an existing deployment file") from None
    except ValueError:
        raise UsageError(f"{str(path)!r}: is not a file name (it holds a NUL character)") from None
    if len(content) > MAX_BYTES:
        raise UsageError(f"{path}: is larger than 1 MiB; a deployment file is a few kilobytes of TOML or JSON")
    try:
        return content.decode("utf-8-sig")  # editors on Windows write a byte order mark
    except UnicodeDecodeError as problem:
        raise UsageError(f"{path}: is not UTF-8 text (byte {problem.start}); save the file as UTF-8") from None


def _half_character(text: str) -> str:
    """A JSON escape of one half of a surrogate pair, which no text file and no terminal can hold; empty if none."""
    without_pairs = re.sub(r"\\\\|\\u[dD][89abAB]..\\u[dD][c-fC-F]..", "", text)
    found = re.search(r"\\u[dD][89a-fA-F]..", without_pairs)
    return found[0] if found else ""


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent beyond what Decimal holds; refused later, with its key
        return Decimal("Infinity")


def _table(pairs: list[tuple[str, Any]], repeated: list[Problem]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        for name in table:
            if names.count(name) > 1:
                message = f"stands {names.count(name)} times in one object"
                repeated.append(Problem(repr(name), "", message, "keep one of them"))
    return table


def _words(problem: ValueError) -> str:
    """The parser's own words, with the place; without Python's advice about its own settings."""
    text = str(problem)
    return "a whole number has more than 4300 digits" if "set_int_max_str_digits" in text else text.rstrip(".")


def _mend(text: str, kind: str) -> str:
    if kind == "TOML" and re.match(r"\s*[{\[]\s*[\"{}\[]", text):
        return "if it is JSON, its name must end in .json"
    return "mend the place that is named"
