"""Prompts from a file, a line each.

    prompts.txt      Once upon a time                                               the line is the prompt
    prompts.jsonl    {"prompt": "Once upon a time", "max_new_tokens": 20}           text
                     {"prompt": [1, 306, 4658]}                                     or token ids

Blank lines are left out. A line that cannot be used is named by its number, and nothing runs.
"""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hybrid_runtime.errors import UsageError

_JSON_LINES = (".jsonl", ".ndjson")
_FIELDS = ("prompt", "max_new_tokens")


class Prompt(NamedTuple):
    """A prompt of a file.

    Attributes:
        line: its number in the file, from 1.
        max_new_tokens: where the line says one.
    """

    line: int
    tokens: tuple[int, ...]
    max_new_tokens: int | None = None


def read_prompts(path: Path, encode: Callable[[str], tuple[int, ...]]) -> list[Prompt]:
    """All prompts of a file; at least one.

    Raises:
        UsageError: it cannot be read, a line cannot be used (all of them are named, the first five in words), or there
            is no prompt.
    """
    is_json = path.suffix.lower() in _JSON_LINES
    prompts: list[Prompt] = []
    problems: list[str] = []
    for number, line in _lines(path):
        try:
            prompts.append(_of_json(number, line, encode) if is_json else Prompt(number, encode(line)))
        except _Unusable as problem:
            problems.append(f"line {number} {problem}")
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise UsageError(f"{path}: {'; '.join(problems[:5])}{more}; mend or remove the line")
    if not prompts:
        raise UsageError(f"{path}: holds no prompt; write one on every line")
    return prompts


class _Unusable(ValueError):
    """What is wrong with a line."""


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers, without their ends."""
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise UsageError(f"{path}: cannot be read ({problem.strerror}); name a file of prompts") from None
    for number, raw in enumerate(content.removeprefix(BOM_UTF8).split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            yield number, raw.decode("utf-8").rstrip("\r")
        except UnicodeDecodeError:
            raise UsageError(f"{path}: line {number} is not UTF-8 text; convert the file") from None


def _of_json(number: int, line: str, encode: Callable[[str], tuple[int, ...]]) -> Prompt:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as problem:
        raise _Unusable(f"is not JSON ({problem})") from None
    if not isinstance(value, dict) or "prompt" not in value:
        raise _Unusable('has no field "prompt"')
    unknown = [name for name in value if name not in _FIELDS]
    if unknown:
        raise _Unusable(f"has the field {unknown[0]!r:.40}, which nothing reads (known are {' and '.join(_FIELDS)})")
    most = value.get("max_new_tokens")
    if most is not None and not (_is_number(most) and most >= 1):
        raise _Unusable(f"has max_new_tokens = {most!r:.40}, which is not a whole number from 1 on")
    return Prompt(number, _tokens(value["prompt"], encode), most)


def _tokens(prompt: Any, encode: Callable[[str], tuple[int, ...]]) -> tuple[int, ...]:
    if isinstance(prompt, str):
        try:
            return encode(prompt)
        except UnicodeEncodeError:
            raise _Unusable("holds half of a surrogate pair") from None
    if isinstance(prompt, list) and all(_is_number(token) for token in prompt):
        return tuple(prompt)
    raise _Unusable(f"has a prompt that is neither text nor a list of token ids ({prompt!r:.40})")


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
