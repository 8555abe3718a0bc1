"""The table [search] of a deployment file: what `hybrid-runtime plan` may vary, and what it cannot measure."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hybrid_runtime.deployment_fields import LinkRateText, Positive, PositiveNumber, Table

Varied = Literal[
    "tp_degree",
    "pp_degree",
    "dp_degree",
    "microbatch_size",
    "schedule",
    "cuts",
    "embedding",
    "recompute",
    "shard_optimizer",
    "prefill_chunk_tokens",
]


class Search(Table):
    """The planner's search. What does not vary is taken from [parallel], [batch] and [pipeline]."""

    devices: Positive | None = Field(
        None, description="devices to plan for; default: hardware.devices, else as many as the mesh has", examples=[8]
    )
    devices_per_node: Positive | None = Field(
        None, description="devices that share fast links; default: all, at most 8", examples=[8]
    )
    vary: list[Varied] = Field(
        [
            "tp_degree",
            "pp_degree",
            "dp_degree",
            "microbatch_size",
            "schedule",
            "cuts",
            "embedding",
            "recompute",
            "shard_optimizer",
            "prefill_chunk_tokens",
        ],
        description="what may differ from the file; cuts: also inside units; embedding: rows on every pipeline rank; "
        "recompute: as little as fits the memory, on the stages that need it; shard_optimizer: whether replicas share "
        "the optimizer's state; of a serving deployment degrees, microbatch_size, cuts and prefill_chunk_tokens",
    )
    objective: Literal["latency", "throughput"] = Field(
        "latency",
        description="of a serving deployment: the lowest median of the latency that load.latency names, or the most "
        "tokens per second; in either case within the latencies that [targets] limits",
    )
    schedules: list[str] | None = Field(
        None, description="to choose from, where the schedule varies; default: all", examples=[["1f1b", "zb_v", "auto"]]
    )
    in_flight_limit: Positive | None = Field(
        None, description="of schedule auto: most microbatches of activations on a rank", examples=[4]
    )
    top: Annotated[int, Field(ge=0, le=20)] = Field(
        3, description="layouts for which a schedule is searched, the most promising ones"
    )
    granule: Positive | None = Field(
        None,
        description="MLP columns per tensor-parallel rank between two possible cuts; default: up to 64",
        examples=[64],
    )
    teraflops_per_device: PositiveNumber = Field(
        100, description="declared, for plan --analytic", validate_default=True
    )
    link_bandwidth: LinkRateText = Field("100 GB/s", description="declared: inside a node, one direction")
    network_bandwidth: LinkRateText = Field("12.5 GB/s", description="declared: between nodes, one direction")
    latency_us: PositiveNumber = Field(10, description="declared: of a message", validate_default=True)
    memory_bandwidth: LinkRateText = Field(
        "2000 GB/s", description="declared: at which a device reads its own memory; what a decode waits for"
    )
    unit_us: PositiveNumber = Field(
        20, description="declared: least time of a unit of a serving deployment, however small", validate_default=True
    )
