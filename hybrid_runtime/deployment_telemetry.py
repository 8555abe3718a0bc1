"""The deployment's table [telemetry]: where figures of a running deployment go besides the run folder."""

from __future__ import annotations

from typing import Annotated

from pydantic import Discriminator, Field, Tag

from hybrid_runtime.deployment_fields import FlopsRateText, PathText, Table

EventFolder = Annotated[
    Annotated[bool, Tag("switch")] | Annotated[PathText, Tag("folder")],
    Discriminator(lambda value: "folder" if isinstance(value, str) else "switch"),
]

ProjectName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._ -]{1,128}$")]
Project = Annotated[
    Annotated[bool, Tag("switch")] | Annotated[ProjectName, Tag("project")],
    Discriminator(lambda value: "project" if isinstance(value, str) else "switch"),
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
    wandb: Project = Field(
        False,
        description="a run of Weights & Biases: true for a project of the deployment's name, or the project",
        examples=[True, "my-project"],
    )
    peak_flops_per_device: FlopsRateText | None = Field(
        None,
        description="the most that a device can do, with GFLOP/s, TFLOP/s or PFLOP/s, for the model FLOPs utilisation; "
        "default: by the device's name, from a table of data sheets",
        examples=["312 TFLOP/s"],
    )
