"""The deployment's table [checkpoint]: where, how often and how many checkpoints of a training are kept."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from hybrid_runtime.deployment_fields import PathText, Positive, Table


class Checkpoint(Table):
    """Checkpoints of a run. `verify` measures and writes none."""

    folder: PathText = Field(
        description="folder of this training's checkpoints, which all machines share", examples=["checkpoints/my-run"]
    )
    every: Positive = Field(100, description="steps from one checkpoint to the next; the last step always writes one")
    keep: Annotated[int, Field(ge=1, le=10**6)] = Field(2, description="whole checkpoints that are kept, the newest")
    asynchronous: bool = Field(
        True, description="steps wait for the copy to host memory only, and a thread writes it; false: for the disk too"
    )
    grace_s: Annotated[int, Field(ge=1, le=86400)] = Field(
        25, description="after SIGTERM, seconds to finish the step and write a checkpoint; torchrun itself allows 30"
    )
