"""The text of an answer while its tokens come: pieces that never part a character, and together the whole text.

A character may be spread over several tokens, and what tokens mean may depend on their neighbours (a sentence's first
token loses its blank). So the newest tokens are decoded together with those before them, what was said already is taken
off, and what may still change is held back:

    tokens held     E2 82            "" is said: the bytes begin a character
                    E2 82 AC         "€" is said

What is held back: an unfinished character, half a flag, and a joiner that joins the next character to it.
"""

from __future__ import annotations

import os.path
from collections.abc import Sequence

from hybrid_runtime.serving.tokenizer import Tokenizer

_UNREADABLE, _JOINER = "\ufffd", "\u200d"
_REGIONAL = range(0x1F1E6, 0x1F200)  # two of these make a flag
_CONTEXT = 6  # tokens of the prompt that an answer's first one is decoded with
_LONGEST = 24  # tokens held back: by then they make no character, and will be shown as they are


class TextStream:
    """One answer's text.

    Args:
        prompt: token ids; the answer goes on behind them.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._tokens = list(prompt[-_CONTEXT:])
        self._before = 0  # tokens from here to _said are decoded again, as context of the newest ones
        self._said = len(self._tokens)

    def push(self, token: int) -> str:
        """The next token's text, with what was held back before it; "" while it may still change."""
        self._tokens.append(token)
        text = self._new_text()
        is_stuck = len(self._tokens) - self._said >= _LONGEST
        return self._say(text) if text and (is_stuck or not _may_change(text)) else ""

    def end(self) -> str:
        """What is held back, when no token comes any more."""
        return self._say(self._new_text()) if len(self._tokens) > self._said else ""

    def _new_text(self) -> str:
        decode = self._tokenizer.decode
        known, whole = decode(self._tokens[self._before : self._said]), decode(self._tokens[self._before :])
        shared = os.path.commonprefix([known, whole])  # less than `known` where that ended in an unfinished character
        return whole[len(shared) :]

    def _say(self, text: str) -> str:
        self._before, self._said = self._said, len(self._tokens)
        return text


def _may_change(text: str) -> bool:
    if text[-1] in (_UNREADABLE, _JOINER):
        return True
    flags = len(text) - len(text.rstrip("".join(map(chr, _REGIONAL))))
    return flags % 2 == 1
