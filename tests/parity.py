"""One process as the oracle: the same model trained without any of the runtime's parallel parts.

The oracle builds the units whole (tp size 1), runs the global batch at once through plain autograd, clips with torch's
own function and updates with torch's AdamW. The runtime's ranks run `job.run_step`, exactly as a job does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from hybrid_runtime.comm.collectives import start_gather_slices
from hybrid_runtime.comm.groups import Groups
from hybrid_runtime.data.mixture import Mixture, mixture_of
from hybrid_runtime.data.sampler import Batches
from hybrid_runtime.data.tokens import ArrayTokens, TokenSource
from hybrid_runtime.deployment import Deployment, parse_deployment
from hybrid_runtime.job import run_step
from hybrid_runtime.job_orders import Order
from hybrid_runtime.job_parts import assemble, build, join_mesh
from hybrid_runtime.job_validation import open_validation
from hybrid_runtime.models.build import build_units, model_costs, model_units
from hybrid_runtime.models.unit import NO_TARGET, BuildContext, Microbatch
from hybrid_runtime.pieces import read_piece
from hybrid_runtime.plan import Plan
from hybrid_runtime.planner.make import make_plan
from hybrid_runtime.telemetry.recorder import NullRecorder
from hybrid_runtime.tensor_parallel.shard import gather_full, iter_parameters
from hybrid_runtime.training.learning_rate import learning_rate

Data = TokenSource | Mixture
STEPS = 5
VOCABULARY = 50
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "ffn_size": 48,
}  # fmt: skip
BATCH = {"global_batch_size": 8, "microbatch_size": 1, "sequence_length": 8}


class History(NamedTuple):
    """What a training of STEPS steps left: losses, norms, and by name the last step's summed, unclipped gradients and
    the parameters after it.

    `validations` are the losses on data that was held out, where there is some.
    """

    losses: list[float]
    norms: list[float]
    gradients: dict[str, Tensor]
    parameters: dict[str, Tensor]
    validations: list[float]


def deployment(**changes: Any) -> Deployment:
    """A small Llama with grouped-query attention and a vocabulary that 4 ranks do not divide."""
    model = changes.pop("model", {})
    values: dict[str, Any] = {
        "name": "parity",
        "model": model if "units" in model else {"preset": "tiny", **SHAPE, **model},
        "parallel": changes.pop("parallel", {}),
        "pipeline": changes.pop("pipeline", {}),
        "batch": BATCH,
        "workload": {"steps": STEPS, "seed": 7},
        # A larger eps keeps AdamW from turning rounding noise of gradients near zero into whole steps.
        "optimizer": {"learning_rate": "0.01", "warmup_steps": 2, "clip_norm": "0.5", "eps": "0.0001"},
        "hardware": {"device": "cpu", "oversubscribe": True},
    }
    return parse_deployment(values | changes, source="parity test")


def source() -> ArrayTokens:
    """Random tokens."""
    return ArrayTokens("random", VOCABULARY, np.random.default_rng(0).integers(0, VOCABULARY, 1000, dtype=np.uint16))


def whole_batch(settings: Deployment, step: int, data: Data | None = None) -> Microbatch:
    """The global batch of a step as one microbatch; the sampler is the real one."""
    assert settings.batch is not None
    sizes = settings.batch
    parts = Batches(
        data or source(),
        global_batch_size=sizes.global_batch_size,
        microbatch_size=sizes.global_batch_size,
        sequence_length=sizes.sequence_length,
        seed=settings.workload.seed,
        pack=settings.data.pack,
    ).microbatches(step)
    return parts[0]


def one_process(settings: Deployment, data: Data | None = None, held_out: Data | None = None) -> History:
    """The oracle."""
    units = build_units(model_units(settings.model, settings.shape), BuildContext(seed=settings.workload.seed))
    named = dict(_named(units))
    parameters = list(named.values())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.1},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
        eps=float(settings.optimizer.eps),
    )
    losses, norms, gradients, validations = [], [], {}, []
    for step in range(STEPS):
        batch = whole_batch(settings, step, data)
        loss = _loss(units, batch) / _targets(batch)
        optimizer.zero_grad()
        loss.backward()
        gradients = {name: parameter.grad.clone() for name, parameter in named.items() if parameter.grad is not None}
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, 0.5)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, peak=0.01, final=0.0, warmup_steps=2, steps=STEPS)
        optimizer.step()
        losses.append(loss.item())
        if held_out is not None and (step + 1 == STEPS or (step + 1) % (settings.workload.validate_every or 1) == 0):
            validations.append(_validation_loss(units, settings, held_out))
    parameters = {name: parameter.detach() for name, parameter in named.items()}
    return History(losses, norms, gradients, parameters, validations)


def _validation_loss(units: dict[str, nn.Module], settings: Deployment, held_out: Data) -> float:
    batches = [whole_batch(settings, step, held_out) for step in range(settings.workload.validation_batches)]
    with torch.no_grad():
        return sum(_loss(units, batch).item() for batch in batches) / sum(map(_targets, batches))


def _targets(batch: Microbatch) -> int:
    assert batch.targets is not None
    return int((batch.targets != NO_TARGET).sum())


def _loss(units: dict[str, nn.Module], batch: Microbatch) -> Tensor:
    carry: tuple[Tensor, ...] = ()
    for unit in units.values():
        carry = unit(carry, batch)
    return carry[0]


def _named(units: dict[str, nn.Module]) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter, _ in iter_parameters(units)]


def this_rank(
    settings: Deployment, data: Data | None = None, held_out: Data | None = None
) -> tuple[Plan, Groups, History]:
    """The runtime's side; every rank of the mesh calls it and gets the whole model's gradients."""
    specs = model_units(settings.model, settings.shape)
    plan = make_plan(settings, model_costs(settings, specs))
    groups = join_mesh(plan, specs, device=torch.device("cpu"), backend="gloo", timeout=timedelta(seconds=60))
    built = build(settings, plan, specs, groups)
    parts = assemble(settings, plan, groups, built, data or source(), NullRecorder(torch.device("cpu")))
    validation = open_validation(settings, parts, built, None if held_out is None else mixture_of(held_out))
    units, update = built.units, built.update
    assert update is not None
    losses, norms, local, validations = [], [], {}, []

    def keep(norm: Tensor) -> None:
        norms.append(norm.item())
        if settings.parallel.shard_optimizer and groups.dp.size > 1:  # the others' sums are on other replicas
            for bucket in update.buckets.buckets:
                start_gather_slices(bucket.gradients, groups.dp).wait()
        local.update({name: p.grad.clone() for name, p, _ in iter_parameters(units) if p.grad is not None})

    apply = update.apply
    update.apply = lambda step, norm: (keep(norm), apply(step, norm))[1]  # type: ignore[method-assign]
    for step in range(STEPS):
        loss, _ = run_step(parts, Order(step, step))
        assert loss is not None
        losses.append(loss)
        found = None if validation is None else validation.after_step(step + 1)
        validations += [] if found is None else [found]
    parameters = {name: parameter.detach() for name, parameter, _ in iter_parameters(units)}
    wholes = [_whole(units, tensors, groups) for tensors in (local, parameters)]
    return plan, groups, History(losses, norms, *wholes, validations)


def _whole(units: dict[str, nn.Module], local: dict[str, Tensor], groups: Groups) -> dict[str, Tensor]:
    gathered = {name: gather_full(local[name], spec, groups.tp) for name, _, spec in iter_parameters(units)}
    whole: dict[str, Tensor] = {}
    for part in cast("list[dict[str, Tensor]]", groups.gather_objects(gathered)):
        for name, gradient in part.items():
            if name in whole:  # another replica or tensor rank: must hold the very same
                torch.testing.assert_close(gradient, whole[name], rtol=1e-6, atol=1e-9)
            whole[name] = gradient
    return _joined(whole)


def _joined(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Pieces of a unit under the unit's name: each is zero where the others are. Rows are left to `joined_rows`."""
    whole: dict[str, Tensor] = {}
    for name, gradient in gradients.items():
        unit = name if name.startswith("embedding[") else re.sub(r"\[\d+:\d+\]", "", name)
        whole[unit] = whole[unit] + gradient if unit in whole else gradient
    return whole


