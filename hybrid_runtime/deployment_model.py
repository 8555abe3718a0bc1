"""The table [model] of a deployment file: a preset, a Hugging Face folder, or a user's own units."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from hybrid_runtime.deployment_errors import nearest
from hybrid_runtime.deployment_fields import OptionTable, PathText, Positive, PositiveNumber, Table, refuse
from hybrid_runtime.shapes import MAX_LAYERS, OVERRIDABLE, PRESETS


class Model(Table):
    """Which model: a preset, a Hugging Face folder, or `module:function` returning units; sizes override a preset's."""

    preset: str | None = Field(
        None, description="name of a built-in shape, e.g. tiny, llama-3-8b, qwen2.5-7b", examples=["tiny"]
    )
    hf_config: PathText | None = Field(
        None, description="a Hugging Face config.json or the folder that holds it", examples=["models/my-llama"]
    )
    units: str | None = Field(
        None,
        description="your own model: 'module:function' that returns a list of UnitSpec",
        examples=["my_model:units"],
    )
    options: OptionTable = Field(
        default_factory=dict, description="keyword arguments of your own function", examples=[{"width": 64}]
    )
    weights: PathText | None = Field(
        None, description="folder of safetensors files in Hugging Face names; else random", examples=["models/my-llama"]
    )
    dtype: Literal["float32", "bfloat16"] = "float32"
    compile: bool = Field(
        False,
        description="torch.compile of what units compute between parallel layers; the first step then takes longer",
    )
    vocab_size: Positive | None = Field(None, examples=[32000])
    hidden_size: Positive | None = Field(None, examples=[256])
    num_layers: Annotated[int, Field(ge=1, le=MAX_LAYERS)] | None = Field(None, examples=[4])
    num_heads: Positive | None = Field(None, examples=[8])
    num_kv_heads: Positive | None = Field(None, examples=[8])
    ffn_size: Positive | None = Field(None, examples=[704])
    head_dim: Positive | None = Field(None, examples=[32])
    rope_theta: PositiveNumber | None = Field(None, examples=[10000])
    norm_eps: PositiveNumber | None = Field(None, examples=["0.00001"])
    qkv_bias: bool | None = Field(None, examples=[False])
    qk_norm: bool | None = Field(None, examples=[False])
    tie_embeddings: bool | None = Field(None, examples=[False])

    @classmethod
    def rules(cls, given: Collection[str], values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        sources = [name for name in ("preset", "hf_config", "units") if name in given]
        sizes = [name for name in OVERRIDABLE if name in given]
        if len(sources) > 1:
            yield f"has {' and '.join(sources)}, but one model has one source", "keep one of them"
        if not sources:
            yield "names no model", 'add one of preset = "tiny", hf_config = "FOLDER" and units = "module:function"'
        if sources == ["units"] and sizes:
            yield (
                f"has {', '.join(sizes)} beside units, which do not use them",
                "pass sizes to your function by [model.options]",
            )
        if sources == ["units"] and values.get("compile"):
            yield (
                "compiles units that are your own, of which the runtime does not know what is pure",
                "remove compile, and call torch.compile in your build function, or heed context.compiled",
            )
        if sources and "units" not in sources and values.get("options"):
            yield "has options, which only a function named by units takes", "remove options, or name your function"

    @field_validator("dtype", mode="before")
    @classmethod
    def _no_float16(cls, name: object) -> object:
        if name in ("float16", "fp16", "half"):
            raise refuse(
                "is float16, in which small gradients become zero unless the loss is scaled, and this runtime does not "
                "scale it",
                "write 'bfloat16', which is as short and has float32's range",
            )
        return name

    @field_validator("units")
    @classmethod
    def _module_and_function(cls, text: str | None) -> str | None:
        module, _, function = (text or "m:f").partition(":")
        if not function.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
            raise refuse("is not 'module:function'", "write for example 'my_model:units' for units() in my_model.py")
        return text

    @field_validator("preset")
    @classmethod
    def _known_preset(cls, name: str | None) -> str | None:
        if name is not None and name not in PRESETS:
            raise refuse(
                "is an unknown preset", f"did you mean {nearest(name, PRESETS)!r}? Known are {', '.join(PRESETS)}"
            )
        return name
