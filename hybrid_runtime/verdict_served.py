"""Part of `verdict.json`: how a deployment that serves answered, and what its devices did for it."""

from __future__ import annotations

from typing import Literal

from hybrid_runtime.verdict_measured import Frozen, Measured


class LatencyRow(Frozen):
    """One quantile of one latency of the requests of a side, in seconds.

    Attributes:
        latency: "first_token", "output_token" or "request".
        quantile: "median", "p90" or "p99".
        measured: None where there are too few requests; `detail` says how many it needs.
    """

    latency: str
    quantile: str
    measured: Measured | None
    detail: str = ""


class PhaseRow(Frozen):
    """What a device did for prefills and for decodes in the recorded rounds; shares are decimal text in percent.

    Attributes:
        prefill_share, decode_share: of the compute of all devices for it; "n/a" where there is none.
        busy: compute over the rounds; `steady_busy`: over that part of them in which every rank has begun and none has
            ended.
        kv_cache_bytes: of keys and values, all slots.
    """

    device: str
    ranks: tuple[int, ...]
    prefill_ns: int
    decode_ns: int
    prefill_share: str
    decode_share: str
    busy: str
    steady_busy: str
    kv_cache_bytes: int


class ServedSide(Frozen):
    """How one side answered, over its judged rounds.

    Attributes:
        rounds, requests: how many were judged, and how many requests they had.
        requests_per_s: as decimal text.
        latencies: for each latency that requests have, its quantiles.
        phases: of rounds whose spans were recorded; empty for a side that has none.
    """

    role: Literal["candidate", "baseline"]
    rounds: int
    requests: int
    requests_per_s: str
    latencies: tuple[LatencyRow, ...]
    phases: tuple[PhaseRow, ...] = ()
