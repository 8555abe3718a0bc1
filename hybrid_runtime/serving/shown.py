"""How answers are shown while they are made: as text, as labelled lines where several share an output, as JSON lines.

one prompt         the text, as it comes
several            [2] a line of the second answer, when it is whole
JSON lines         {"prompt": 2, "token": 17, "text": " and"}
                   {"prompt": 2, "end": "length", "why": "", "text": "...", "tokens": [...], "first_token_s": ...}
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Protocol

from hybrid_runtime.errors import ExitCode
from hybrid_runtime.serving.clients import Client
from hybrid_runtime.serving.line import Ended, Token
from hybrid_runtime.serving.requests import Request
from hybrid_runtime.serving.text_stream import TextStream
from hybrid_runtime.serving.tokenizer import Tokenizer

_NS_PER_S = 10**9


class Shown(Protocol):
    """An answer on its way to its reader."""

    client: Client

    def token(self, token: int, text: str) -> bool:
        """The next token, and what text it adds; False if nobody reads any more."""

    def ended(self, ended: Ended, rest: str) -> None:
        """The answer is whole, with what was held back of its text."""


class Plain:
    """The text alone."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._ends_line = True

    def token(self, token: int, text: str) -> bool:
        """Shows it at once."""
        self._ends_line = text.endswith("\n") if text else self._ends_line
        return self.client.give(text)

    def ended(self, ended: Ended, rest: str) -> None:
        """Ends the line."""
        self.token(-1, rest)
        self.client.give("" if self._ends_line else "\n")


class Labelled:
    """Whole lines, each behind the prompt's number: lines of several answers come in any order."""

    def __init__(self, client: Client, number: int) -> None:
        self.client = client
        self._label = f"[{number}] "
        self._line = ""

    def token(self, token: int, text: str) -> bool:
        """Shows the lines that are whole now."""
        *whole, self._line = (self._line + text).split("\n")
        return self.client.give("".join(f"{self._label}{line}\n" for line in whole))

    def ended(self, ended: Ended, rest: str) -> None:
        """Shows the last line."""
        self.token(-1, rest)
        self.client.give(f"{self._label}{self._line}\n" if self._line else "")


class JsonLines:
    """A line for every token, and one at the end."""

    def __init__(self, client: Client, number: int) -> None:
        self.client = client
        self._number = number
        self._text = ""

    def token(self, token: int, text: str) -> bool:
        """Shows it at once; text that is held back comes with a later token."""
        self._text += text
        return self._give({"prompt": self._number, "token": token, "text": text})

    def ended(self, ended: Ended, rest: str) -> None:
        """The whole answer and its times in seconds: of the first token, of the mean later one, of all."""
        first_s, later_s = times_s(ended)
        values = {
            "prompt": self._number,
            "end": ended.end,
            "why": ended.why,
            "text": self._text + rest,
            "tokens": ended.tokens,
            "first_token_s": first_s,
            "output_token_s": later_s,
            "whole_s": ended.whole_ns / _NS_PER_S,
        }
        self._give(values)

    def _give(self, values: Mapping[str, object]) -> bool:
        return self.client.give(json.dumps(values, ensure_ascii=False) + "\n")


class Reading:
    """All requests of a command, from their first token to what is said of them at the end.

    Args:
        shown: how each request's answer is shown, by its id.
        say: a sentence for standard error.
        cancel: tells rank 0 that nobody reads an answer any more.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        shown: Mapping[int, Shown],
        tokenizer: Tokenizer,
        say: Callable[[str], None],
        cancel: Callable[[int], None],
    ) -> None:
        self._shown = shown
        self._streams = {request.id: TextStream(tokenizer, request.prompt) for request in requests}
        self._say = say
        self._cancel = cancel
        self._ended: list[Ended] = []
        self._unread: set[int] = set()
        self._readers = Counter(id(one.client) for one in shown.values())  # answers that each client waits for

    @property
    def is_whole(self) -> bool:
        """Every request has its answer, or was refused or cancelled."""
        return len(self._ended) == len(self._streams)

    @property
    def how_far(self) -> str:
        """How many requests have ended, in words."""
        return f"{len(self._ended)} of {_count(len(self._streams), 'request')} had ended"

    def take(self, news: Token | Ended) -> None:
        """Shows what has happened."""
        shown, stream = self._shown[news.request], self._streams[news.request]
        if isinstance(news, Token):
            is_read = shown.token(news.token, stream.push(news.token))
            if not is_read and news.request not in self._unread:
                self._unread.add(news.request)
                self._cancel(news.request)
            return
        self._ended.append(news)
        shown.ended(news, stream.end())
        self._readers[id(shown.client)] -= 1
        if not self._readers[id(shown.client)]:
            shown.client.end()
        if news.request in self._unread:
            self._say(f"request {news.request} is cancelled: {shown.client.problem}")
        elif news.why:
            self._say(news.why)

    def finish(self) -> None:
        """Waits for the readers, and says who did not read to the end."""
        for number, shown in self._shown.items():
            shown.client.wait()
            if shown.client.problem is not None and number not in self._unread:
                self._unread.add(number)
                self._say(f"request {number} is not read to its end: {shown.client.problem}")

    @property
    def exit_code(self) -> ExitCode:
        """PASS if every answer was made and read; ERROR if one was cancelled; else USAGE: one was refused."""
        if self._unread or any(ended.end == "cancelled" for ended in self._ended):
            return ExitCode.ERROR
        return ExitCode.USAGE if any(ended.end == "refused" for ended in self._ended) else ExitCode.PASS

    @property
    def summary(self) -> str:
        """How many answers, how fast; medians over answers."""
        answers = [ended for ended in self._ended if ended.tokens]
        if not answers:
            return "no answer"
        tokens, whole_s = (
            sum(len(ended.tokens) for ended in answers),
            max(ended.whole_ns for ended in answers) / _NS_PER_S,
        )
        times = [times_s(ended) for ended in answers]
        first = median(first_s for first_s, _ in times if first_s is not None)
        later = [later_s for _, later_s in times if later_s is not None]
        words = f"{_count(len(answers), 'answer')}, {_count(tokens, 'token')} in {whole_s:.2f} s: "
        words += f"{'median ' if len(answers) > 1 else ''}time to first token {first * 1000:.0f} ms"
        words += f", per output token {median(later) * 1000:.1f} ms" if later else ""
        return f"{words}; {tokens / whole_s:.1f} tokens/s"


def times_s(ended: Ended) -> tuple[float | None, float | None]:
    """Time to the first token, and from it to the last for each token after it, in seconds."""
    if ended.first_token_ns is None:
        return None, None
    later = len(ended.tokens) - 1
    later_s = (ended.whole_ns - ended.first_token_ns) / later / _NS_PER_S if later else None
    return ended.first_token_ns / _NS_PER_S, later_s


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
