"""The deployment file (TOML or JSON) -> a validated, frozen `Deployment`.

Decimals stay decimals: floats in the file are parsed as `Decimal` and never become binary floats before a comparison.
Whether the plan is *possible* (ranks against devices, heads against ranks, cuts) is not decided here: the static checks
of the verifier judge it row by row, so that a wrong plan gets a verdict and not merely an error.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import tomllib
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from hybrid_runtime import exact
from hybrid_runtime.errors import DeploymentError, Problem, UsageError
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.shapes import PRESETS, LlamaShape, shape_from_hugging_face, with_overrides


def _decimal(value: object) -> object:
    """Integers and decimal text (how a Decimal is written to JSON) become Decimal; anything else is left to be refused."""
    if isinstance(value, int) and not isinstance(value, bool):
        return Decimal(value)
    if isinstance(value, str) and _DECIMAL.fullmatch(value):
        return Decimal(value)
    return value


_DECIMAL = re.compile(r"-?\d{1,30}(\.\d{1,30})?([eE][+-]?\d{1,3})?")
Number = Annotated[Decimal, BeforeValidator(_decimal)]
Positive = Annotated[int, Field(ge=1, le=10**9)]
Count = Annotated[int, Field(ge=0, le=10**9)]
Percent = Annotated[Number, Field(ge=0, le=100)]
PositiveNumber = Annotated[Number, Field(gt=0, le=10**9)]
NonNegativeNumber = Annotated[Number, Field(ge=0, le=10**9)]
Fraction01 = Annotated[Number, Field(ge=0, lt=1)]

BaselineKind = Literal["single", "tp_only", "pp_only", "dp_only", "naive_pipeline"]
BalanceMetric = Literal["time_share_range", "work_share_range", "time_rel_spread", "work_rel_spread"]


class Table(BaseModel):
    """Base of every table of the file: unknown keys are errors, nothing is coerced, nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Model(Table):
    """Which model: a preset, a Hugging Face folder, or `module:function` returning units; sizes override a preset's."""

    preset: str | None = Field(None, description="name of a built-in shape, e.g. tiny, llama-3-8b, qwen2.5-7b")
    hf_config: str | None = Field(None, description="a Hugging Face config.json or the folder that holds it")
    units: str | None = Field(None, description="your own model: 'module:function' that returns a list of UnitSpec")
    options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of your own function")
    weights: str | None = Field(None, description="folder of safetensors files in Hugging Face names; else random")
    dtype: Literal["float32", "bfloat16"] = "float32"
    vocab_size: Positive | None = None
    hidden_size: Positive | None = None
    num_layers: Positive | None = None
    num_heads: Positive | None = None
    num_kv_heads: Positive | None = None
    ffn_size: Positive | None = None
    head_dim: Positive | None = None
    rope_theta: PositiveNumber | None = None
    norm_eps: PositiveNumber | None = None
    qkv_bias: bool | None = None
    tie_embeddings: bool | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Model:
        given = [name for name in ("preset", "hf_config", "units") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of preset, hf_config and units, got {', '.join(given) or 'none'}")
        if self.units is not None and self.units.count(":") != 1:
            raise ValueError(f"units must be 'module:function', got {self.units!r}")
        return self

    @field_validator("preset")
    @classmethod
    def _known_preset(cls, name: str | None) -> str | None:
        if name is not None and name not in PRESETS:
            raise ValueError(f"unknown preset; {_nearest(name, PRESETS)}known are {', '.join(PRESETS)}")
        return name


class Parallel(Table):
    """Degrees of the mesh."""

    tp_degree: Positive = 1
    pp_degree: Positive = 1
    dp_degree: Positive = 1
    sequence_parallel: bool = Field(False, description="shard the sequence between tensor-parallel regions over tp")

    @property
    def mesh(self) -> Mesh:
        return Mesh(tp_degree=self.tp_degree, pp_degree=self.pp_degree, dp_degree=self.dp_degree)


class Pipeline(Table):
    """How units become stages and stages are walked."""

    schedule: str = Field("1f1b", description="gpipe or 1f1b")
    cuts: Literal["even", "balanced"] | list[str] = Field(
        "balanced",
        description="even (equally many layers), balanced (by FLOPs, between units), or one 'first..last' of unit names "
        "per stage, e.g. ['embedding..1.mlp', '2.attn..head']",
    )


class Batch(Table):
    """Sizes of one optimizer step, in sequences and tokens."""

    global_batch_size: Positive
    microbatch_size: Positive
    sequence_length: Positive


class Workload(Table):
    """What one step does."""

    kind: Literal["train", "forward"] = "train"
    steps: Positive = Field(100, description="steps of a plain run, warm-up included")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


class Optimizer(Table):
    """AdamW with linear warm-up and cosine decay."""

    learning_rate: PositiveNumber = Decimal("0.001")
    final_learning_rate: NonNegativeNumber = Decimal(0)
    warmup_steps: Count = 0
    weight_decay: NonNegativeNumber = Decimal("0.1")
    beta1: Fraction01 = Decimal("0.9")
    beta2: Fraction01 = Decimal("0.95")
    eps: PositiveNumber = Decimal("1e-8")
    clip_norm: PositiveNumber | None = Decimal("1.0")


class Data(Table):
    """Where tokens come from. The default is real text that every machine has: Python's own standard library."""

    source: Literal["python-stdlib", "text", "tokens"] = "python-stdlib"
    path: str | None = Field(None, description="text: a file or folder; tokens: a file of raw token ids")
    glob: str = Field("**/*", description="text folders: which files")
    tokenizer: str = Field("bytes", description="bytes, or the path of a `tokenizers` JSON file")
    token_dtype: Literal["uint16", "uint32"] = "uint16"

    @model_validator(mode="after")
    def _path_where_needed(self) -> Data:
        if self.source != "python-stdlib" and self.path is None:
            raise ValueError(f"source '{self.source}' needs a path")
        return self


class Hardware(Table):
    """What the deployment requires of the machine; absent fields demand nothing."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: Positive | None = Field(None, description="how many physical devices the deployment is for")
    oversubscribe: bool = Field(False, description="allow several ranks on one device (function only, no speed claim)")
    threads_per_rank: Positive = 1
    memory_per_device: str | None = Field(None, description="with unit, e.g. '32 GB' (10^9) or '24 GiB' (2^30)")
    interconnect: Literal["nvlink"] | None = None
    link_pairs: list[Annotated[list[Count], Field(min_length=2, max_length=2)]] | None = Field(
        None, description="device pairs that must be linked"
    )
    min_link_bandwidth: str | None = Field(None, description="one direction, e.g. '300 GB/s'")

    _memory = field_validator("memory_per_device")(classmethod(lambda cls, text: _parsed(exact.parse_bytes, text)))
    _rate = field_validator("min_link_bandwidth")(classmethod(lambda cls, text: _parsed(exact.parse_gb_per_s, text)))


class Baseline(Table):
    """What the candidate is compared with: same model, global batch and data; other parallel fields."""

    kind: BaselineKind
    devices: Positive | None = Field(None, description="ranks of the baseline; default: as many as the candidate's")
    microbatch_size: Positive | None = None


class Targets(Table):
    """What is promised. Limits are inclusive: exactly 1 pp passes a limit of 1 pp. An absent target makes no claim."""

    compute_balance_pp: Percent | None = Field(None, description="largest allowed gap between two devices' shares, pp")
    compute_balance_metric: BalanceMetric = "time_share_range"
    memory_balance_pp: Percent | None = None
    utilisation_percent: Percent | None = Field(None, description="compute-busy share of the least busy device")
    latency_reduction_percent: Percent | None = None
    throughput_gain_percent: NonNegativeNumber | None = None


class DeclaredCounts(Table):
    """How many requirements somebody reported as passed, failed and in total."""

    passed: Count
    failed: Count
    total: Count


class Declared(Table):
    """Figures that somebody wrote down. They are checked for consistency and never become measurements."""

    strategy: str | None = Field(None, description="e.g. hybrid_tensor_pipeline")
    num_parts: Positive | None = Field(None, description="parts that the model is divided into")
    device_assignment: dict[str, list[str]] | None = Field(None, description="device -> what it holds")
    computation_distribution: dict[str, str] | None = Field(None, description='e.g. {"gpu_0": "33.33%_computation"}')
    memory_distribution: dict[str, str] | None = None
    latency_reduction: str | None = None
    throughput_gain: str | None = None
    utilisation: str | None = None
    requirements: DeclaredCounts | None = None

    @field_validator("computation_distribution", "memory_distribution")
    @classmethod
    def _shares(cls, shares: dict[str, str] | None, info: ValidationInfo) -> dict[str, str] | None:
        parsed = [exact.parse_share(text) for text in (shares or {}).values()]
        if shares is not None and not exact.sums_to_one(parsed):
            total = exact.decimal_text(sum((share.value for share in parsed), start=parsed[0].value * 0) * 100)
            raise ValueError(f"the shares sum to {total} %, not 100 % within their rounding")
        return shares

    @field_validator("latency_reduction", "throughput_gain", "utilisation")
    @classmethod
    def _percentage(cls, text: str | None) -> str | None:
        return _parsed(exact.parse_share, text)


class Measurement(Table):
    """How the verifier measures. Steps are whole optimizer steps (or forward passes)."""

    warmup_steps: Positive = Field(10, description="steps of each side that are recorded but never judged")
    batch_steps: Positive = Field(10, description="consecutive steps averaged into one sample")
    block_steps: Positive = Field(10, description="steps of one side before the other side's turn")
    blocks: Positive = Field(12, description="blocks of each side, in the order A B B A")
    timeout_s: Positive = Field(1800, description="a verification that takes longer is stopped")


class Deployment(Table):
    """One deployment file. `model`, `batch` and `baseline` may be absent for `check`; a run needs model and batch."""

    name: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]*$")]
    model: Model | None = None
    parallel: Parallel = Parallel()
    pipeline: Pipeline = Pipeline()
    batch: Batch | None = None
    workload: Workload = Workload()
    optimizer: Optimizer = Optimizer()
    data: Data = Data()
    hardware: Hardware = Hardware()
    baseline: Baseline | None = None
    targets: Targets = Targets()
    declared: Declared = Declared()
    measurement: Measurement = Measurement()

    @property
    def mesh(self) -> Mesh:
        return self.parallel.mesh

    @cached_property
    def shape(self) -> LlamaShape | None:
        """The model's sizes; None for a user's own units or without a model.

        Raises:
            UsageError: hf_config names an unusable file.
        """
        if self.model is None or self.model.units is not None:
            return None
        given = {name: getattr(self.model, name) for name in LlamaShape.__dataclass_fields__}
        given = {name: float(value) if isinstance(value, Decimal) else value for name, value in given.items()}
        if self.model.preset is not None:
            return with_overrides(PRESETS[self.model.preset], given)
        return with_overrides(shape_from_hugging_face(Path(self.model.hf_config or "")), given)

    @property
    def num_microbatches(self) -> int:
        """Microbatches of one replica in one step. Needs `batch`; 0 if the batch does not divide."""
        assert self.batch is not None
        share, rest = divmod(self.batch.global_batch_size, self.parallel.dp_degree * self.batch.microbatch_size)
        return 0 if rest else share

    def canonical_json(self) -> str:
        """All values with defaults filled in and keys sorted: equal deployments give equal text."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical form."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()


def load_deployment(path: Path) -> Deployment:
    """Reads and validates a deployment file; relative paths inside it are relative to the current folder.

    Raises:
        UsageError: the file cannot be read or is neither TOML nor JSON.
        DeploymentError: its content is not valid; holds every problem.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as problem:
        raise UsageError(f"{path}: cannot be read ({problem.strerror}); name an existing deployment file") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: is not UTF-8 text; a deployment file is TOML or JSON") from None
    try:
        if path.suffix.lower() == ".json":
            values = json.loads(text, parse_float=Decimal)
        else:
            values = tomllib.loads(text, parse_float=Decimal)
    except (ValueError, RecursionError) as problem:
        raise UsageError(f"{path}: is not valid {path.suffix.lstrip('.').upper() or 'TOML'} ({problem})") from None
    return parse_deployment(values, source=str(path))


def parse_deployment(values: object, *, source: str) -> Deployment:
    """Validates values that were read from `source` (used in messages only).

    Raises:
        DeploymentError: with every problem found.
    """
    try:
        return Deployment.model_validate(values)
    except ValidationError as invalid:
        raise DeploymentError(source, [_problem(error) for error in invalid.errors()]) from None


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the deployment file, for editors."""
    return Deployment.model_json_schema() | {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "hybrid_runtime deployment",
    }


def _parsed(parser: Any, text: str | None) -> str | None:
    if text is not None:
        parser(text)
    return text


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}? " if close else ""


def _problem(error: Any) -> Problem:
    return Problem(".".join(map(str, error["loc"])), repr(error.get("input"))[:80], error["msg"], "see `schema`")
