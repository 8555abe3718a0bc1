"""The queue of weight gradients that wait: a backward split into I (input gradient) and W (weight gradient).

    B   per layer   dX = dY W   dW = dY' X                     at once: nothing comes here
    I   per layer   dX = dY W   push (X, dY)                   the gradient of the stage's input is ready early
    W                           pop (X, dY): dW = dY' X        later, where the schedule has nothing better to do

    W0 and W1 wait, and an I meets a collective:
    compute   dX = dY W | W0 W0 | wait      only what fits: more would delay the gradient to the previous stage
    network             [ all-reduce ]

First in, first out per stage: every parameter sees microbatches in the order of their I, so gradients are bit-equal to
those of a B in that order. Only the products dY' X of linears wait; biases, norms, embeddings and the parameters of
ordinary modules get their gradients in I.

A waiting product keeps X and dY alive after autograd has dropped them: in a gated block about as many bytes as all that
the block saved. W is what frees a microbatch's memory.

Method: Qi et al. 2023 (zero bubble, arXiv 2401.10241); a queue instead of walking autograd's graph twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from threading import RLock
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from hybrid_runtime.comm.collectives import Pending
from hybrid_runtime.tensor_parallel.stopwatch import HostStopwatch, LeastTimes, Stopwatch


class Deferred(Protocol):
    """One weight gradient that waits."""

    @property
    def layer(self) -> Hashable:
        """Whose; all work of a layer takes about equally long."""

    @property
    def tensors(self) -> Sequence[Tensor]:
        """What it keeps alive."""

    @property
    def gathers(self) -> bool:
        """It begins with a collective, so all ranks of the axis must do it at the same place in their order."""

    def start(self) -> None:
        """Starts the collective, if there is one; called exactly once, before `run`."""

    def run(self) -> None:
        """Adds the gradient to its parameter's `.grad`."""


class _Waiting(NamedTuple):
    work: Deferred
    storages: Sequence[tuple[int, int]]  # pointer and bytes
    tokens: Sequence[object]  # the ledger counts the tensors for as long as these live


