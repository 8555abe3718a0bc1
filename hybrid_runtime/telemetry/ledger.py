"""The byte ledger: what a rank's memory is made of, counted by storage, the same on every machine.

    parameters + gradients + optimizer                     weighed when asked
    activations   saved by autograd for the backward, and  counted while it runs, each storage once:
                  what waits for a weight gradient
    buffers       of stage-to-stage messages               a storage that is both counts once in their sum
    cache         of keys and values, where requests are served: weighed with the parameters

Resident memory is no substitute: a torch process holds some 270 MB before it allocates anything, which hides an
imbalance of 20 against 28 MB. Watching costs a few percent of time, so it is done in designated warm-up steps only.

Not seen: temporaries inside an operation, tensors that a Function keeps as attributes of its context, and what
`torch.utils.checkpoint` (non-reentrant) recomputes, because it replaces the hooks while it recomputes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from hybrid_runtime.records import Memory

_SAVED, _HELD = 0, 1


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes behind tensors; views, tied parameters and slices of one bucket count once."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


class HasState(Protocol):
    """An optimizer, of torch or of ours."""

    @property
    def state(self) -> Mapping[Tensor, Mapping[str, Any]]:
        """By parameter, whatever is remembered of it."""


class Peaks(NamedTuple):
    """Largest sums, in bytes, since watching began; `both` is the largest sum at one instant."""

    activations: int
    buffers: int
    both: int


class _Saved:
    """A tensor that autograd saved. The graph drops it after its backward: then the ledger hears of it."""

    __slots__ = ("_dropped", "_pointer", "tensor")

    def __init__(self, tensor: Tensor, pointer: int, dropped: deque[int]) -> None:
        self.tensor = tensor
        self._pointer = pointer
        self._dropped = dropped

    def __del__(self) -> None:
        self._dropped.append(self._pointer)  # atomic: the collector may call this at any point of any thread


class _Storage:
    """One storage in use: how often it is saved and held."""

    __slots__ = ("nbytes", "uses")

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.uses = [0, 0]


class ByteLedger:
    """Counts one rank's bytes.

    Args:
        parameters: of all the rank's units; when autograd saves them, or views of them, they are no activations.
        optimizer: whose state is counted; None for forward-only runs.
    """

    def __init__(self, parameters: Iterable[Tensor], optimizer: HasState | None = None) -> None:
        self._parameters = tuple(parameters)
        self._optimizer = optimizer
        self._storages: dict[int, _Storage] = {}
        self._dropped: deque[int] = deque()
        self._sums = [0, 0]
        self._both = 0
        self._peaks = Peaks(0, 0, 0)
        self._gradients = 0
        self._caches: tuple[Tensor, ...] = ()
        self._own: frozenset[int] = frozenset()
        self._watching = False

    def hold(self, tensor: Tensor) -> None:
        """The tensor's storage serves as a communication buffer from now on."""
        self._use(tensor, _HELD)

    def release(self, tensor: Tensor) -> None:
        """It no longer does; once per `hold`, and before the tensor is freed."""
        self._forget_dropped()
        pointer = tensor.untyped_storage().data_ptr()
        storage = self._storages.get(pointer)
        if tensor.untyped_storage().nbytes():
            assert storage is not None, "released a buffer that was never held"
            assert storage.uses[_HELD], "released a buffer more often than it was held"
            self._drop(pointer, _HELD)

    def hold_caches(self, caches: Iterable[Tensor]) -> None:
        """The caches of keys and values that the rank has, instead of those that it was told of before."""
        self._caches = tuple(caches)

    def count_message(self, change_bytes: int) -> None:
        """Bytes of messages on their way out change by this much; they count as buffers, not by storage."""
        self._forget_dropped()
        self._sums[_HELD] += change_bytes
        self._both += change_bytes
        self._peaks = Peaks(*map(max, self._peaks, (*self._sums, self._both)))

    def keep(self, tensor: Tensor) -> object:
        """While watching, the tensor's storage counts as an activation for as long as the result lives."""
        return self._pack(tensor) if self._watching else None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Counts what autograd saves inside; peaks start at what is in use on entry."""
        self._own = frozenset(parameter.untyped_storage().data_ptr() for parameter in self._parameters)
        self._peaks = self.in_use
        self._watching = True
        try:
            with saved_tensors_hooks(self._pack, self._unpack):
                yield
        finally:
            self._watching = False

    @property
    def peaks(self) -> Peaks:
        return self._peaks

    @property
    def in_use(self) -> Peaks:
        """The sums as they are now."""
        self._forget_dropped()
        return Peaks(self._sums[_SAVED], self._sums[_HELD], self._both)

    def weigh_gradients(self) -> None:
        """Notes the bytes of gradients as they are now; call before they are cleared."""
        gradients = (parameter.grad for parameter in self._parameters)
        self._gradients = max(self._gradients, storage_bytes(grad for grad in gradients if grad is not None))

    def memory(self, *, watched: bool, allocated_peak: int | None = None, reserved_peak: int | None = None) -> Memory:
        """The ledger of the step that just ended; peaks only if it was watched. Allocator peaks are passed through."""
        self.weigh_gradients()
        parameters, optimizer = storage_bytes(self._parameters), storage_bytes(self._optimizer_state())
        kv_cache, peaks = storage_bytes(self._caches), self.peaks
        return Memory(
            parameters=parameters,
            gradients=self._gradients,
            optimizer=optimizer,
            kv_cache=kv_cache,
            activations_peak=peaks.activations if watched else None,
            buffers_peak=peaks.buffers if watched else None,
            ledger_peak=parameters + self._gradients + optimizer + kv_cache + peaks.both if watched else None,
            allocated_peak=allocated_peak,
            reserved_peak=reserved_peak,
        )

    def _optimizer_state(self) -> Iterator[Tensor]:
        states = self._optimizer.state.values() if self._optimizer is not None else ()
        return (value for state in states for value in state.values() if isinstance(value, Tensor))

    def _pack(self, tensor: Tensor) -> Tensor | _Saved:
        tensor = tensor.detach()  # a saved output holds its own node: kept as it is, neither would ever be freed
        pointer = tensor.untyped_storage().data_ptr()
        if pointer in self._own or not tensor.untyped_storage().nbytes():
            return tensor
        self._use(tensor, _SAVED)
        return _Saved(tensor, pointer, self._dropped)

    @staticmethod
    def _unpack(packed: Tensor | _Saved) -> Tensor:
        return packed.tensor if isinstance(packed, _Saved) else packed

    def _use(self, tensor: Tensor, kind: int) -> None:
        self._forget_dropped()
        nbytes = tensor.untyped_storage().nbytes()
        if not nbytes:
            return
        storage = self._storages.setdefault(tensor.untyped_storage().data_ptr(), _Storage(nbytes))
        if not any(storage.uses):
            self._both += storage.nbytes
        if not storage.uses[kind]:
            self._sums[kind] += storage.nbytes
        storage.uses[kind] += 1
        self._peaks = Peaks(*map(max, self._peaks, (*self._sums, self._both)))

    def _drop(self, pointer: int, kind: int) -> None:
        storage = self._storages[pointer]
        storage.uses[kind] -= 1
        if not storage.uses[kind]:
            self._sums[kind] -= storage.nbytes
        if not any(storage.uses):
            self._both -= storage.nbytes
            del self._storages[pointer]

    def _forget_dropped(self) -> None:
        while self._dropped:
            self._drop(self._dropped.popleft(), _SAVED)
