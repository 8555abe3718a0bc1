"""The deployment's tables [baseline] and [targets]: what is promised, and what speed is compared with."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from decimal import Decimal
from itertools import pairwise
from typing import Any, Literal

from pydantic import Field

from hybrid_runtime.deployment_fields import Degree, NonNegativeNumber, Percent, Positive, PositiveNumber, Table
from hybrid_runtime.predicted_serving import LatencyKind

BaselineKind = Literal["single", "tp_only", "pp_only", "dp_only", "naive_pipeline"]
BalanceMetric = Literal["time_share_range", "work_share_range", "time_rel_spread", "work_rel_spread"]


class Baseline(Table):
    """What the candidate is compared with: same model, global batch and data; other parallel fields."""

    kind: BaselineKind = Field(examples=["single"])
    devices: Degree | None = Field(
        None, description="ranks of the baseline; default: as many as the candidate's", examples=[2]
    )
    microbatch_size: Positive | None = Field(None, description="default: the candidate's", examples=[2])
    others: list[BaselineKind] = Field(
        [], description="other kinds to run and show beside it; they decide nothing", examples=[["tp_only", "pp_only"]]
    )


class LatencyLimits(Table):
    """Limits of a latency's quantiles, in seconds: at most so long for half, for 90 % or for 99 % of the requests."""

    median: PositiveNumber | None = Field(None, description="seconds", examples=["0.5"])
    p90: PositiveNumber | None = Field(None, description="seconds", examples=["1.5"])
    p99: PositiveNumber | None = Field(None, description="seconds", examples=["2"])

    @classmethod
    def rules(cls, given: Collection[str], values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        limits = [values[name] for name in ("median", "p90", "p99") if name in given]
        if not limits:
            yield "limits no quantile", "write for example {p90 = 1.5}"
        if any(first > second for first, second in pairwise(limits)):
            yield "allows a lower quantile more than a higher one", "let median, p90 and p99 rise"

    def given(self) -> Iterator[tuple[str, Decimal]]:
        """(quantile, limit in seconds) of those that are limited."""
        yield from ((name, limit) for name in ("median", "p90", "p99") if (limit := getattr(self, name)) is not None)


class Targets(Table):
    """What is promised. Limits are inclusive: exactly 1 pp passes a limit of 1 pp. An absent target makes no claim."""

    compute_balance_pp: Percent | None = Field(
        None,
        description="largest allowed gap between two devices' shares of compute, in percentage points",
        examples=[1],
    )
    compute_balance_metric: BalanceMetric = "time_share_range"
    memory_balance_pp: Percent | None = Field(
        None, description="largest allowed gap between two devices' shares of peak memory, pp", examples=[1]
    )
    utilisation_percent: Percent | None = Field(
        None, description="compute-busy share of the least busy device", examples=[90]
    )
    latency_reduction_percent: Percent | None = Field(
        None,
        description="of one step against the baseline; where requests are served, of the latency that load.latency "
        "names",
        examples=[30],
    )
    throughput_gain_percent: NonNegativeNumber | None = Field(
        None, description="tokens per second, against the baseline", examples=[50]
    )
    first_token_s: LatencyLimits | None = Field(
        None, description="of a serving deployment: from a request's arrival to its first token", examples=[{"p90": 1}]
    )
    output_token_s: LatencyLimits | None = Field(
        None,
        description="of a serving deployment: the mean time between an answer's tokens after the first",
        examples=[{"median": "0.05"}],
    )
    request_latency_s: LatencyLimits | None = Field(
        None,
        description="of a serving deployment: from a request's arrival to the end of its answer",
        examples=[{"p99": 10}],
    )

    @property
    def latency_limits(self) -> dict[LatencyKind, LatencyLimits]:
        """Those that are given, by what `load.latency` calls the latency."""
        limits: dict[LatencyKind, LatencyLimits | None] = {
            "first_token": self.first_token_s,
            "output_token": self.output_token_s,
            "request": self.request_latency_s,
        }
        return {name: found for name, found in limits.items() if found is not None}