class WeightQueue:
    """One rank's queue, shared by all its stages.

    Thread-safe: autograd runs the backward of a GPU on a thread of its own. Work is done on the calling thread's
    current stream, which is the one compute stream of the rank.

    Args:
        fills: whether an I may do older work while its collectives are under way.
        keep: called with every tensor that waits; the result is dropped when it no longer does. None keeps no count.
        change_span: called with the name of the action that the time belongs to from now on (`0W2`, then `0I5` again).
        stopwatch: times products and collectives, where it fills.

    Attributes:
        waiting_bytes: of the storages that are waiting now.
        peak_bytes: the most that ever waited at once.
        pushed_bytes, popped_bytes: totals; what a microbatch's I pushes is its share of activations that live until W.
    """

    def __init__(
        self,
        *,
        fills: bool = False,
        keep: Callable[[Tensor], object] | None = None,
        change_span: Callable[[str], None] | None = None,
        stopwatch: Stopwatch | None = None,
    ) -> None:
        self._fills = fills
        self._keep = keep
        self._change_span = change_span or (lambda name: None)
        self._times = LeastTimes(stopwatch or HostStopwatch())
        self._lock = RLock()
        self._current: tuple[int, int] | None = None
        self._waiting: dict[tuple[int, int], deque[_Waiting]] = {}  # by (stage, microbatch), in order of their I
        self._uses: dict[int, int] = {}  # of every storage that waits, by its pointer
        self.waiting_bytes = self.peak_bytes = self.pushed_bytes = self.popped_bytes = 0

    @property
    def is_deferring(self) -> bool:
        """The backward that runs now is an I: push instead of computing."""
        return self._current is not None

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    @contextmanager
    def deferring(self, stage: int, microbatch: int) -> Iterator[None]:
        """Encloses the backward of an I."""
        self._current = (stage, microbatch)
        try:
            yield
        finally:
            self._current = None

    def push(self, work: Deferred) -> None:
        """To be done in the W of the stage and microbatch whose I runs now, or sooner."""
        assert self._current is not None, "pushed outside an I"
        tokens = () if self._keep is None else tuple(map(self._keep, work.tensors))
        storages = [(storage.data_ptr(), storage.nbytes()) for storage in map(Tensor.untyped_storage, work.tensors)]
        with self._lock:
            self._waiting.setdefault(self._current, deque()).append(_Waiting(work, storages, tokens))
            self._count_in(storages)

    def run(self, stage: int, microbatch: int) -> None:
        """W: does what still waits for this stage and microbatch, in order."""
        with self._lock:
            waiting = self._waiting.get((stage, microbatch))
            if waiting is None:
                return
            waiting[0].work.start()
            while waiting:
                if len(waiting) > 1:
                    waiting[1].work.start()  # its tensors are gathered while this product is computed
                self._do(waiting)
            del self._waiting[stage, microbatch]

    def wait(self, collective: Pending, layer: Hashable) -> Tensor:
        """The result of a collective that an I has started; meanwhile older work is done, as much as fits.

        Before something has been timed often enough it is not known to fit. Work that gathers never fits: its
        collective would queue behind this one, and ranks that judge by their own clocks would disagree about its place.
        """
        assert self._current is not None, "waited outside an I"
        if not self._fills:
            return collective.wait()
        with self._lock:
            key = ("collective", layer)
            left_ns = self._times.known_ns(key)
            if left_ns is not None:
                self._fill(left_ns)
                return collective.wait()
            start = self._times.start(key)
            result = collective.wait()
            self._times.stop(key, start)
            return result

    def holds(self, tensors: Sequence[Tensor]) -> bool:
        """Whether work that waits will still read one of these storages."""
        with self._lock:
            return any(tensor.untyped_storage().data_ptr() in self._uses for tensor in tensors)

    def _fill(self, left_ns: int) -> None:
        span: tuple[int, int] | None = None
        while (found := self._oldest_that_fits(left_ns)) is not None:
            pair, work_ns = found
            if pair != span:
                self._change_span(f"{pair[0]}W{pair[1]}")
                span = pair
            self._waiting[pair][0].work.start()
            self._do(self._waiting[pair])
            left_ns -= work_ns
            if not self._waiting[pair]:
                del self._waiting[pair]
        if span is not None and self._current is not None:
            self._change_span(f"{self._current[0]}I{self._current[1]}")

    def _oldest_that_fits(self, left_ns: int) -> tuple[tuple[int, int], int] | None:
        """Of the first in every stage's line, the oldest that fits."""
        stages = set()
        for pair, waiting in self._waiting.items():
            if pair[0] in stages:
                continue
            stages.add(pair[0])
            work = waiting[0].work
            work_ns = None if work.gathers else self._times.known_ns(work.layer)
            if work_ns is not None and work_ns <= left_ns:
                return pair, work_ns
        return None

    def _do(self, waiting: deque[_Waiting]) -> None:
        work = waiting[0].work
        start = self._times.start(work.layer) if self._fills else None
        work.run()
        self._times.stop(work.layer, start)
        self._count_out(waiting.popleft().storages)

    def _count_in(self, storages: Sequence[tuple[int, int]]) -> None:
        """Storages are counted once, however many products read them: the ledger does so too."""
        for pointer, nbytes in storages:
            uses = self._uses.get(pointer, 0)
            self._uses[pointer] = uses + 1
            if not uses:
                self.waiting_bytes += nbytes
                self.pushed_bytes += nbytes
        self.peak_bytes = max(self.peak_bytes, self.waiting_bytes)

    def _count_out(self, storages: Sequence[tuple[int, int]]) -> None:
        for pointer, nbytes in storages:
            self._uses[pointer] -= 1
            if not self._uses[pointer]:
                del self._uses[pointer]
                self.waiting_bytes -= nbytes
                self.popped_bytes += nbytes


def set_weight_queue(module: nn.Module, queue: WeightQueue | None) -> None:
    """Gives the queue to every layer inside `module` that can defer its weight gradient."""
    for layer in module.modules():
        if hasattr(layer, "weight_queue"):
            setattr(layer, "weight_queue", queue)  # noqa: B010 - a plain attribute of any of the layers
