"""One rank, alone: its real stages, gradients, optimizer and executor around groups of absent peers."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from hybrid_runtime.comm.point_to_point import TensorSpec
from hybrid_runtime.data.mixture import Mixture
from hybrid_runtime.data.opening import open_data
from hybrid_runtime.data.tokens import ArrayTokens, TokenSource
from hybrid_runtime.deployment import Deployment
from hybrid_runtime.errors import EnvironmentProblem, RunError
from hybrid_runtime.job import run_step
from hybrid_runtime.job_header import flops_per_step
from hybrid_runtime.job_orders import Order
from hybrid_runtime.job_parts import Built, Parts, assemble, build
from hybrid_runtime.lone.carries import input_specs
from hybrid_runtime.lone.group import Traffic
from hybrid_runtime.lone.maker import lone_groups
from hybrid_runtime.lone.recorder import LoneRecorder
from hybrid_runtime.models.build import model_units
from hybrid_runtime.models.unit import UnitSpec
from hybrid_runtime.pipeline.build import edges_of, find_tie, lookup_ranks, tied_pairs
from hybrid_runtime.plan import Plan
from hybrid_runtime.rehearsal import RehearsedRank
from hybrid_runtime.tensor_parallel.initialise import any_weights

WARMUP_STEPS = 3  # the optimizer makes its state in the first; the byte ledger watches the others
_TOKENS = 65_536


@dataclass(frozen=True, slots=True)
class Stage:
    """What all ranks of a rehearsal have in common: plan, units, tokens, shapes of messages, and the device."""

    deployment: Deployment
    plan: Plan
    specs: Sequence[UnitSpec]
    device: torch.device
    source: TokenSource | Mixture
    shapes: Mapping[int, tuple[TensorSpec, ...]]


def set_stage(deployment: Deployment, plan: Plan, specs: Sequence[UnitSpec], device: torch.device) -> Stage:
    """Prepares what the ranks share.

    Raises:
        UsageError: a unit cannot run on the meta device, or the data of a user's own model cannot be opened.
    """
    assert deployment.model is not None
    shapes = input_specs(plan, specs, getattr(torch, deployment.model.dtype))
    return Stage(deployment, plan, specs, device, _source(deployment, plan), shapes)


def _source(deployment: Deployment, plan: Plan) -> TokenSource | Mixture:
    """Random tokens where the vocabulary is known: the data itself need not be on this machine."""
    if deployment.shape is None:
        return open_data(deployment.data, None, plan.sequence_length).training
    size = deployment.shape.vocab_size
    tokens = np.random.default_rng(deployment.workload.seed).integers(
        0, size, max(_TOKENS, 4 * plan.sequence_length), dtype=np.uint32
    )
    return ArrayTokens("random tokens", size, tokens)


class LoneRank:
    """`with LoneRank(stage, pp_rank, tp_rank) as rank`: built on entry, its memory given back on exit.

    Raises:
        EnvironmentProblem: the rank does not fit on the device.
    """

    def __init__(self, stage: Stage, pp_rank: int, tp_rank: int = 0) -> None:
        self.pp_rank = pp_rank
        self._stage = stage
        self._tp = tp_rank
        self._steps = 0
        self._units: Mapping[str, nn.Module] = {}
        self._parts: Parts | None = None
        self._recorder: LoneRecorder

    def __enter__(self) -> LoneRank:
        refuse_too_large(self._stage, self.pp_rank)
        if self._stage.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._stage.device)
        try:
            self._build()
        except (torch.OutOfMemoryError, MemoryError) as problem:
            raise does_not_fit(self._stage, self.pp_rank, str(problem)) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._parts, self._units = None, {}
        del self._recorder  # its ledger holds the parameters
        gc.collect()
        if self._stage.device.type == "cuda":
            torch.cuda.empty_cache()

    def warm_up(self) -> None:
        """The first steps; the byte ledger watches all but the very first."""
        for step in range(WARMUP_STEPS):
            self._one(Order(self._steps, self._steps, phase="warmup", watch=step > 0))

    def measure(self, steps: int, visit: int) -> None:
        """Steps that count; `visit` says in which of the rank's turns."""
        self._recorder.visit = visit
        for _ in range(steps):
            self._one(Order(self._steps, self._steps))

    def work(self) -> None:
        """A step that does not count."""
        self._one(Order(self._steps, self._steps, phase="warmup"))

    @property
    def last_window_ns(self) -> int:
        """How long the newest step took."""
        return self._recorder.window_ns

    def rehearsed(self) -> RehearsedRank:
        """What this visit recorded."""
        recorder, stage = self._recorder, self._stage
        memory = recorder.memory
        if stage.device.type == "cuda":
            peaks = {
                "allocated_peak": torch.cuda.max_memory_allocated(stage.device),
                "reserved_peak": torch.cuda.max_memory_reserved(stage.device),
            }
            memory = [found.model_copy(update=peaks) for found in memory]
        return RehearsedRank(
            pp_rank=self.pp_rank,
            tp_rank=self._tp,
            stages=tuple(part.index for part in stage.plan.stages_of(self.pp_rank)),
            flops=sum(flops_per_step(stage.deployment, stage.plan, self._units).values()),
            parameters=sum({id(p): p.numel() for unit in self._units.values() for p in unit.parameters()}.values()),
            calls=recorder.calls_of_actions(),
            memory=tuple(memory),
            steps=tuple(recorder.steps),
        )

    def _build(self) -> None:
        stage, plan = self._stage, self._stage.plan
        deployment = _without_files(stage.deployment)
        assert deployment.model is not None
        traffic = Traffic()
        groups = lone_groups(
            plan.mesh,
            plan.mesh.rank(dp=0, pp=self.pp_rank, tp=self._tp),
            edges_of(plan),
            device=stage.device,
            dtype=getattr(torch, deployment.model.dtype),
            traffic=traffic,
            tied_pairs=tied_pairs(find_tie(plan, stage.specs)),
            lookup_ranks=lookup_ranks(plan),
        )
        with any_weights():
            built: Built = build(deployment, plan, stage.specs, groups)
        self._recorder = LoneRecorder(stage.device, groups.clocks, built.ledger, traffic)
        self._units = built.units
        self._parts = assemble(deployment, plan, groups, built, stage.source, self._recorder)
        for index, spec in stage.shapes.items():
            if any(part.index == index for part in plan.stages_of(self.pp_rank)):
                self._parts.executor.expect(index, spec)

    def _one(self, order: Order) -> None:
        assert self._parts is not None, "used outside its with block"
        try:
            run_step(self._parts, order)
        except RunError as problem:
            if _is_out_of_memory(problem):
                raise does_not_fit(self._stage, self.pp_rank, str(problem)) from None
            raise
        except (torch.OutOfMemoryError, MemoryError) as problem:
            raise does_not_fit(self._stage, self.pp_rank, str(problem)) from None
        self._steps += 1


