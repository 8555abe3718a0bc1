"""What a plan promises of the requests that it serves: part of `predicted.PredictedStep`, whose step is one round of
the load. Times are whole nanoseconds, sizes whole bytes.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

LatencyKind = Literal["request", "first_token", "output_token"]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LatencyTimes(_Frozen):
    """Quantiles over the requests of a round."""

    median_ns: int
    p90_ns: int
    p99_ns: int


class ServedRank(_Frozen):
    """One pipeline rank in one round; its tensor-parallel ranks are alike.

    Attributes:
        prefill_ns, decode_ns: compute of prefills and of decodes, collectives not included.
        kv_cache_bytes: of all slots.
        capacity_tokens: tokens that all sequences together could have in the memory that a device has; None where no
            limit was stated.
    """

    pp_rank: int
    prefill_ns: int
    decode_ns: int
    kv_cache_bytes: int
    capacity_tokens: int | None


class TradeOff(_Frozen):
    """A layout that was calculated: how long its requests wait, and how many tokens a second it makes.

    Attributes:
        latency_ns: median of the latency that the plan is chosen by.
        tokens_per_s: as decimal text.
    """

    tp_degree: int
    pp_degree: int
    microbatch_size: int
    prefill_chunk_tokens: int | None
    latency_ns: int
    tokens_per_s: str


class PredictedServing(_Frozen):
    """Latencies of requests, and what each rank does for prefills and for decodes.

    Attributes:
        latency: which latency the plan was chosen by.
        request: from arrival to the answer's last token; first_token: to its first one; output_token: the mean time
            between its tokens after the first, None where no answer has a second one.
        tokens: that a round makes; of a prefill workload, tokens of prompts that it reads.
        ranks: by pp rank.
        trade_offs: of every mesh, the layouts that no other of the same mesh beats in both latency and throughput; the
            first one is the plan.
    """

    latency: LatencyKind
    request: LatencyTimes
    first_token: LatencyTimes
    output_token: LatencyTimes | None
    tokens: int
    ranks: tuple[ServedRank, ...]
    trade_offs: tuple[TradeOff, ...] = ()
