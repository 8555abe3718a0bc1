"""The deployment's table [export]: the trained model as a Hugging Face folder."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hybrid_runtime.deployment_fields import PathText, SizeText, Table


class Export(Table):
    """Where the model goes at the end of a run, for transformers and whoever reads its folders."""

    folder: PathText = Field(
        description="new, whole or not at all, on a disk that all machines share; --resume replaces an earlier one",
        examples=["models/mine"],
    )
    dtype: Literal["float32", "bfloat16"] | None = Field(
        None,
        description="of the weights in the folder; default: the model's, or float32 if it came so and has masters",
        examples=["bfloat16"],
    )
    max_file_size: SizeText = Field("5 GB", description="of one file of weights", examples=["2 GB"])
