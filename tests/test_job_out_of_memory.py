"""Out of memory, said with what was predicted. Memory is really short: a process of its own may not have much."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from hybrid_runtime.errors import RunError
from hybrid_runtime.job_out_of_memory import MemoryFacts
from hybrid_runtime.predicted import PredictedRank, PredictedStep, RankMemory, RankTime, TimeInterval
from hybrid_runtime.telemetry.ledger import ByteLedger
from tests.faults.test_hang import TWO

MIB = 2**20
MEMORY = RankMemory(parameters=3 * MIB, gradients=3 * MIB, optimizer=6 * MIB, activations=MIB, buffers=0)
RANKS = tuple(PredictedRank(pp_rank=pp, time=RankTime(), memory=MEMORY, flops=0) for pp in range(2))
PREDICTED = PredictedStep(
    step_time=TimeInterval(p10_ns=1, p50_ns=1, p90_ns=1),
    pipeline_ns=1,
    bound_ns=1,
    ranks=RANKS,
    labels={},
    source="calibration",
)
CPU = torch.device("cpu")


def test_the_sentence_has_what_was_asked_held_and_predicted() -> None:
    weight = torch.nn.Parameter(torch.zeros(MIB))
    facts = MemoryFacts(TWO.model_copy(update={"predicted": PREDICTED}), 1, CPU, ByteLedger([weight]))
    problem = RunError("RuntimeError: ...", "rank 1 (...), stage 1, step 0, 1F3, unit 2.mlp")
    problem.__cause__ = RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: "
                                     "you tried to allocate 67108864 bytes. Error code 12")  # fmt: skip
    words = facts.words(problem)
    assert words is not None
    assert words.startswith(
        "out of memory: 64.0 MiB more were asked for; the byte ledger counts parameters 4.0 MiB, gradients 0 B, "
        "optimizer 0 B; its plan predicted a peak of 13.0 MiB (parameters 3.0 MiB, gradients 3.0 MiB, optimizer 6.0 "
        "MiB, activations 1.0 MiB, buffers 0 B); use a smaller batch.microbatch_size"
    )
    assert "predicted nothing" in str(MemoryFacts(TWO, 1, CPU).words(MemoryError()))
    assert "20.00 MiB more were" in str(
        MemoryFacts(TWO, 1, CPU).words(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0"))
    )


def test_other_errors_are_none_of_memory() -> None:
    assert MemoryFacts(TWO, 0, CPU).words(RunError("a unit returned a list")) is None
    assert MemoryFacts(TWO, 0, CPU).words(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None


_SHORT = """
import resource, torch
from hybrid_runtime.job_out_of_memory import MemoryFacts
from tests.faults.test_hang import TWO
resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
for ask in (lambda: torch.ones(2**32), lambda: bytearray(2**34)):
    try:
        ask()
    except BaseException as problem:
        print(MemoryFacts(TWO, 0, torch.device("cpu")).words(problem))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a process cannot be kept short of memory elsewhere")
def test_what_torch_and_python_raise_is_known() -> None:
    done = subprocess.run([sys.executable, "-c", _SHORT], capture_output=True, text=True, timeout=60, check=True)
    torchs, pythons = done.stdout.splitlines()
    assert torchs.startswith("out of memory: 16.0 GiB more were asked for; its units were still being built; its plan")
    assert pythons.startswith("out of memory: the system gave no more; ")
