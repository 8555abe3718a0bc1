"""Out of memory, in one sentence: what was asked for, what the rank held, what its plan had predicted.

    rank 1 (...), stage 1, step 0, 1F3, unit 2.mlp: out of memory: 64 MiB more were asked for; the rank holds 812 MiB of
    tensors (byte ledger: parameters 300 MiB, ...); its plan predicted a peak of 790 MiB (parameters 300 MiB, ...); ...

CUDA raises torch.OutOfMemoryError; on CPUs torch raises a RuntimeError of its allocator, and Python a MemoryError. A
system that kills processes when memory is short asks nobody: such a rank was "killed by SIGKILL".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from hybrid_runtime.plan import Plan
from hybrid_runtime.predicted import RankMemory
from hybrid_runtime.report.cells import bytes_text
from hybrid_runtime.telemetry.ledger import ByteLedger

_CPU_WORDS = ("can't allocate memory", "not enough memory", "std::bad_alloc", "Cannot allocate memory")
_ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+ ?\w*)")
_TRY = (
    "use a smaller batch.microbatch_size, more ranks or another schedule; `hybrid-runtime plan` finds what fits into "
    "hardware.memory_per_device"
)


@dataclass(slots=True)
class MemoryFacts:
    """What is known of a rank's memory; filled in while it is set up.

    Attributes:
        ledger: None before its units are built.
    """

    plan: Plan
    rank: int
    device: torch.device
    ledger: ByteLedger | None = None

    def words(self, problem: BaseException) -> str | None:
        """The sentence, without who and where; None where memory was not what was missing."""
        cause = _out_of_memory(problem)
        if cause is None:
            return None
        parts = [_asked_words(cause), *self._device_words(), *self._ledger_words(), self._predicted_words(), _TRY]
        return f"out of memory: {'; '.join(parts)}"

    def _device_words(self) -> list[str]:
        if self.device.type != "cuda":
            return []
        free, total = torch.cuda.mem_get_info(self.device)
        allocated, reserved = torch.cuda.memory_allocated(self.device), torch.cuda.memory_reserved(self.device)
        return [
            f"its allocator holds {bytes_text(allocated)} in tensors and {bytes_text(reserved)} reserved, and "
            f"{bytes_text(free)} of the device's {bytes_text(total)} are free"
        ]

    def _ledger_words(self) -> list[str]:
        if self.ledger is None:
            return ["its units were still being built"]
        held = self.ledger.memory(watched=False)
        fixed = {"parameters": held.parameters, "gradients": held.gradients, "optimizer": held.optimizer}
        peaks = self.ledger.peaks
        watched = {"activations": peaks.activations, "buffers": peaks.buffers} if any(peaks) else {}
        return [f"the byte ledger counts {_listed(fixed | watched)}"]

    def _predicted_words(self) -> str:
        if self.plan.predicted is None:
            return "its plan predicted nothing: none was calculated"
        pp_rank = self.plan.mesh.place(self.rank).pp
        memory = next(rank.memory for rank in self.plan.predicted.ranks if rank.pp_rank == pp_rank)
        names = ("parameters", "gradients", "optimizer", "activations", "buffers")
        peak = memory.ledger_peak if memory.allocated_peak is None else memory.allocated_peak
        return f"its plan predicted a peak of {bytes_text(peak)} ({_listed(_components(memory, names))})"


def _components(memory: RankMemory, names: tuple[str, ...]) -> dict[str, int]:
    return {name: getattr(memory, name) for name in names}


def _listed(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name} {bytes_text(size)}" for name, size in sizes.items())


def _out_of_memory(problem: BaseException | None) -> BaseException | None:
    while problem is not None:
        of_torch = isinstance(problem, torch.OutOfMemoryError)
        of_the_host = isinstance(problem, RuntimeError | OSError) and any(words in str(problem) for words in _CPU_WORDS)
        if of_torch or of_the_host or isinstance(problem, MemoryError):
            return problem
        problem = problem.__cause__
    return None


def _asked_words(cause: BaseException) -> str:
    match = _ASKED.search(str(cause))
    if match is None:
        return "the system gave no more"
    size = match[1].removesuffix(" bytes").removesuffix("bytes").strip()
    return f"{bytes_text(int(size)) if size.isdigit() else size} more were asked for"
