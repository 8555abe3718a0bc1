"""A lone rank holds the very bytes, and makes the very calls, of the same rank among its gloo peers."""

from __future__ import annotations

import weakref
from collections import Counter
from datetime import timedelta
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from hybrid_runtime.comm import collectives
from hybrid_runtime.comm.shared_memory import SharedMemory
from hybrid_runtime.deployment import Deployment
from hybrid_runtime.job import run_step
from hybrid_runtime.job_orders import Order
from hybrid_runtime.job_parts import assemble, build, join_mesh
from hybrid_runtime.lone.group import Call, Traffic
from hybrid_runtime.lone.rank import LoneRank, set_stage
from hybrid_runtime.lone.recorder import LoneRecorder
from hybrid_runtime.models.build import model_costs, model_units
from hybrid_runtime.plan import Plan
from hybrid_runtime.planner.make import make_plan
from hybrid_runtime.records import Memory
from hybrid_runtime.rehearsal import Calls
from tests.parity import deployment, source
from tests.ranks import run_ranks

CPU = torch.device("cpu")


def settings_of(tp: int, pp: int, schedule: str, **more: Any) -> Deployment:
    return deployment(
        model={"num_layers": 4, "num_kv_heads": 1, "tie_embeddings": more.get("tied", False)},
        parallel={"tp_degree": tp, "pp_degree": pp, "sequence_parallel": more.get("sequence_parallel", False)},
        pipeline={"schedule": schedule, "cuts": "even"},
    )


def planned(settings: Deployment) -> Plan:
    return make_plan(settings, model_costs(settings, model_units(settings.model, settings.shape)))


def really(settings: Deployment, plan: Plan) -> tuple[list[Memory], dict[str, tuple[Calls, ...]]]:
    """This rank among its peers, in the steps that a lone rank warms up with."""
    specs, traffic = model_units(settings.model, settings.shape), Traffic()
    groups = join_mesh(plan, specs, device=CPU, backend="gloo", timeout=timedelta(seconds=60))
    built = build(settings, plan, specs, groups)
    recorder = LoneRecorder(CPU, groups.clocks, built.ledger, traffic)
    parts = assemble(settings, plan, groups, built, source(), recorder)

    def counted(kind: str, function: Any, tensor_at: int = 0) -> Any:
        def count(*args: Any, group: dist.ProcessGroup, **options: Any) -> Any:
            traffic.count(kind, group.size(), args[tensor_at].nbytes)
            return function(*args, group=group, **options)

        return count

    start = SharedMemory.start

    def count_shared(self: SharedMemory, x: Tensor) -> SharedMemory:
        traffic.count("shared_all_reduce", groups.tp.size, x.nbytes)
        return start(self, x)

    with (
        patch.object(dist, "all_reduce", counted("all_reduce", dist.all_reduce)),
        patch.object(dist, "isend", counted("send", dist.isend)),
        patch.object(dist, "irecv", counted("receive", dist.irecv)),
        patch.object(collectives, "_all_gather", counted("all_gather", collectives._all_gather)),
        patch.object(collectives, "_reduce_scatter", counted("reduce_scatter", collectives._reduce_scatter, 1)),
        patch.object(SharedMemory, "start", count_shared),
    ):
        for step in range(3):
            run_step(parts, Order(step, step, phase="warmup", watch=step > 0))
    return recorder.memory, recorder.calls_of_actions()


def alone(settings: Deployment, plan: Plan, rank: int) -> tuple[list[Memory], dict[str, tuple[Calls, ...]]]:
    place = plan.mesh.place(rank)
    stage = set_stage(settings, plan, model_units(settings.model, settings.shape), CPU)
    with LoneRank(stage, place.pp, place.tp) as lone:
        lone.warm_up()
        found = lone.rehearsed()
    return list(found.memory), found.calls


def compare(rank: int, tp: int, pp: int, cases: list[dict[str, Any]]) -> None:
    for case in cases:
        settings = settings_of(tp, pp, **case)
        plan = planned(settings)
        real, lone = really(settings, plan), alone(settings, plan, rank)
        assert len(real[0]) == 2, real[0]
        assert real == lone, case
        assert real[0][0].ledger_peak
        assert Counter(call.kind for calls in real[1].values() for call in calls)["send"]
        dist.barrier()


@pytest.mark.ranks
def test_two_tensor_ranks_of_two_stages() -> None:
    """With split backwards a real rank may do weight gradients during a collective, so those are compared at tp 1."""
    cases = [{"schedule": "1f1b"}, {"schedule": "1f1b", "sequence_parallel": True}]
    run_ranks(4, compare, 2, 2, cases)


@pytest.mark.ranks
def test_three_stages() -> None:
    cases = [{"schedule": "1f1b"}, {"schedule": "zb_h1", "tied": True}, {"schedule": "zb_v"}]
    run_ranks(3, compare, 1, 3, cases)


def test_calls_are_counted_whole() -> None:
    """Of the whole tensor, also where a rank holds a part."""
    from hybrid_runtime.lone.carries import lone_axis

    traffic = Traffic()
    axis = lone_axis(4, 1, traffic)
    x = torch.ones(1, 2, 8)
    assert collectives.start_gather_sequence(x, axis).wait().shape == (1, 8, 8)
    assert collectives.start_reduce_scatter_sequence(torch.ones(1, 8, 8), axis).wait().equal(x)
    assert collectives.all_reduce(x, axis).equal(x)
    assert collectives.all_gather_stack(x, axis).equal(x.expand(4, 1, 2, 8))
    assert traffic.calls == [
        Call("all_gather", 4, 256),
        Call("reduce_scatter", 4, 256),
        Call("all_reduce", 4, 64),
        Call("all_gather", 4, 256),
    ]


def test_a_rank_gives_everything_back() -> None:
    """The next rank is built before this one's name is used again: on a GPU both would have to fit."""
    settings = settings_of(1, 2, "1f1b")
    stage = set_stage(settings, planned(settings), model_units(settings.model, settings.shape), CPU)
    with LoneRank(stage, 0) as rank:
        rank.warm_up()
        parameters = [weakref.ref(p) for unit in rank._units.values() for p in unit.parameters()]
    assert parameters
    assert not any(reference() is not None for reference in parameters)
    assert rank.pp_rank == 0
