"""Command lines and environment variables are written down for others to read: what looks like a secret is hidden.

By name: MY_TOKEN=..., --api-key ... By form: a key of a known service, user:password@ in an address, long random text.
Rather one harmless value hidden than one password published.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

HIDDEN = "(hidden: looks like a secret)"
_SECRET_NAME = re.compile(
    r"token(?!izer)|secret|passw|pwd|credential|api.?key|access.?key|private|auth|signature", re.I
)
_SECRET_VALUE = re.compile(
    r"\b(sk-|sk_|hf_|gh[pousr]_|github_pat_|glpat-|xox[abprs]-|AKIA|ASIA|AIza|ya29\.|eyJ)[A-Za-z0-9_\-]{8,}"
    r"|-----BEGIN|://[^/\s:@]*:[^/\s@]+@|\b[Bb]earer\s"
)
_LONG = re.compile(r"[A-Za-z0-9]{24,}")
_HEX = re.compile(r"\b[0-9a-fA-F]{32,}\b")


def hidden(name: str, value: str) -> str:
    """The value, or `HIDDEN` if its name or its form says that it is a secret."""
    return HIDDEN if _SECRET_NAME.search(name) or _looks_secret(value) else value


def hidden_words(words: Sequence[str]) -> list[str]:
    """A command line: `--token x`, `--token=x` and `TOKEN=x` lose their values, any word of a secret's form itself."""
    shown: list[str] = []
    for position, word in enumerate(words):
        name, equals, value = word.partition("=")
        before = words[position - 1] if position else ""
        if equals and not _looks_secret(name):
            shown.append(f"{name}={hidden(name, value)}")
        elif before.startswith("-") and "=" not in before and not word.startswith("-"):
            shown.append(hidden(before, word))
        else:
            shown.append(HIDDEN if _looks_secret(word) else word)
    return shown


def _looks_secret(value: str) -> bool:
    return bool(_SECRET_VALUE.search(value) or _HEX.search(value)) or any(map(_is_random, _LONG.findall(value)))


def _is_random(run: str) -> bool:
    """Letters of both cases and digits, mixed, without a break: no word and no number looks like that."""
    return all(re.search(kind, run) for kind in ("[a-z]", "[A-Z]", "[0-9]"))
