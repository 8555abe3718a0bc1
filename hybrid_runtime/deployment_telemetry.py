"""The deployment's table [telemetry]: where figures of a running deployment go besides the run folder."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Discriminator, Field, Tag

from hybrid_runtime.deployment_fields import FlopsRateText, PathText, Table, refuse

EventFolder = Annotated[
    Annotated[bool, Tag("switch")] | Annotated[PathText, Tag("folder")],
    Discriminator(lambda value: "folder" if isinstance(value, str) else "switch"),
]


def _project_name(text: str) -> str:
    """W&B takes any but /, \\, #, ?, % and :, up to 128 characters."""
    if not re.fullmatch(r"[^/\\#?%:\x00-\x1f]{1,128}", text):
        raise refuse(
            "is no name of a project, which has 1 to 128 characters and none of / \\ # ? % :", "write 'my-project'"
        )
    return text


Project = Annotated[
    Annotated[bool, Tag("switch")] | Annotated[str, AfterValidator(_project_name), Tag("project")],
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
