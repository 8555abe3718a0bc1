"""The table [measurement] of a deployment file: how long and in which order the verifier measures."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from hybrid_runtime.deployment_fields import Count, Positive, Table


class Measurement(Table):
    """How the verifier measures. Steps are whole optimizer steps (or forward passes)."""

    warmup_steps: Positive = Field(10, description="steps of each side that are recorded but never judged")
    batch_steps: Positive = Field(10, description="consecutive steps averaged into one sample")
    block_steps: Positive = Field(10, description="steps of one side before the other side's turn")
    settle_steps: Count = Field(1, description="unjudged steps at the start of each block: caches went cold meanwhile")
    blocks: Positive = Field(12, description="blocks of each side before the first look, in the order A B B A")
    looks: Annotated[int, Field(ge=1, le=5)] = Field(
        3, description="looks that share the error budget: while a claim is undecided, the blocks are doubled"
    )
    budget_s: Positive = Field(900, description="seconds of measuring after which no further look is begun")
    self_test: bool = Field(
        True,
        description="verify also tests itself: planted imbalances before the first block, A/A and telemetry's cost",
    )
    timeout_s: Positive = Field(1800, description="a run in which no step is finished for so long is stopped")
