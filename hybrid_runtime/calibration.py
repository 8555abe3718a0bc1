"""`calibration.json`: what units, messages, collectives and the optimizer cost on one machine, measured there.

Keyed by a fingerprint of hardware and versions: costs of another machine are refused, not scaled. Times are whole
nanoseconds with their spread, sizes whole bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from hybrid_runtime.company import Company
from hybrid_runtime.deployment_fields import RecomputeKind
from hybrid_runtime.errors import UsageError
from hybrid_runtime.fingerprint import differences
from hybrid_runtime.plan import UnitCost

SCHEMA_VERSION = "1.1"


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Spread(_Frozen):
    """A measured time: median and the range of eight measurements of ten."""

    p10_ns: int
    p50_ns: int
    p90_ns: int
    samples: int


class UnitTimes(_Frozen):
    """One kind of unit on one rank, alone on its device, for one microbatch; collectives stubbed.

    Attributes:
        unit: what equal units share: the name without its layer number ("attn", "mlp"), or a user's unit name.
        recompute: what it forgets after F and computes again in B and I.
        parts: of the whole unit that were measured, all tensor-parallel ranks together (pieces.py); 1 if indivisible.
        clock: "cuda_event" device time, or "thread_cpu".
        forward, backward, input_grad, weight_grad: device time of F, B, I and W.
        host: time the host needs to launch F, B, I and W (the same as device time on a CPU).
        compiled: with model.compile.
        saved_bytes: kept from F on; `until_w_bytes` of them, with what I adds, stay until W.
        temporary_bytes: most that is held beyond that while I runs, which keeps for W before it lets go of what F kept.
        output_bytes: of the carry that the unit passes on.
        parameters: held by the rank.
    """

    unit: str
    tp_degree: int
    sequence_parallel: bool = False
    microbatch_size: int
    sequence_length: int
    dtype: str
    compiled: bool = False
    parts: int
    clock: Literal["cuda_event", "thread_cpu"]
    forward: Spread
    backward: Spread
    input_grad: Spread
    weight_grad: Spread
    host: dict[Literal["F", "B", "I", "W"], Spread]
    saved_bytes: int
    until_w_bytes: int
    temporary_bytes: int
    output_bytes: int
    parameters: int
    recompute: RecomputeKind = "none"


class ServedUnitTimes(_Frozen):
    """One kind of unit on one rank for one item of a serving deployment; collectives stubbed.

    Attributes:
        parts: of the whole unit that were measured, all tensor-parallel ranks together (pieces.py); 1 if indivisible.
        kind: of the item; `rows` of it have `length` tokens each, behind `start` that are cached. Of the head, whose
            time has the choice of the most likely token in it, the rows' last tokens count.
        time: on the device, or of the thread on a CPU.
        host: what the host needs to launch it (the same as `time` on a CPU).
    """

    unit: str
    tp_degree: int
    dtype: str
    parts: int
    kind: Literal["prefill", "decode"]
    rows: int
    start: int
    length: int
    time: Spread
    host: Spread


class ServedHop(_Frozen):
    """From the end of a span on a stage until the next stage's begins, where that one waits for so many bytes."""

    num_bytes: int
    time_ns: int


class ServedItemTimes(_Frozen):
    """What the runtime adds to an item of a serving deployment, on one rank or on two (lone/served_items.py).

    Attributes:
        ranks: a rank alone, two stages, or two tensor-parallel ranks.
        rows: of the item.
        stage_ns: in every stage's span beside its units: making its tensors.
        before_ns, after_ns: on rank 0 before and behind its span: admitting, choosing, announcing; handing on.
        next_ns, fetch_ns: on a later stage behind its span, and waiting for a carry that has been sent already.
        back_ns: from the end of the last stage's span until rank 0 knows the tokens, where it waits.
        hops: by size.
        late_ns: how much later than rank 0's the span of its tensor-parallel peer begins.
        prefill_waits_ppm, decode_waits_ppm: what tensor-parallel ranks wait for each other in an item, in millionths of
            what they compute.
    """

    ranks: Literal["one", "pipeline", "tensor"]
    rows: int
    stage_ns: int
    before_ns: int
    after_ns: int = 0
    next_ns: int = 0
    fetch_ns: int = 0
    back_ns: int = 0
    hops: tuple[ServedHop, ...] = ()
    late_ns: int = 0
    prefill_waits_ppm: int = 0
    decode_waits_ppm: int = 0


