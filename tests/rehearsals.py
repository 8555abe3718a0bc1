"""Made-up rehearsal folders: known times and bytes, so that what is derived from them is known too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hybrid_runtime.deployment import Deployment, parse_deployment
from hybrid_runtime.plan import Plan
from hybrid_runtime.planner.costs import unit_costs
from hybrid_runtime.planner.make import make_plan
from hybrid_runtime.records import Memory
from hybrid_runtime.rehearsal import FILE, Calls, Rehearsal, RehearsedRank, RehearsedStep
from hybrid_runtime.run_folder import RunFolder

MICROBATCHES, STEPS = 6, 12


def deployed(**tables: Any) -> Deployment:
    values: dict[str, Any] = {
        "name": "made-up",
        "model": {"preset": "tiny"},
        "parallel": {"tp_degree": 2, "pp_degree": 3},
        "batch": {"global_batch_size": MICROBATCHES, "microbatch_size": 1, "sequence_length": 64},
        "hardware": {"device": "cpu", "oversubscribe": True},
    }
    return parse_deployment(values | tables, source="made-up rehearsal")


def plan_of(deployment: Deployment) -> Plan:
    assert deployment.shape is not None
    assert deployment.batch is not None
    costs = unit_costs(deployment.shape, microbatch_size=1, sequence_length=64, workload="train")
    return make_plan(deployment, costs)


def rehearsal(
    plan: Plan, forward_ns: Sequence[int], peak_bytes: Sequence[int], *, jitter_ns: int = 0, overhead_ns: int = 0
) -> Rehearsal:
    """Backwards take twice as long as forwards; every action calls one all-reduce of 1000 bytes."""
    call = Calls(kind="shared_all_reduce", ranks=2, num_bytes=1000, count=1)
    ranks = []
    for rank, (time, peak) in enumerate(zip(forward_ns, peak_bytes, strict=True)):
        steps = tuple(
            RehearsedStep(
                visit=number,
                actions_ns={
                    f"{rank}F": (time + jitter_ns * ((number + rank) % 3 - 1),) * plan.num_microbatches,
                    f"{rank}B": (2 * time,) * plan.num_microbatches,
                },
                phases_ns={"OPTIMIZER": 600},
                overhead_ns=overhead_ns * 2 * plan.num_microbatches,
                window_ns=10**6,
            )
            for number in range(STEPS)
        )
        memory = Memory(
            parameters=100,
            gradients=100,
            optimizer=200,
            activations_peak=peak - 450,
            buffers_peak=50,
            ledger_peak=peak,
            allocated_peak=None,
            reserved_peak=None,
        )
        sent = Calls(kind="send", ranks=2, num_bytes=500, count=plan.num_microbatches)
        ranks.append(
            RehearsedRank(
                pp_rank=rank,
                tp_rank=0,
                stages=(rank,),
                flops=1000 * time,
                parameters=25,
                calls={f"{rank}F": (call,), f"{rank}B": (call,), "between": (sent,)},
                memory=(memory, memory),
                steps=steps,
            )
        )
    return Rehearsal(
        taken_utc="2026-01-01T00:00:00+00:00",
        plan_fingerprint=plan.fingerprint,
        device="made-up CPU",
        clock="thread_cpu",
        fingerprint={"host": "here", "torch": "2.13.0"},
        order=tuple(range(len(ranks))) * STEPS,
        notes=(),
        ranks=tuple(ranks),
    )


def write(folder: Path, deployment: Deployment, plan: Plan, found: Rehearsal) -> RunFolder:
    folder.mkdir(parents=True, exist_ok=True)
    side = RunFolder(folder)
    side.deployment.write_text(json.dumps(deployment.model_dump(mode="json", exclude_none=True)))
    side.plan.write_text(plan.to_json())
    (folder / FILE).write_text(found.to_json())
    return side
