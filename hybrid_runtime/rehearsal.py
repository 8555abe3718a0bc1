"""`rehearsal.json`: what every rank of a plan took when it ran alone on one device, its neighbours being stubs.

Raw samples only, in whole nanoseconds and bytes; shares, step times and verdicts are derived from them each time, and
so can be derived again. Tensor-parallel ranks of a stage and replicas do the same work: one of them is rehearsed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from hybrid_runtime.company import Company
from hybrid_runtime.errors import RecordsError
from hybrid_runtime.records import Memory

SCHEMA_VERSION = "1.0"
FILE = "rehearsal.json"
BETWEEN = "between"  # the key of calls outside of spans: messages


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Calls(_Frozen):
    """Equal collectives, or messages, of one action.

    Attributes:
        kind: a collective by its name in calibration.py, "broadcast", "reduce", "send" or "receive".
        ranks: of the group.
        num_bytes: of the whole tensor, in each call.
        count: how many in one action.
    """

    kind: str
    ranks: int
    num_bytes: int
    count: int


class RehearsedStep(_Frozen):
    """One measured step of one rank.

    Attributes:
        visit: in which of the rank's turns on the device.
        actions_ns: by "<stage><kind>" ("0F", "2B"): compute of every such action, in the order they ran.
        phases_ns: by phase ("OPTIMIZER", "DATA", "REDUCE_GRAD"), the sum of its spans.
        overhead_ns: what the rank spent between its spans: the executor itself, and the moving of messages.
        window_ns: of the whole step, on the host's clock.
    """

    visit: int
    actions_ns: dict[str, tuple[int, ...]]
    phases_ns: dict[str, int]
    overhead_ns: int
    window_ns: int

    @property
    def compute_ns(self) -> int:
        """What counts as a device's compute: its actions and the update."""
        return sum(map(sum, self.actions_ns.values())) + self.phases_ns.get("OPTIMIZER", 0)


class RehearsedRank(_Frozen):
    """One rank alone.

    Attributes:
        flops: of one step, counted on the modules.
        calls: by "<stage><kind>" or phase, what one of them does with other ranks.
        memory: of the steps that the byte ledger watched, and the allocator's peak over all steps.
        parameters: numbers of them that the rank holds.
    """

    pp_rank: int
    tp_rank: int
    stages: tuple[int, ...]
    flops: int
    parameters: int
    calls: dict[str, tuple[Calls, ...]]
    memory: tuple[Memory, ...]
    steps: tuple[RehearsedStep, ...]


class Rehearsal(_Frozen):
    """Everything one rehearsal recorded.

    Attributes:
        clock: "thread_cpu" on a CPU, else "cuda_event".
        fingerprint: of the device that every rank ran on (fingerprint.py).
        order: pp ranks in the order in which they had the device.
        notes: what a reader must know, e.g. that tokens were random.
        company: peers that worked on the other cores, or on the same one, meanwhile.
        other_shards: further tensor-parallel ranks, where those of a stage are not alike.
    """

    schema_version: str = SCHEMA_VERSION
    taken_utc: str
    plan_fingerprint: str
    device: str
    clock: Literal["thread_cpu", "cuda_event"]
    fingerprint: dict[str, str]
    order: tuple[int, ...]
    notes: tuple[str, ...]
    company: Company = Company()
    ranks: tuple[RehearsedRank, ...]
    other_shards: tuple[RehearsedRank, ...] = ()

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=1) + "\n"


def read_rehearsal(path: Path) -> Rehearsal:
    """Reads rehearsal.json.

    Raises:
        RecordsError: the file is missing, damaged, or of another version.
    """
    try:
        found = Rehearsal.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as problem:
        raise RecordsError(f"{path}: cannot be read ({problem.strerror}); name a folder that rehearse wrote") from None
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RecordsError(f"{path}: not a rehearsal: {where}: {first['msg']}; rehearse again") from None
    except (ValueError, RecursionError) as problem:
        raise RecordsError(f"{path}: is not JSON ({problem}); rehearse again") from None
    if found.schema_version != SCHEMA_VERSION:
        raise RecordsError(f"{path}: schema_version {found.schema_version} is not {SCHEMA_VERSION}; rehearse again")
    if not found.ranks or any(not rank.steps or not rank.memory for rank in found.ranks):
        raise RecordsError(f"{path}: holds no measured step of some rank; rehearse again")
    return found
