"""What a rehearsal says of a deployment's targets. It never says PASS: the deployment did not run."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from hybrid_runtime.predicted import Label, PredictedStep

Would = Literal["WOULD PASS", "WOULD FAIL", "UNDECIDED"]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WouldClaim(_Frozen):
    """One target. Figures are decimal text in `unit`, None where nothing could be said.

    Attributes:
        label: how the figure came about; what rests on communication is modelled.
        detail: what set the figure, or why there is none.
    """

    id: str
    text: str
    op: Literal["<=", ">="]
    threshold: str
    unit: str
    figure: str | None
    lower: str | None = None
    upper: str | None = None
    outcome: Would
    label: Label
    detail: str


class RankRow(_Frozen):
    """One pipeline rank. Shares are percent of all ranks together, as decimal text.

    Attributes:
        compute_ns: of one step, median; `compute_share` and `busy` (of the modelled step) are its shares.
        actions: by "<stage><kind>": p10, p50 and p90 of one action, ns.
        memory_parts: bytes by part.
    """

    pp_rank: int
    ranks: tuple[int, ...]
    stages: tuple[int, ...]
    compute_ns: int
    compute_share: str
    flop_share: str
    busy: str
    memory_bytes: int
    memory_share: str
    memory_parts: dict[str, int]
    actions: dict[str, tuple[int, int, int]]


class RehearsalVerdict(_Frozen):
    """Everything that is derived from a rehearsal folder.

    Attributes:
        company: who kept the machine busy meanwhile.
        memory_label: what `memory_bytes` counts: the byte ledger, or the device's allocator.
        baseline_ns: the baseline's step, where one was rehearsed.
        notes: what a reader must know.
    """

    name: str
    mesh: str
    schedule: str
    num_microbatches: int
    device: str
    clock: str
    steps: int
    company: str
    network: str
    memory_label: str
    claims: tuple[WouldClaim, ...]
    ranks: tuple[RankRow, ...]
    predicted: PredictedStep
    baseline: str | None
    baseline_ns: int | None
    notes: tuple[str, ...]