@contextmanager
def peer(deployment: Deployment, plan: Plan, rank: int) -> Iterator[Callable[[], object]]:
    """A rank of the plan, by its number in the mesh, that runs step after step on the CPU and keeps others company."""
    place = plan.mesh.place(rank)
    stage = set_stage(deployment, plan, model_units(deployment.model, deployment.shape), torch.device("cpu"))
    with LoneRank(stage, place.pp, place.tp) as lone:
        lone.warm_up()
        yield lone.work


def _without_files(deployment: Deployment) -> Deployment:
    """Random weights will do, and the files need not be here; nor are there documents in random tokens to pack."""
    assert deployment.model is not None
    model = deployment.model.model_copy(update={"weights": None})
    return deployment.model_copy(update={"model": model, "data": deployment.data.model_copy(update={"pack": False})})


def _is_out_of_memory(problem: BaseException) -> bool:
    cause: BaseException | None = problem
    while cause is not None:
        if isinstance(cause, torch.OutOfMemoryError | MemoryError) or "not enough memory" in str(cause):
            return True
        cause = cause.__cause__
    return False


def least_bytes(stage: Stage, pp_rank: int) -> int:
    """What parameters, gradients and the optimizer's state of a rank take at least."""
    assert stage.deployment.model is not None
    share = sum(stage.plan.prediction.stage_parameters[part.index] for part in stage.plan.stages_of(pp_rank))
    copies = 4 if stage.plan.workload == "train" else 1
    element = torch.empty((), dtype=getattr(torch, stage.deployment.model.dtype)).element_size()
    return share // stage.plan.tp_degree * copies * element


def refuse_too_large(stage: Stage, pp_rank: int) -> None:
    """Asks before the device is filled.

    Raises:
        EnvironmentProblem: the rank cannot fit.
    """
    needed, there = least_bytes(stage, pp_rank), free_bytes(stage.device)
    if there is not None and needed > there:
        raise does_not_fit(stage, pp_rank, f"its states alone take {needed / 2**30:.1f} GiB")


def does_not_fit(stage: Stage, pp_rank: int, why: str) -> EnvironmentProblem:
    """The one sentence about a rank that is too large for the device."""
    there = free_bytes(stage.device)
    room = "" if there is None else f" with {there / 2**30:.1f} GiB free"
    return EnvironmentProblem(
        f"pipeline rank {pp_rank} of {stage.plan.name} does not fit on {stage.device}{room} ({why}); a rehearsal "
        "scales nothing down: use a larger device, more ranks, or a smaller [batch] microbatch_size"
    )


def free_bytes(device: torch.device) -> int | None:
    """What the device still has; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = [line.split() for line in file]
    except OSError:
        return None
    return next((int(words[1]) * 1024 for words in lines if words[0] == "MemAvailable:"), None)
