"""The [declared] table: figures that somebody wrote down about a deployment."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated

from pydantic import Field, field_validator

from hybrid_runtime import exact
from hybrid_runtime.deployment_fields import Count, Positive, ReductionText, ShareText, Table, refuse


class DeclaredCounts(Table):
    """How many requirements somebody reported as passed, failed and in total."""

    passed: Count = Field(examples=[10])
    failed: Count = Field(examples=[2])
    total: Count = Field(examples=[12])


class Declared(Table):
    """Figures that somebody wrote down. They are checked for consistency and never become measurements."""

    strategy: str | None = Field(None, description="names the axes", examples=["hybrid_tensor_pipeline"])
    num_parts: Positive | None = Field(None, description="parts that the model is divided into", examples=[3])
    device_assignment: Annotated[dict[str, list[str]], Field(min_length=1)] | None = Field(
        None, description="device -> what it holds", examples=[{"gpu_0": ["part_0"]}]
    )
    computation_distribution: dict[str, ShareText] | None = Field(
        None, description="device -> its share, with % unit", examples=[{"gpu_0": "33.33%_computation"}]
    )
    memory_distribution: dict[str, ShareText] | None = Field(
        None, description="device -> its share, with % unit", examples=[{"gpu_0": "33.33%_memory"}]
    )
    latency_reduction: ReductionText | None = Field(None, examples=["40%"])
    throughput_gain: ShareText | None = Field(None, examples=["60%"])
    utilisation: ShareText | None = Field(None, examples=["95%"])
    requirements: DeclaredCounts | None = Field(None, examples=[{"passed": 10, "failed": 2, "total": 12}])

    @field_validator("computation_distribution", "memory_distribution")
    @classmethod
    def _whole(cls, shares: dict[str, str] | None) -> dict[str, str] | None:
        parsed = [exact.parse_share(text) for text in (shares or {}).values()]
        if shares is not None and not exact.sums_to_one(parsed):
            total = exact.decimal_text(sum((share.value for share in parsed), Fraction()) * 100, places=9)
            message = f"sums to {total} %, which the rounding of its shares does not explain"
            raise refuse(message, "give one share per device; together they are 100 %")
        return shares
