"""What happens after the last backward: gradients summed over the mesh, the global norm, clipping, AdamW.

tp       a parameter whose ranks hold only a part of its gradient (norms under sequence parallelism, shared kv heads)
tied     a tied weight's rows and their copies on other stages
dp       all gradients, in buckets; of a stage whose last backward is done while the pipeline still runs
norm     over the whole replica (all replicas where the optimizer is sharded), every element of the model counted once
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hybrid_runtime.comm.axis import Axis
from hybrid_runtime.comm.collectives import all_reduce
from hybrid_runtime.comm.groups import Groups
from hybrid_runtime.data_parallel.buckets import GradientBuckets
from hybrid_runtime.deployment import Optimizer
from hybrid_runtime.tensor_parallel.gradients import set_accumulate_in_place
from hybrid_runtime.tensor_parallel.shard import (
    ShardSpec,
    counted_ranges,
    iter_parameters,
    square_sum,
    sum_partial_gradients,
)
from hybrid_runtime.training.adamw import FlatAdamW
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
        steps: length of the learning-rate schedule, if the settings give it none.
        tied: what the rank holds together with other ranks.
        stages: by unit, the stage after whose last backward its gradients are there; units that are not named wait for
            `sum_gradients`.
        sharded: every replica updates a part of each parameter and has the optimizer's state of no other (ZeRO-1).

    Attributes:
        copies: parameters of this rank that count on another one, in the norm and in checkpoints.
    """

    def __init__(
        self,
        units: Mapping[str, nn.Module],
        groups: Groups,
        settings: Optimizer,
        *,
        steps: int,
        tied: Sequence[TiedRows] = (),
        stages: Mapping[str, int] = MappingProxyType({}),
        sharded: bool = False,
    ) -> None:
        self._groups = groups
        self._settings = settings
        self._steps = steps
        self._units = dict(units)
        self._tied = tuple(tied)
        self._sharded = sharded and groups.dp.size > 1
        self.copies = tuple(rows.parameter for rows in tied if not rows.counted)
        named = list(iter_parameters(self._units))
        self.buckets = GradientBuckets(
            [parameter for _, parameter, _ in named],
            groups.dp,
            sharded=self._sharded,
            stage_of=self._stage_of(stages),
            alone=[rows.parameter for rows in tied],
            wide=settings.master_weights,
        )
        for unit in units.values():
            set_accumulate_in_place(unit, True)
        self.optimizer = FlatAdamW(self.buckets.buckets, settings)
        self._counted = list(self._counted_gradients({id(parameter): spec for _, parameter, spec in named}))

    def _stage_of(self, stages: Mapping[str, int]) -> Callable[[nn.Parameter], int | None]:
        """The one stage that adds to a parameter's gradient; None where there are several, or other ranks add to it."""
        found: dict[int, set[int | None]] = {id(rows.parameter): {None} for rows in self._tied}
        for name, unit in self._units.items():
            for _, parameter, spec in iter_parameters(unit):
                partial = spec.partial and self._groups.tp.group is not None
                found.setdefault(id(parameter), set()).add(None if partial else stages.get(name))
        only = {key: next(iter(adding)) for key, adding in found.items() if len(adding) == 1}
        return lambda parameter: only.get(id(parameter))

    def _counted_gradients(self, specs: Mapping[int, ShardSpec]) -> Iterator[Tensor]:
        """Views of what this rank adds to the norm: of its own slices, every element of the model counted once."""
        copies = {id(parameter) for parameter in self.copies}
        for bucket in self.buckets.buckets:
            for member in bucket.members:
                start, stop = bucket.own_part(member)
                if id(member.parameter) not in copies:
                    for first, last in counted_ranges(specs[id(member.parameter)], self._groups.tp):
                        first, last = max(first, start), min(last, stop)
                        if first < last:
                            yield bucket.gradients[member.start + first : member.start + last]

    def sum_gradients(self) -> None:
        """Sums what is partial, over tp, tied copies and replicas.

        Afterwards every gradient is the global batch's; where the optimizer is sharded, the rank's own slices are.
        """
        sum_partial_gradients(self._units, self._groups.tp)
        self._sum_tied()
        self.buckets.finish()

    def learn_of(self, loss_sum: Tensor | None) -> None:
        """A loss that is not finite makes a gradient so: every rank hears of it by the norm, and all decide alike.

        A finite one adds 0 to it. There is no synchronisation. To be called before the gradients of the loss' own stage
        are summed.
        """
        if loss_sum is not None:
            self.buckets.add_to_one(loss_sum * 0)

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
        square = square_sum(self._counted).to(self._groups.device)
        for axis in (self._groups.dp, self._groups.replica) if self._sharded else (self._groups.replica,):
            all_reduce(square, axis, name="all_reduce_norm")
        return square.sqrt()

    def apply(self, step: int, norm: Tensor) -> None:
        """Clips by the global norm and updates the parameters; no synchronisation with the host on a GPU."""
        settings = self._settings
        if settings.clip_norm is not None:
            self.buckets.scale((float(settings.clip_norm) / (norm + 1e-6)).clamp(max=1.0).to(torch.float32))
        self.optimizer.step(rate_at(step, settings, self._steps))