def joined_rows(gradients: dict[str, Tensor], owner: str = "embedding.tokens.weight") -> dict[str, Tensor]:
    """The gradients of a sharded embedding's rows put together. Those of this package's layers are whole, with zeros
    where others' rows are; those of plain modules are the rows alone."""
    unit, _, parameter = owner.partition(".")
    rows = {read_piece(name.removesuffix(f".{parameter}")): name for name in gradients if name.startswith(f"{unit}[")}
    whole = {name: gradient for name, gradient in gradients.items() if name not in rows.values()}
    if rows and owner not in whole:
        found = [(piece, gradients[rows[piece]]) for piece in sorted(piece for piece in rows if piece is not None)]
        alone = all(len(gradient) == piece.parts for piece, gradient in found)
        parts = [gradient for _, gradient in found]
        whole[owner] = torch.cat(parts) if alone else torch.stack(parts).sum(0)
    return whole


def assert_same(
    run: History,
    oracle: History,
    *,
    relative: float = 1e-5,
    tied: Sequence[str] = (),
    owner: str = "embedding.tokens.weight",
) -> None:
    """Losses, norms and every gradient agree; `tied` names copies that the oracle holds once."""
    np.testing.assert_allclose(run.losses, oracle.losses, rtol=relative)
    np.testing.assert_allclose(run.norms, oracle.norms, rtol=relative)
    np.testing.assert_allclose(run.validations, oracle.validations, rtol=relative)
    assert set(oracle.gradients) <= set(run.gradients)
    assert set(run.gradients) - set(oracle.gradients) <= set(tied)
    for name, gradient in run.gradients.items():
        expected = oracle.gradients.get(name, oracle.gradients[owner] if name in tied else None)
        assert expected is not None, name
        error = float((gradient - expected).norm() / expected.norm())
        assert error <= relative, f"{name}: relative error {error:.2e}"
