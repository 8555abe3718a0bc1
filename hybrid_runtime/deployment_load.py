"""The deployment's table [load]: what a serving deployment is asked, of workloads `forward` and `generate`.

closed loop   a fixed number of clients; each sends its next request when it has its answer
open loop     requests arrive at random at a stated rate (a Poisson process), however long answers take

One step of a run is one round of the load: all its requests, sent and answered. Every round has the same prompts, and
warm-up rounds are not judged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import Field

from hybrid_runtime.deployment_fields import NonNegativeNumber, PathText, Positive, PositiveNumber, Table

Length = Annotated[list[Positive], Field(min_length=2, max_length=2)]
TopP = Annotated[PositiveNumber, Field(le=1)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]


class Load(Table):
    """Requests of one step, how they arrive, and how they are answered."""

    requests: Positive = Field(16, description="requests of one step (one round of the load)")
    arrivals: Literal["closed", "open"] = Field(
        "closed", description="closed: `concurrency` clients; open: `rate_per_s`"
    )
    concurrency: Positive | None = Field(
        None, description="clients of a closed loop; default: batch.global_batch_size", examples=[8]
    )
    rate_per_s: PositiveNumber | None = Field(
        None, description="mean requests per second of an open loop", examples=[2.5]
    )
    prompts: PathText | None = Field(
        None,
        description='a text file with a prompt on every line, or .jsonl with {"prompt": ..., "max_new_tokens": ...}; '
        "default: random token ids of `prompt_tokens`",
        examples=["prompts.jsonl"],
    )
    prompt_tokens: Positive | Length | None = Field(
        None,
        description="length of synthetic prompts, or [shortest, longest] for equally likely ones; default: 32",
        examples=[[16, 64]],
    )
    output_tokens: Positive | Length = Field(
        32, description="tokens to generate for each, or [least, most]; workload generate only", examples=[[8, 64]]
    )
    stop_tokens: list[TokenId] | None = Field(
        None,
        description="an answer ends after one of these; default: the model's own end of text for prompts from a file, "
        "and none for synthetic ones",
        examples=[[2]],
    )
    temperature: NonNegativeNumber = Field(Decimal(0), description="0: the most likely token (greedy)")
    top_k: Positive | None = Field(None, description="only so many most likely tokens", examples=[50])
    top_p: TopP | None = Field(
        None, description="only the most likely tokens that together have this probability", examples=["0.9"]
    )
    latency: Literal["request", "first_token", "output_token"] = Field(
        "request",
        description="what latency_reduction_percent speaks of: a whole answer, its first token, or the mean time "
        "between its tokens after the first",
    )

    @classmethod
    def rules(cls, given: Collection[str], values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        arrivals = values.get("arrivals", "closed")
        if arrivals == "open" and values.get("rate_per_s") is None:
            yield "has open arrivals and no rate", "add rate_per_s, for example rate_per_s = 2.5"
        if arrivals == "open" and values.get("concurrency") is not None:
            yield "has a concurrency, which an open loop does not obey", "remove it, or set arrivals = 'closed'"
        if arrivals == "closed" and values.get("rate_per_s") is not None:
            yield "has a rate, which a closed loop does not obey", "remove it, or set arrivals = 'open'"
        if "prompts" in given and "prompt_tokens" in given:
            yield "has both prompts and prompt_tokens", "remove prompt_tokens: the prompts have their own lengths"
        for name in ("prompt_tokens", "output_tokens"):
            bounds = values.get(name)
            if isinstance(bounds, list) and len(bounds) == 2 and bounds[0] > bounds[1]:
                yield f"{name} = {bounds} begins with the longer one", f"write {name} = {bounds[::-1]}"
        if not values.get("temperature", 0) and (values.get("top_k") or values.get("top_p")):
            yield "has top_k or top_p, but a temperature of 0 always takes the most likely token", "set temperature = 1"
