"""The deployment's tables [batch] and [workload]: how much one step does, and what."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hybrid_runtime.deployment_fields import Positive, Table


class Batch(Table):
    """Sizes of one optimizer step, in sequences and tokens; of a serving deployment, of its caches."""

    global_batch_size: Positive = Field(
        description="sequences of one optimizer step, over all replicas; of a serving deployment (one with [load]), "
        "those that are served at once",
        examples=[16],
    )
    microbatch_size: Positive = Field(description="sequences that pass the pipeline together", examples=[2])
    sequence_length: Positive = Field(
        description="tokens of one sequence; of a serving deployment the most, prompt and answer together",
        examples=[128],
    )
    prefill_chunk_tokens: Positive | None = Field(
        None,
        description="of a serving deployment: most tokens of prompts that pass the pipeline together; default: whole "
        "prompts",
        examples=[256],
    )
    items_in_flight: Positive | None = Field(
        None,
        description="of a serving deployment: most microbatches that are on their way through the pipeline at a time; "
        "default: all of them; 1 is what a pipeline without overlap does",
        examples=[4],
    )


class Workload(Table):
    """What one step does."""

    kind: Literal["train", "forward", "generate"] = Field(
        "train",
        description="train; forward: losses only, or with [load] prompts to their first tokens (prefill); generate: "
        "prompts of [load] to whole answers",
    )
    steps: Positive = Field(100, description="steps of a plain run, warm-up included")
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    validate_every: Positive | None = Field(
        None, description="steps of a training between two validations; the last step ends with one", examples=[100]
    )
    validation_batches: Positive = Field(8, description="global batches of one validation, the same ones every time")

    @property
    def passes(self) -> Literal["train", "forward"]:
        """What passes the model in a step, in the words of plans and schedules: answers are forward passes, too."""
        return "train" if self.kind == "train" else "forward"
