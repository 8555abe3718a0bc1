"""Loss or gradients that are not finite: the unit, rank and microbatch are named, a skipped step leaves no trace.

One unit of one rank is spoilt in step 1 only, in one microbatch: its output, the gradient of its input, a gradient of
its parameters, or only the loss. Ranks must agree on everything, also where only one replica knows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hybrid_runtime.checkpoint.folders import whole
from hybrid_runtime.checkpoint.manifest import read_manifest
from hybrid_runtime.checkpoint.same_training import Training
from hybrid_runtime.data.mixture import mixture_of
from hybrid_runtime.data.opening import contents_of
from hybrid_runtime.deployment_faults import Faults
from hybrid_runtime.errors import NotFinite
from hybrid_runtime.job import run_step
from hybrid_runtime.job_checkpoints import open_checkpoints
from hybrid_runtime.job_last_words import LastWords
from hybrid_runtime.job_not_finite import NotFiniteGuard
from hybrid_runtime.job_orders import Order
from hybrid_runtime.job_parts import Built, Parts, assemble, build, join_mesh
from hybrid_runtime.job_progress import RankNumbers
from hybrid_runtime.models.build import model_costs, model_units
from hybrid_runtime.planner.make import make_plan
from hybrid_runtime.run_folder import RunFolder
from hybrid_runtime.telemetry.recorder import NullRecorder
from tests.parity import deployment, source
from tests.ranks import run_ranks

pytestmark = pytest.mark.ranks

CPU = torch.device("cpu")
TP_PP = {"tp_degree": 2, "pp_degree": 2}
PP_DP = {"pp_degree": 2, "dp_degree": 2}


class _SpoilGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * torch.inf


def parts_of(parallel: dict[str, int], schedule: str) -> tuple[Parts, Built]:
    settings = deployment(parallel=parallel, pipeline={"schedule": schedule}, model={"num_layers": 4})
    specs = model_units(settings.model, settings.shape)
    plan = make_plan(settings, model_costs(settings, specs))
    groups = join_mesh(plan, specs, device=CPU, backend="gloo", timeout=timedelta(seconds=60))
    built = build(settings, plan, specs, groups)
    return assemble(settings, plan, groups, built, source(), NullRecorder(CPU)), built


def output(carry: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (carry[0] * torch.nan, *carry[1:])


def loss_alone(carry: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (carry[0] + torch.inf,)


def input_gradient(carry: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (_SpoilGradient.apply(carry[0]), *carry[1:])  # type: ignore[no-untyped-call]


def parameter(unit: nn.Module) -> nn.Parameter:
    return max(unit.parameters(), key=torch.numel)


class Spoilt:
    """From here on one unit goes wrong in the forward of microbatch 2, also when a step is repeated."""

    def __init__(self, unit: nn.Module, how: Callable[..., Any] | None, per_step: int) -> None:
        self._unit, self._how, self._per_step, self._calls = unit, how, per_step, 0
        self._weight = parameter(unit).detach().clone()
        if how is None:
            parameter(unit).detach().view(-1)[0] = torch.inf
        self._handle = unit.register_forward_hook(self._hook)

    def _hook(self, module: nn.Module, inputs: Any, carry: Any) -> Any:
        self._calls += 1
        return self._how(carry) if self._how and (self._calls - 1) % self._per_step == 2 else None

    def mend(self) -> None:
        self._handle.remove()
        parameter(self._unit).detach().copy_(self._weight)


def everything(parts: Parts, built: Built) -> list[Tensor]:
    assert parts.update is not None
    assert parts.update.optimizer is not None
    states = [value for state in parts.update.optimizer.state.values() for value in state.values()]
    parameters = [tensor for unit in built.units.values() for tensor in unit.parameters()]
    return [tensor.detach().clone() for tensor in (*parameters, *states)]


def one_case(rank: int, folder: str, parallel: dict[str, int], schedule: str, on: int, unit: str, how: Any) -> str:
    """Steps 0 (well), 1 (spoilt on rank `on`), 2 (well); what was said of step 1."""
    parts, built = parts_of(parallel, schedule)
    skipping = NotFiniteGuard(Faults(non_finite="skip"), built, RunFolder(Path(folder)))
    stopping = NotFiniteGuard(Faults(non_finite="stop"), built, RunFolder(Path(folder)))

    def step(number: int, guard: NotFiniteGuard = skipping) -> bool:
        guard.begin_step()
        loss, numbers = run_step(parts, Order(number, number))
        return guard.after_step(parts, Order(number, number), loss, numbers)

    assert step(0)
    spoilt = Spoilt(built.units[unit], how, parts.plan.num_microbatches) if rank == on else None
    before = everything(parts, built)
    assert not step(1)
    with pytest.raises(NotFinite) as stopped:
        step(1, stopping)
    after = everything(parts, built)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True)), "the update was not skipped"
    if spoilt is not None:
        spoilt.mend()
    assert step(2)
    words: list[Any] = parts.groups.gather_objects(str(stopped.value))
    assert len(set(words)) == 1, words
    return str(words[0])


def all_cases(rank: int, folder: str) -> None:
    said = one_case(rank, folder, TP_PP, "zb_v", 1, "3.mlp", output)
    assert said.startswith("rank 1 (dp 0, pp 0, tp 1), stage 3, step 1, 3F2, unit 3.mlp: its output is not finite"), (
        said
    )
    assert "(loss nan)" in said
    said = one_case(rank, folder, TP_PP, "zb_v", 3, "2.attn", None)
    assert said.startswith("rank 3 (dp 0, pp 1, tp 1), stage 2, step 1, 2F0, unit 2.attn: its output"), said
    assert "and its parameter" in said
    said = one_case(rank, folder, TP_PP, "zb_v", 2, "1.mlp", input_gradient)
    assert said.startswith("rank 2 (dp 0, pp 1, tp 0), stage 1, step 1, 1B2, unit 1.mlp: the gradient of its input"), (
        said
    )
    said = one_case(rank, folder, PP_DP, "1f1b", 3, "head", loss_alone)
    assert said.startswith("rank 3 (dp 1, pp 1, tp 0), stage 1, step 1, 1F2, unit head: its output is not finite"), said
    assert "(loss inf)" in said


def resumed_after_a_skip(rank: int, folder: str) -> None:
    """Steps 0, 1 (skipped), 2, a checkpoint; then step 3 on the same ranks built anew: the optimizer has counted 3."""
    table = {"folder": f"{folder}/checkpoints", "every": 3}
    settings = deployment(parallel=TP_PP, faults={"non_finite": "skip"}, checkpoint=table)
    specs = model_units(settings.model, settings.shape)
    plan = make_plan(settings, model_costs(settings, specs))
    groups = join_mesh(plan, specs, device=CPU, backend="gloo", timeout=timedelta(seconds=60))
    (Path(folder) / "checkpoints").mkdir(exist_ok=True)
    training = Training(settings, plan, specs, groups, contents_of(mixture_of(source())))

    def steps(numbers: range, resumed: Path | None) -> set[int | None]:
        built = build(settings, plan, specs, groups)
        checkpoints = open_checkpoints(training, built, resumed, LastWords(), writing=True)
        parts = assemble(settings, plan, groups, built, source(), NullRecorder(CPU), checkpoints)
        guard = NotFiniteGuard(settings.faults, built, RunFolder(Path(folder)))
        for number in numbers:
            spoilt = Spoilt(built.units["1.mlp"], output, 8) if (number, rank) == (1, 2) else None
            guard.begin_step()
            loss, everyone = run_step(parts, Order(number, number))
            assert guard.after_step(parts, Order(number, number), loss, everyone) == (number != 1)
            checkpoints.after_step(number + 1, everyone)
            if spoilt is not None:
                spoilt.mend()
        checkpoints.finish()
        assert built.update is not None
        assert built.update.optimizer is not None
        return {int(state["step"]) for state in built.update.optimizer.state.values()}

    assert steps(range(3), None) == {2}
    newest = whole(Path(folder) / "checkpoints")[-1]
    assert (newest.name, read_manifest(newest).skipped) == ("step-00000003", 1)
    assert steps(range(3, 5), newest) == {4}
    newest = whole(Path(folder) / "checkpoints")[-1]
    assert (newest.name, read_manifest(newest).skipped) == ("step-00000005", 1)


def all_of_it(rank: int, folder: str) -> None:
    all_cases(rank, folder)
    resumed_after_a_skip(rank, folder)


def test_the_unit_is_named_and_a_skipped_step_leaves_no_trace(tmp_path: Path) -> None:
    run_ranks(4, all_of_it, str(tmp_path))
    skipped = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [line["step"] for line in skipped] == [1] * 5
    assert "unit head: its output" in skipped[-2]["why"]


def test_it_does_not_skip_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NotFiniteGuard, "_words", lambda *asked: "why")
    noted: list[int] = []
    parts: Any = SimpleNamespace(
        update=object(),
        checkpoints=SimpleNamespace(note_skipped=lambda: noted.append(1)),
        groups=SimpleNamespace(place=SimpleNamespace(rank=0)),
    )
    faults = Faults(non_finite="skip", most_skips_in_a_row=3)
    guard = NotFiniteGuard(faults, Any, RunFolder(tmp_path))  # type: ignore[arg-type]
    norms = [1.0, math.nan, math.inf, math.nan, 1.0, *[math.nan] * 3]
    numbers = [[RankNumbers(1, 1, 1, 1, norm)] for norm in norms]
    assert [guard.after_step(parts, Order(k, k), 2.0, numbers[k]) for k in range(8)] == [norm == 1 for norm in norms]
    with pytest.raises(
        NotFinite, match="why; the 3 steps before were skipped already, and nothing is learned any more"
    ):
        guard.after_step(parts, Order(8, 8), math.nan, [RankNumbers(1, 1, 1, 1, 1.0)])
    assert len(noted) == 6
