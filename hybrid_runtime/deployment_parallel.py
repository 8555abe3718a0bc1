"""The deployment's tables [parallel] and [pipeline]: degrees of the mesh, and how stages are made and walked."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field

from hybrid_runtime.deployment_fields import MAX_RANKS, Cuts, Degree, EmbeddingRows, Positive, Recomputes, Table
from hybrid_runtime.mesh import Mesh


class Parallel(Table):
    """Degrees of the mesh."""

    tp_degree: Degree = Field(1, description="ranks that share every layer")
    pp_degree: Degree = Field(1, description="stages in a row")
    dp_degree: Degree = Field(1, description="replicas of the whole pipeline")
    sequence_parallel: bool = Field(False, description="shard the sequence between tensor-parallel regions over tp")
    shard_optimizer: bool = Field(
        False,
        description="ZeRO-1: every replica updates a part of the parameters and has the optimizer's state of no other "
        "part; changes nothing where dp_degree is 1",
    )

    @classmethod
    def rules(cls, given: Collection[str], values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        degrees = [values.get(name, 1) for name in ("tp_degree", "pp_degree", "dp_degree")]
        if all(isinstance(degree, int) and 0 < degree <= MAX_RANKS for degree in degrees):
            ranks = math.prod(degrees)
            if ranks > MAX_RANKS:
                yield f"makes {ranks} ranks", f"lower the degrees: at most {MAX_RANKS} ranks are supported"

    @property
    def mesh(self) -> Mesh:
        return Mesh(tp_degree=self.tp_degree, pp_degree=self.pp_degree, dp_degree=self.dp_degree)


class Pipeline(Table):
    """How units become stages and stages are walked."""

    schedule: str = Field(
        "1f1b",
        description="gpipe, 1f1b, interleaved_1f1b, zb_h1, interleaved_zb, zb_h2, zb_v, dualpipe_v, v_half, v_min, "
        "auto (searched for this model), or a .csv file of action lists",
    )
    virtual_stages: Annotated[int, Field(ge=1, le=64)] | None = Field(
        None,
        description="stages on each rank; default: 2 for the interleaved, V and auto schedules, else 1",
        examples=[2],
    )
    in_flight_limit: Positive | None = Field(
        None,
        description="of schedule auto: most microbatches of activations that a rank may hold; default: pp_degree + 1",
        examples=[5],
    )
    cuts: Cuts = Field(
        "balanced",
        description="even (equally many layers per stage), balanced (stages as equal in FLOPs as cuts between units "
        "allow), or one 'first..last' of unit names per stage; an end may be a part of a unit, '3.mlp[:96]' or "
        "'3.mlp[96:]', counted in an MLP's neurons or an attention's key/value heads",
        examples=[["embedding..1.mlp", "2.attn..head"], ["embedding..1.mlp[:96]", "1.mlp[96:]..head"]],
    )
    embedding_rows: EmbeddingRows | None = Field(
        None,
        description="rows of the first unit on every pipeline rank: equal, or one number per rank, each a multiple of "
        "tp_degree, adding up to the vocabulary padded to one; default: all on the first stage's rank",
        examples=[[96, 160]],
    )

    recompute: Recomputes = Field(
        "none",
        description="what units forget after their forward and compute again for their backward: none, selective "
        "(norms, attention's core and the MLP's product: little time) or full (all but a unit's input: up to a third "
        "more time); one word, or one for each stage; the first and the last unit forget nothing",
        examples=["selective", ["full", "none"]],
    )

    @classmethod
    def rules(cls, given: Collection[str], values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        if "in_flight_limit" in given and values.get("schedule", "1f1b") != "auto":
            yield "has in_flight_limit, which only schedule auto obeys", "remove it, or write schedule = 'auto'"
