"""AdamW over flat buckets: every replica updates its own slices, and tells the others what came out.

    bucket 0   update own slice | gather ------------------|
    bucket 1                    | update own slice | gather ----------|     where sharded (ZeRO-1)

Where buckets are not sharded, the own slice is everything and nothing is gathered. What AdamW remembers lies flat, as
the slices do; `moments_of` finds a parameter's part in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from hybrid_runtime.data_parallel.buckets import Bucket
from hybrid_runtime.deployment import Optimizer
from hybrid_runtime.training.master_weights import MASTER, MasterAdamW

MOMENTS = ("exp_avg", "exp_avg_sq", MASTER)
_PARTS = 4  # of the buckets, updated one after the other: while one is gathered, the next one is updated


class Moment(NamedTuple):
    """What AdamW remembers of a run of a parameter's elements.

    Attributes:
        name: one of MOMENTS.
        start: the first element, of the flattened parameter.
        values: flat, a view.
    """

    name: str
    start: int
    values: Tensor


class _Run(NamedTuple):
    """Neighbouring elements of a bucket that are updated alike; `values` is the parameter that torch's AdamW sees."""

    bucket: Bucket
    decays: bool
    start: int
    stop: int
    values: nn.Parameter


class _Part:
    """Some buckets, updated at once; without an optimizer where this replica updates nothing of them."""

    def __init__(self, buckets: Sequence[Bucket], settings: Optimizer) -> None:
        self.buckets = buckets
        self.runs = [_run(bucket, *run) for bucket in buckets for run in bucket.runs()]
        self.optimizer = _adamw(self.runs, settings) if self.runs else None

    def update(self, rate: float) -> None:
        if self.optimizer is not None:
            self.optimizer.step(rate)

    def state_of(self, run: _Run) -> Mapping[str, Tensor]:
        assert self.optimizer is not None, "a run has an optimizer"
        return self.optimizer.state[run.values]


class FlatAdamW:
    """AdamW of a rank's buckets, which it updates in place."""

    def __init__(self, buckets: Sequence[Bucket], settings: Optimizer) -> None:
        count = _PARTS if any(bucket.is_sharded for bucket in buckets) else 1
        each = max(1, -(-len(buckets) // count))
        self._parts = [_Part(buckets[first : first + each], settings) for first in range(0, len(buckets), each)]
        self._places = {
            member.parameter.data_ptr(): (part, bucket, member)
            for part in self._parts
            for bucket in part.buckets
            for member in bucket.members
            if member.parameter.numel()
        }

    def step(self, rate: float) -> None:
        """Updates every parameter with its gradient, on all replicas; no synchronisation with the host on a GPU."""
        gathers = []
        for part in self._parts:
            part.update(rate)
            gathers += [bucket.start_gather() for bucket in part.buckets]
        for gather in gathers:
            if gather is not None:
                gather.wait()

    @property
    def state(self) -> Mapping[Tensor, Mapping[str, Tensor]]:
        """By run, what torch's optimizers call so: the moments, and the count of updates."""
        found = [part.optimizer.state for part in self._parts if part.optimizer is not None]
        return {run: state for states in found for run, state in states.items()}

    @property
    def steps(self) -> int | None:
        """Updates that were counted (for every run alike); None where this replica updates nothing."""
        counts = [int(part.state_of(run)["step"]) for part in self._parts for run in part.runs[:1]]
        return counts[0] if counts else None

    def prepare(self, steps: int = 0) -> None:
        """Gives every run the state that AdamW would give it in its first update, at a count of updates."""
        for part in self._parts:
            if part.optimizer is not None:
                part.optimizer.prepare()
            for run in part.runs:
                part.state_of(run)["step"].fill_(steps)

    def masters_for_gradients(self) -> bool:
        """Puts the whole master copies of all parameters where their gradients are, which nobody needs after the last
        step; every replica calls it.

        Returns:
            Whether there are some; otherwise nothing has changed.
        """
        if not any(MASTER in state for state in self.state.values()):
            return False
        for part in self._parts:
            for run in part.runs:
                run.bucket.gradients[run.start : run.stop] = part.state_of(run)[MASTER]
            for bucket in part.buckets:
                if (gather := bucket.start_gather_gradients()) is not None:
                    gather.wait()
        return True

    def moments_of(self, parameter: Tensor) -> Iterator[Moment]:
        """What is remembered here of a parameter (or a tensor with its memory); nothing of one that is not trained.

        The state must exist: `prepare` makes it.
        """
        place = self._places.get(parameter.data_ptr()) if parameter.numel() else None
        if place is None:
            return
        part, bucket, member = place
        start, stop = bucket.own_part(member)
        first = member.start + start  # in the bucket
        for run in part.runs:
            if run.bucket is bucket and start < stop and run.start <= first < run.stop:
                state, here = part.state_of(run), first - run.start
                for name in MOMENTS if MASTER in state else MOMENTS[:-1]:
                    yield Moment(name, start, state[name][here : here + stop - start])


def _run(bucket: Bucket, decay: bool, start: int, stop: int) -> _Run:
    values = nn.Parameter(bucket.values[start:stop])
    values.grad_dtype = bucket.gradients.dtype
    values.grad = bucket.gradients[start:stop]
    return _Run(bucket, decay, start, stop, values)


def _adamw(runs: Sequence[_Run], settings: Optimizer) -> MasterAdamW:
    decay = float(settings.weight_decay)
    return MasterAdamW(
        {run.values: decay if run.decays else 0.0 for run in runs},
        betas=(float(settings.beta1), float(settings.beta2)),
        eps=float(settings.eps),
    )