class CollectiveTime(_Frozen):
    """One collective of `ranks` neighbours, alone; `num_bytes` of the whole tensor.

    Attributes:
        kind: "shared_all_reduce" is how tensor-parallel CPU ranks of one host sum what fits into their shared memory;
            "all_reduce" is the process group's, which everybody else uses.
        own_cpu_ns: of `time`, what the rank's own thread computes: copies and additions in shared memory, waking up.
            On a CPU the verifier's clock counts it as compute.
        lone_cpu_ns: what a rank alone computes in the same call, which has no peer to wake it or to take its cache
            lines: so much is in a unit's and in a rehearsed action's compute already.
    """

    kind: Literal["all_reduce", "shared_all_reduce", "reduce_scatter", "all_gather"]
    ranks: int
    num_bytes: int
    same_host: bool = True
    time: Spread
    own_cpu_ns: int = 0
    lone_cpu_ns: int = 0


class MessageTime(_Frozen):
    """One message between two ranks: alone, and while another goes the other way.

    Attributes:
        post_ns: what it takes from either rank that computes meanwhile: handing it over or taking it, and the threads
            of the backend that share the rank's core. 0 on a GPU, whose compute stream it does not hold up.
    """

    num_bytes: int
    same_host: bool = True
    one_way: Spread
    both_ways: Spread
    post_ns: int = 0


class Calibration(_Frozen):
    """Everything that was measured on one machine for one model.

    Attributes:
        fingerprint: what the costs hold for: device, driver, torch, NCCL or gloo, clocks, threads per rank, host.
        model: SHA-256 of the model's sizes and unit names.
        device_factors: per rank that measured the same unit, its time divided by the median: finds slow devices.
        overlap: slow-down factors while a collective runs beside compute: {"compute": "1.08", "collective": "1.15"}.
        action_ns, step_ns: what the executor adds to every action, and a step beside its actions.
        optimizer_fixed_ns, optimizer_per_million_ns: clearing, norm and update of a rank with so many parameters.
        optimizer_bytes_per_parameter, gradient_bytes_per_parameter: of this dtype.
        allocator: measured constants of the device's allocator, e.g. reserved/allocated; empty on a CPU.
        forgetting: whole units that compute again, at the file's own microbatch size.
        company: who worked on the other cores while units, the executor and the optimizer were measured.
        served, served_items: of a deployment that serves requests.
        served_paces: an item's time now and then, in millionths of its median: equally likely ones, the fastest first.
        not_measured: what this machine could not show, each with the reason; such terms are modelled or absent.
    """

    schema_version: str = SCHEMA_VERSION
    taken_utc: str
    fingerprint: dict[str, str]
    model: str
    units: tuple[UnitTimes, ...]
    forgetting: tuple[UnitTimes, ...] = ()
    collectives: tuple[CollectiveTime, ...] = ()
    messages: tuple[MessageTime, ...] = ()
    overlap: dict[str, str] = {}
    device_factors: tuple[str, ...] = ()
    action_ns: int
    step_ns: int
    optimizer_fixed_ns: int
    optimizer_per_million_ns: int
    optimizer_bytes_per_parameter: int
    gradient_bytes_per_parameter: int
    allocator: dict[str, str] = {}
    company: Company = Company()
    served: tuple[ServedUnitTimes, ...] = ()
    served_items: tuple[ServedItemTimes, ...] = ()
    served_paces: tuple[int, ...] = ()
    not_measured: dict[str, str] = {}

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"


def model_hash(costs: Sequence[UnitCost]) -> str:
    """SHA-256 of a model's sizes and unit names, whatever the batch."""
    sizes = [(cost.name, cost.parameters, cost.parts) for cost in costs]
    return hashlib.sha256(json.dumps(sizes).encode()).hexdigest()


def refuse_other_machine(calibration: Calibration, fingerprint: Mapping[str, str]) -> None:
    """Costs hold on the machine, and with the versions, that they were measured with.

    Args:
        fingerprint: what is known of where they shall be used (fingerprint.py); what it does not name is not compared.

    Raises:
        UsageError: it differs; the sentence says in what.
    """
    taken = {name: text for name, text in calibration.fingerprint.items() if name in fingerprint}
    differing = differences(fingerprint, taken)
    if differing:
        more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
        raise UsageError(
            f"the calibration of {calibration.taken_utc[:10]} was taken elsewhere, {differing[0]}{more}; calibrate here"
        )


def read_calibration(path: Path) -> Calibration:
    """Reads calibration.json.

    Raises:
        UsageError: the file is missing or not a calibration of this version.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values.get("schema_version", SCHEMA_VERSION) if isinstance(values, dict) else SCHEMA_VERSION
        if version != SCHEMA_VERSION:  # first: another version has other fields
            raise UsageError(f"{path}: schema_version {version} is not {SCHEMA_VERSION}; calibrate again")
        return Calibration.model_validate(values)
    except OSError as problem:
        raise UsageError(
            f"{path}: cannot be read ({problem.strerror}); make it with hybrid-runtime calibrate"
        ) from None
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(f"{path}: not a calibration: {where}: {first['msg']}; calibrate again") from None
    except (ValueError, RecursionError) as problem:
        raise UsageError(f"{path}: is not JSON ({problem}); calibrate again") from None
