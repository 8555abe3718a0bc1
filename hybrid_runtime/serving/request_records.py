"""What became of every request: `records/requests.jsonl`, written by rank 0 of a deployment that serves.

A line is one request of one round (step) of the load, in the order in which the answers ended. Times are nanoseconds
of the clock of rank 0's host (CLOCK_MONOTONIC), as those of rank 0's step records. Warm-up rounds are there too.

    arrival ---- admitted ------------- first token - - - - - - ended
            waits         its prefill                its decodes

    time to first token     first token - arrival
    time per output token   (ended - first token) / (output tokens - 1), of an answer of two tokens or more
    latency                 ended - arrival
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from hybrid_runtime.errors import RecordsError
from hybrid_runtime.predicted_serving import LatencyKind
from hybrid_runtime.serving.latencies import latency_ns
from hybrid_runtime.serving.requests import Answer, End


class RequestRecord(BaseModel):
    """One request of one round.

    Attributes:
        arrival_ns: when its client sent it.
        admitted_ns: when it got its cache slot; None if it never did.
        first_token_ns: when its first token was known to rank 0; None if there was none.
        ended_ns: when its last token was, or when it was refused or cancelled.
        prompt_tokens, output_tokens: how many; a stop token counts.
        digest: of the answer's tokens, the begin of a SHA-256: equal answers have equal ones.
        first_token_id: the answer's first token; None if there was none, or in records of an older version.
        end: why it ended; `why` says it in words if it was refused or cancelled.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    id: int
    arrival_ns: int
    admitted_ns: int | None
    first_token_ns: int | None
    ended_ns: int
    prompt_tokens: int
    output_tokens: int
    digest: str
    end: End
    why: str = ""
    first_token_id: int | None = None

    @property
    def is_answered(self) -> bool:
        """It came to its own end."""
        return self.end in ("stop", "length")

    def latency_ns(self, kind: LatencyKind) -> Fraction | None:
        """One of its latencies; None where it has none: it was not answered, or has one token only."""
        return latency_ns(
            kind,
            arrival_ns=self.arrival_ns,
            first_token_ns=self.first_token_ns,
            ended_ns=self.ended_ns,
            num_tokens=self.output_tokens,
            end=self.end,
        )


_RECORD = TypeAdapter(RequestRecord)


def record_of(answer: Answer, step: int, began_ns: int) -> RequestRecord:
    """The record of an answer, whose times count from `began_ns`, the begin of its round."""

    def at(time_ns: int | None) -> int | None:
        return None if time_ns is None else began_ns + time_ns

    return RequestRecord(
        step=step,
        id=answer.request.id,
        arrival_ns=began_ns + answer.arrival_ns,
        admitted_ns=at(answer.admitted_ns),
        first_token_ns=at(answer.first_token_ns),
        ended_ns=began_ns + answer.ended_ns,
        prompt_tokens=len(answer.request.prompt),
        output_tokens=len(answer.tokens),
        digest=digest_of(answer.tokens),
        end=answer.end,
        why=answer.why,
        first_token_id=answer.tokens[0] if answer.tokens else None,
    )


def digest_of(tokens: Sequence[int]) -> str:
    """16 hexadecimal digits that equal answers share."""
    return hashlib.sha256(",".join(map(str, tokens)).encode()).hexdigest()[:16]


def to_lines(records: Iterable[RequestRecord]) -> str:
    """One line of JSON each, newlines included."""
    return "".join(json.dumps(record.model_dump(mode="json"), separators=(",", ":")) + "\n" for record in records)


def read_requests(path: Path) -> tuple[RequestRecord, ...]:
    """Parses a file of requests.

    Raises:
        RecordsError: unreadable, or a line that is not a record (named by number).
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as problem:
        raise RecordsError(f"{path}: cannot be read ({problem.strerror}); make the run again") from None
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            values: Any = json.loads(line)
            found.append(_RECORD.validate_python(values))
        except (ValueError, TypeError, RecursionError) as problem:
            what = problem.errors()[0]["msg"] if isinstance(problem, ValidationError) else str(problem)
            raise RecordsError(
                f"{path}, line {number}: not a record of a request ({what}); the file was cut or edited, make the run "
                "again"
            ) from None
    return tuple(found)
