"""The deployment's table [optimizer]."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from decimal import Decimal
from typing import Any, Literal

from pydantic import Field

from hybrid_runtime.deployment_fields import Count, Fraction01, NonNegativeNumber, Positive, PositiveNumber, Table


class Optimizer(Table):
    """AdamW, and how its learning rate goes."""

    learning_rate: PositiveNumber = Field(Decimal("0.001"), description="the highest, after the warm-up")
    final_learning_rate: NonNegativeNumber = Field(Decimal(0), description="where cosine and linear end")
    warmup_steps: Count = Field(0, description="steps of a linear rise at the beginning")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="after the warm-up")
    decay_steps: Positive | None = Field(
        None,
        description="steps, warm-up included, after which final_learning_rate is reached; default: workload.steps",
        examples=[1000],
    )
    weight_decay: NonNegativeNumber = Decimal("0.1")
    beta1: Fraction01 = Decimal("0.9")
    beta2: Fraction01 = Decimal("0.95")
    eps: PositiveNumber = Decimal("0.00000001")
    clip_norm: PositiveNumber | None = Decimal("1.0")
    master_weights: bool = Field(
        True,
        description="of bfloat16 parameters: gradients are summed and AdamW works in float32, on float32 copies of the "
        "parameters; false keeps everything in bfloat16, which saves 10 bytes per parameter and loses small updates",
    )

    @classmethod
    def rules(cls, given: Collection[str], values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        if values.get("schedule") == "constant":
            for name in ("final_learning_rate", "decay_steps"):
                if values.get(name):
                    yield (
                        f"has {name}, where a constant schedule never gets",
                        f"remove {name}, or choose another schedule",
                    )
