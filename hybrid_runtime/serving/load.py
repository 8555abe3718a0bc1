"""The requests of one round of [load], and when they come: the same in every round, on every mesh, at planning too.

closed loop   8 clients     each sends its next request at the moment it has its answer
open loop     2.5 per s     arrivals are a Poisson process: gaps are drawn from an exponential distribution

Everything is drawn from [workload] seed. Prompts come from a file or are random token ids.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.deployment_load import Load
from hybrid_runtime.errors import UsageError
from hybrid_runtime.serving.prompts import Prompt, read_prompts
from hybrid_runtime.serving.refusals import Limits, limits_of
from hybrid_runtime.serving.requests import Answer, Request, Sampling, Source
from hybrid_runtime.serving.tokenizer import Tokenizer, tokenizer_of

_NS_PER_S = 10**9
_PROMPT_TOKENS = 32  # of synthetic prompts, unless the file says more


@dataclass(frozen=True)
class Traffic:
    """What is asked in every round.

    Attributes:
        requests: in the order in which they are sent.
        clients: of a closed loop; None where arrivals are known in advance.
    """

    requests: tuple[Request, ...]
    clients: int | None

    def begin(self) -> Source:
        """A round that begins now."""
        return Listed(self.requests) if self.clients is None else ClosedLoop(self.requests, self.clients)

    @cached_property
    def prompt_tokens(self) -> int:
        """Of all prompts of a round."""
        return sum(len(request.prompt) for request in self.requests)

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """What is asked, each as the first 16 digits of a SHA-256: tokens of the prompts, how long answers may be and
        how they are drawn, and when requests arrive. A file of prompts may change where its name does not."""
        return {
            "prompts": _digest([request.prompt for request in self.requests]),
            "answers": _digest([_wanted(request) for request in self.requests]),
            "arrivals": _digest([self.clients, *(request.arrival_ns for request in self.requests)]),
        }


def _wanted(request: Request) -> Sequence[object]:
    way = request.sampling
    return (request.max_new_tokens, sorted(request.stop_tokens), way.temperature, way.top_k, way.top_p, way.seed)


def _digest(values: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


class Listed:
    """Requests whose arrivals are known: an open loop, or a command's list that has arrived already."""

    def __init__(self, requests: Iterable[Request]) -> None:
        self._coming = deque(sorted(requests, key=lambda request: request.arrival_ns))

    def due(self, now_ns: int) -> Sequence[Request]:
        """Those that have arrived by now and were not given out before."""
        found = []
        while self._coming and self._coming[0].arrival_ns <= now_ns:
            found.append(self._coming.popleft())
        return found

    @property
    def next_ns(self) -> int | None:
        """When the next one arrives."""
        return self._coming[0].arrival_ns if self._coming else None

    @property
    def is_exhausted(self) -> bool:
        """All were given out."""
        return not self._coming

    def ended(self, answer: Answer, now_ns: int) -> None:
        """Nobody waits for an answer before sending."""


class ClosedLoop:
    """Clients that send a request each, and the next one when they have their answer; all begin at 0."""

    def __init__(self, requests: Sequence[Request], clients: int) -> None:
        first = [replace(request, arrival_ns=0) for request in requests[:clients]]
        self._sent = deque(first)
        self._rest = deque(requests[clients:])

    def due(self, now_ns: int) -> Sequence[Request]:
        """Those that clients have sent by now."""
        found = list(self._sent)
        self._sent.clear()
        return found

    @property
    def next_ns(self) -> int | None:
        """When the oldest one was sent that was not given out; None where all clients wait."""
        return self._sent[0].arrival_ns if self._sent else None

    @property
    def is_exhausted(self) -> bool:
        """All were given out."""
        return not (self._sent or self._rest)

    def ended(self, answer: Answer, now_ns: int) -> None:
        """The client sends its next request, if there is one left."""
        if self._rest:
            self._sent.append(replace(self._rest.popleft(), arrival_ns=now_ns))


def traffic_of(deployment: Deployment) -> Traffic:
    """The requests of a deployment's [load].

    Raises:
        UsageError: the file of prompts is unusable, or a request asks for more than a cache slot holds.
    """
    load = deployment.load
    assert load is not None
    limits = limits_of(deployment)
    requests = _requests(deployment, load, limits)
    for request in requests:
        why = limits.refusal(request)
        if why is not None:
            raise UsageError(f"[load] {why}")
    return Traffic(requests, clients_of(deployment))


