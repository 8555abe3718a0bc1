"""What happens after the last backward: gradients summed over the mesh, the global norm, clipping, AdamW.

tp       a parameter whose ranks hold only a part of its gradient (norms under sequence parallelism, shared kv heads)
tied     a tied weight's rows and their copies on other stages
dp       all gradients, in buckets
norm     over the whole replica, every element of the model counted once
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hybrid_runtime.comm.axis import Axis
from hybrid_runtime.comm.groups import Groups
from hybrid_runtime.data_parallel.buckets import GradientBuckets
from hybrid_runtime.deployment import Optimizer
from hybrid_runtime.tensor_parallel.gradients import set_accumulate_in_place
from hybrid_runtime.tensor_parallel.shard import counted_square_sum, iter_parameters, sum_partial_gradients
from hybrid_runtime.training.learning_rate import rate_at


class TiedRows(NamedTuple):
    """Rows of a parameter that another rank holds too; both add up their gradients and so stay equal.

    Attributes:
        rows: first one and how many, of the rank's own share of the parameter; None for all.
        axis: the two ranks.
        counted: this rank's parameter is the one counted in the norm.
    """

    parameter: nn.Parameter
    rows: tuple[int, int] | None
    axis: Axis
    counted: bool

    def of(self, tensor: Tensor) -> Tensor:
        """These rows of the parameter or of its gradient: a view, contiguous."""
        tensor = tensor.detach()
        return tensor if self.rows is None else tensor.narrow(0, *self.rows)

    @property
    def gradient(self) -> Tensor:
        assert self.parameter.grad is not None
        return self.of(self.parameter.grad)


class Update:
    """Gradients, optimizer and learning rate of one rank's units.

    Args:
        units: the rank's units by name.
        tied: what the rank holds together with other ranks.
        steps: length of the learning-rate schedule, if the settings give it none.
    """

    def __init__(
        self,
        units: Mapping[str, nn.Module],
        groups: Groups,
        settings: Optimizer,
        *,
        steps: int,
        tied: Sequence[TiedRows] = (),
    ) -> None:
        self._groups = groups
        self._settings = settings
        self._steps = steps
        self._units = dict(units)
        self._tied = tuple(tied)
        twice = {id(rows.parameter) for rows in tied if not rows.counted}
        named = list(iter_parameters(self._units))
        self._counted = [(parameter, spec) for _, parameter, spec in named if id(parameter) not in twice]
        parameters = [parameter for _, parameter, _ in named]
        self.buckets = GradientBuckets(parameters)
        for unit in units.values():
            set_accumulate_in_place(unit, True)
        self.optimizer = _adamw(parameters, settings)

    def sum_gradients(self) -> None:
        """Sums what is partial, over tp, tied copies and replicas; afterwards every gradient is the global batch's."""
        sum_partial_gradients(self._units, self._groups.tp)
        self._sum_tied()
        self.buckets.sum_over(self._groups.dp)

    def _sum_tied(self) -> None:
        """All are started before the first is waited for: they are different rows."""
        works = [
            (rows.axis, dist.all_reduce(rows.gradient, group=rows.axis.group, async_op=True)) for rows in self._tied
        ]
        for axis, work in works:
            assert work is not None
            with axis.waiting("all_reduce_tied"):
                work.wait()

    def gradient_norm(self) -> Tensor:
        """Euclidean norm over the whole model (a scalar on the device), every element counted once."""
        square = counted_square_sum(self._counted, self._groups.tp).to(self._groups.device)
        replica = self._groups.replica
        if replica.group is not None:
            with replica.waiting("all_reduce_norm"):
                dist.all_reduce(square, group=replica.group)
        return square.sqrt()

    def apply(self, step: int, norm: Tensor) -> None:
        """Clips by the global norm and updates the parameters; no synchronisation with the host."""
        settings = self._settings
        if settings.clip_norm is not None:
            self.buckets.scale((float(settings.clip_norm) / (norm + 1e-6)).clamp(max=1.0).to(torch.float32))
        rate = rate_at(step, settings, self._steps)
        if self.optimizer is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()


def _adamw(parameters: Sequence[nn.Parameter], settings: Optimizer) -> torch.optim.AdamW | None:
    """None on a rank whose units have nothing to train."""
    groups = _decayed(parameters, float(settings.weight_decay))
    if not groups:
        return None
    return torch.optim.AdamW(
        groups,
        lr=float(settings.learning_rate),
        betas=(float(settings.beta1), float(settings.beta2)),
        eps=float(settings.eps),
        fused=True,
    )


def _decayed(parameters: Sequence[nn.Parameter], weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay, vectors (norms, biases) do not."""
    unique = list({id(parameter): parameter for parameter in parameters if parameter.requires_grad}.values())
    groups: list[dict[str, object]] = [
        {"params": [p for p in unique if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in unique if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
