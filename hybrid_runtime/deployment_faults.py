"""The deployment's table [faults]: how long nothing may happen, and what follows on numbers that are not finite."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hybrid_runtime.deployment_fields import Positive, Table


class Faults(Table):
    """What a run does when something goes wrong."""

    hang_limit_s: Annotated[int, Field(ge=0, le=10**6)] = Field(
        300,
        description="seconds in which no rank begins anything, after which the run is ended and the rank that holds up "
        "the others named; 0: never",
    )
    non_finite: Literal["stop", "skip"] = Field(
        "stop",
        description="when the loss or a gradient is not finite: stop, or skip the step's update and go on; in either "
        "case the first unit that made such a number is named",
    )
    most_skips_in_a_row: Positive = Field(
        20,
        description="with non_finite = 'skip': steps skipped one after the other before the run is stopped after all",
    )
