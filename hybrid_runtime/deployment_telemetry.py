"""The deployment's table [telemetry]: where figures of a running deployment go besides the run folder."""

from __future__ import annotations

from typing import Annotated

from pydantic import Discriminator, Field, Tag

from hybrid_runtime.deployment_fields import PathText, Table

EventFolder = Annotated[
    Annotated[bool, Tag("switch")] | Annotated[PathText, Tag("folder")],
    Discriminator(lambda value: "folder" if isinstance(value, str) else "switch"),
]


class Telemetry(Table):
    """Figures for other tools while the deployment runs. They change nothing of what runs, nor its fingerprint."""

    tensorboard: EventFolder = Field(
        False,
        description="scalars for TensorBoard: true writes them into the run folder, a folder gets a sub-folder per run",
        examples=[True, "runs/tensorboard"],
    )
    prometheus_textfile: PathText | None = Field(
        None,
        description="the folder that node_exporter's textfile collector reads; each machine writes its own ranks",
        examples=["/var/lib/node_exporter/textfile"],
    )
