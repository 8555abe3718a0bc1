"""Deployments trained by what a job does, without torchrun: alone in this process, or on the test's ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import torch

from hybrid_runtime.comm.groups import Groups
from hybrid_runtime.data.tokens import TokenSource
from hybrid_runtime.deployment import Deployment
from hybrid_runtime.job import run_step
from hybrid_runtime.job_orders import Order
from hybrid_runtime.job_parts import Built, Parts, assemble, build, join_mesh
from hybrid_runtime.lone.group import Traffic
from hybrid_runtime.lone.maker import lone_groups
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.models.build import model_costs, model_units
from hybrid_runtime.models.unit import UnitSpec
from hybrid_runtime.plan import Plan
from hybrid_runtime.planner.make import make_plan
from hybrid_runtime.telemetry.recorder import NullRecorder
from tests import parity

CPU = torch.device("cpu")


class Rank(NamedTuple):
    """One rank, ready for its first step."""

    built: Built
    parts: Parts

    def train(self, steps: int, first: int = 0) -> list[float]:
        """The losses of so many steps."""
        found = [run_step(self.parts, Order(step, step))[0] for step in range(first, first + steps)]
        return [loss for loss in found if loss is not None]


def alone(settings: Deployment, source: TokenSource | None = None) -> Rank:
    """The only rank of a deployment."""
    assert settings.model is not None
    dtype: Any = getattr(torch, settings.model.dtype)
    return _rank(settings, lambda *_: lone_groups(Mesh(), 0, [], device=CPU, dtype=dtype, traffic=Traffic()), source)


def together(settings: Deployment, source: TokenSource | None = None) -> Rank:
    """This rank of a deployment's mesh; every rank calls it."""
    return _rank(
        settings,
        lambda plan, specs: join_mesh(plan, specs, device=CPU, backend="gloo", timeout=timedelta(seconds=60)),
        source,
    )


def _rank(settings: Deployment, join: Callable[[Plan, Sequence[UnitSpec]], Groups], source: TokenSource | None) -> Rank:
    specs = model_units(settings.model, settings.shape)
    plan = make_plan(settings, model_costs(settings, specs))
    groups = join(plan, specs)
    built = build(settings, plan, specs, groups)
    return Rank(built, assemble(settings, plan, groups, built, source or parity.source(), NullRecorder(CPU)))