class Asked(NamedTuple):
    """What [load] alone says of a request: lengths are None where they stand in a file of prompts."""

    prompt_tokens: int | None
    most_tokens: int | None
    arrival_ns: int


def asked_of(deployment: Deployment) -> tuple[Asked, ...]:
    """Every request of a round without its tokens, in the order of `traffic_of`; no file is read."""
    load, seed = deployment.load, deployment.workload.seed
    assert load is not None
    prompts: Sequence[int | None] = [None] * load.requests
    outputs: Sequence[int | None] = prompts
    if load.prompts is None:
        prompts, outputs = _prompt_lengths(load, seed), _output_lengths(deployment, load)
    elif deployment.workload.kind == "forward":
        outputs = [1] * load.requests
    return tuple(map(Asked, prompts, outputs, _arrivals(load, seed)))


def clients_of(deployment: Deployment) -> int | None:
    """Clients of a closed loop; None where arrivals are known in advance."""
    load, batch = deployment.load, deployment.batch
    assert load is not None
    assert batch is not None
    return None if load.arrivals == "open" else load.concurrency or batch.global_batch_size


def sampling_of(load: Load, seed: int) -> Sampling:
    """How every token of the load is drawn."""
    top_p = None if load.top_p is None else float(load.top_p)
    return Sampling(float(load.temperature), load.top_k, top_p, seed)


def _requests(deployment: Deployment, load: Load, limits: Limits) -> tuple[Request, ...]:
    seed = deployment.workload.seed
    prompts, tokenizer = _prompts(deployment, load, limits)
    outputs = _output_lengths(deployment, load)
    stops = _stop_tokens(load, tokenizer)
    arrivals = _arrivals(load, seed)
    return tuple(
        Request(
            number,
            prompt.tokens,
            most if prompt.max_new_tokens is None or deployment.workload.kind != "generate" else prompt.max_new_tokens,
            stops,
            sampling_of(load, seed),
            arrival_ns,
        )
        for number, (prompt, most, arrival_ns) in enumerate(zip(prompts, outputs, arrivals, strict=True))
    )


def _prompts(deployment: Deployment, load: Load, limits: Limits) -> tuple[list[Prompt], Tokenizer | None]:
    """As many prompts as there are requests; those of a file from its begin again when they run out."""
    if load.prompts is not None:
        tokenizer = tokenizer_of(deployment)
        found = read_prompts(Path(load.prompts).expanduser(), tokenizer.encode)
        return [found[number % len(found)] for number in range(load.requests)], tokenizer
    lengths = _prompt_lengths(load, deployment.workload.seed)
    words = random.Random(f"{deployment.workload.seed} prompts")
    ids = range(limits.vocab_size)
    return [Prompt(0, tuple(words.choices(ids, k=length))) for length in lengths], None


def _prompt_lengths(load: Load, seed: int) -> list[int]:
    """Of synthetic prompts."""
    return _lengths(load.prompt_tokens or _PROMPT_TOKENS, load.requests, random.Random(f"{seed} lengths"))


def _output_lengths(deployment: Deployment, load: Load) -> list[int]:
    """Most tokens of every answer, unless its prompt's file says otherwise."""
    if deployment.workload.kind == "forward":
        return [1] * load.requests
    return _lengths(load.output_tokens, load.requests, random.Random(f"{deployment.workload.seed} answers"))


def _lengths(given: int | list[int], count: int, drawn: random.Random) -> list[int]:
    if isinstance(given, int):
        return [given] * count
    return [drawn.randint(*given) for _ in range(count)]


def _stop_tokens(load: Load, tokenizer: Tokenizer | None) -> frozenset[int]:
    if load.stop_tokens is not None:
        return frozenset(load.stop_tokens)
    return frozenset() if tokenizer is None else tokenizer.end_tokens


def _arrivals(load: Load, seed: int) -> list[int]:
    """Nanoseconds after the begin of the round; of a closed loop, which sends when it can, 0."""
    if load.arrivals == "closed" or load.rate_per_s is None:
        return [0] * load.requests
    drawn = random.Random(f"{seed} arrivals")
    now_s, found = 0.0, []
    for _ in range(load.requests):
        now_s += drawn.expovariate(float(load.rate_per_s))
        found.append(round(now_s * _NS_PER_S))
    return found
