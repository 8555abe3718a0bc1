"""The requests of the command `generate`: prompts of the command line or a file, and how they are continued."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.errors import UsageError
from hybrid_runtime.serving.load import sampling_of
from hybrid_runtime.serving.prompts import Prompt, read_prompts
from hybrid_runtime.serving.requests import Request, Sampling
from hybrid_runtime.serving.tokenizer import Tokenizer

MOST_TOKENS = 64  # of an answer, where nobody says


class Way(NamedTuple):
    """How answers are wanted; None for what the deployment's [load] says, or greedy where there is none."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    max_new_tokens: int | None = None


def prompts_of(texts: Sequence[str], file: Path | None, tokenizer: Tokenizer) -> list[Prompt]:
    """The prompts of the command line, then those of the file.

    Raises:
        UsageError: there is none, or the file is unusable.
    """
    found = [Prompt(0, _encoded(number, text, tokenizer)) for number, text in enumerate(texts, start=1)]
    found += [] if file is None else read_prompts(file, tokenizer.encode)
    if not found:
        raise UsageError("generate needs something to continue: give --prompt TEXT or --prompts FILE")
    return found


def sampling_for(way: Way, deployment: Deployment) -> Sampling:
    """How every token is drawn.

    Raises:
        UsageError: top_k or top_p beside a temperature of 0.
    """
    seed = deployment.workload.seed if way.seed is None else way.seed
    load = deployment.load
    known = Sampling(seed=seed) if load is None else sampling_of(load, seed)
    if way.temperature == 0 and way.top_k is None and way.top_p is None:
        return Sampling(seed=seed)
    temperature = known.temperature if way.temperature is None else way.temperature
    if not temperature and (way.top_k is not None or way.top_p is not None):
        raise UsageError(
            "--top-k and --top-p mean nothing beside a temperature of 0, which takes the most likely token; "
            "add --temperature 1, or drop them"
        )
    top_k = known.top_k if way.top_k is None else way.top_k
    return Sampling(temperature, top_k, known.top_p if way.top_p is None else way.top_p, seed)


def most_new_tokens(prompt: Prompt, way: Way, capacity: int | None) -> int:
    """Most tokens of a prompt's answer: the line's own, the option's, or as many as there are room for up to 64.

    Args:
        capacity: tokens of a cache; None where caches are made for the prompts.
    """
    asked = prompt.max_new_tokens or way.max_new_tokens
    if asked is not None:
        return asked
    return MOST_TOKENS if capacity is None else max(1, min(MOST_TOKENS, capacity - len(prompt.tokens)))


def requests_of(
    texts: Sequence[str], file: Path | None, way: Way, deployment: Deployment, tokenizer: Tokenizer
) -> list[Request]:
    """A request for every prompt, numbered from 1; bad ones too, for they are refused one by one.

    Args:
        texts: prompts of the command line; those of the file come after them.

    Raises:
        UsageError: as `prompts_of` and `sampling_for`.
    """
    load, batch, sampling = deployment.load, deployment.batch, sampling_for(way, deployment)
    capacity = None if load is None or batch is None else batch.sequence_length
    given = None if load is None else load.stop_tokens
    stops = tokenizer.end_tokens if given is None else frozenset(given)
    return [
        Request(number, prompt.tokens, most_new_tokens(prompt, way, capacity), stops, sampling)
        for number, prompt in enumerate(prompts_of(texts, file, tokenizer), start=1)
    ]


def _encoded(number: int, text: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    try:
        return tokenizer.encode(text) if text else ()  # not even a beginning of text
    except UnicodeEncodeError:
        raise UsageError(
            f"prompt {number} is not UTF-8 text; convert it, or give token ids in --prompts FILE"
        ) from None
