"""What packing costs: one rank's forward and backward of packed documents against whole sequences of the same length.

    scripts/bench packing [--quick] [--save] [--device cpu|cuda] [--only MEAN]

Documents of geometric lengths fill a sequence of 2,048 tokens (hidden 256, 4 layers); both kinds take turns, and a row
is the median of the pairs. Packed attention does less arithmetic (its blocks alone) in more calls: one per document on
a CPU, and on CUDA in float32.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.options import parser_of
from benchmarks.results import arguments_given, environment, markdown_table, save
from hybrid_runtime.models.build import build_units
from hybrid_runtime.models.llama import llama_units
from hybrid_runtime.models.unit import NO_TARGET, BuildContext, Documents, Microbatch
from hybrid_runtime.shapes import LlamaShape

MEANS = (2048, 512, 128, 32)  # tokens of a document
BATCH, LENGTH = 1, 2048
SHAPE = LlamaShape(
    vocab_size=4096, hidden_size=256, num_layers=4, num_heads=4, num_kv_heads=4, ffn_size=704, head_dim=64
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the cases, prints the table, and with --save keeps the result."""
    options = parser_of("packing", __doc__, blocks=4).parse_args(arguments)
    length = 64 if options.quick else LENGTH
    device, dtype = torch.device(options.device), torch.bfloat16 if options.device == "cuda" else torch.float32
    torch.set_num_threads(1)
    units = build_units(llama_units(SHAPE), BuildContext(device=device, dtype=dtype))
    result: dict[str, Any] = {
        "environment": environment(arguments_given(), "packing"),
        "dtype": str(dtype),
        "cases": {},
    }
    for mean in [int(options.only)] if options.only else MEANS:
        packed, whole = microbatches(mean, length, device)
        step_s(units, packed), step_s(units, whole)
        pairs = [(step_s(units, packed), step_s(units, whole)) for _ in range(2 if options.quick else options.blocks)]
        assert packed.documents is not None
        result["cases"][str(mean)] = {"documents": len(packed.documents.lengths), "pairs_s": pairs}
    section = table(result["cases"])
    print(section)
    if options.save:
        print(f"kept: {save('packing', result, section, options.results)}")
    return 0


def microbatches(mean: int, length: int, device: torch.device) -> tuple[Microbatch, Microbatch]:
    """The same tokens packed and whole."""
    random = np.random.default_rng(0)
    lengths: list[int] = []
    for _ in range(BATCH):
        left = length
        while left:
            lengths.append(min(left, int(random.geometric(1 / mean))))
            left -= lengths[-1]
    bounds = np.cumsum([0, *lengths])
    tokens = torch.from_numpy(random.integers(0, SHAPE.vocab_size, (BATCH, length))).to(device)
    targets = tokens.roll(-1, 1)
    positions = torch.from_numpy(np.arange(BATCH * length) - np.repeat(bounds[:-1], lengths)).view(BATCH, length)
    packed_targets = targets.clone()
    packed_targets.view(-1)[torch.from_numpy(bounds[1:] - 1).to(device)] = NO_TARGET
    on_device = torch.from_numpy(bounds.astype(np.int32)).to(device)
    documents = Documents(positions.to(device), tuple(lengths), on_device)
    return Microbatch(tokens, packed_targets, documents), Microbatch(tokens, targets)


def step_s(units: dict[str, nn.Module], microbatch: Microbatch) -> float:
    """Seconds of one forward and backward."""
    synchronise(microbatch)
    begin = time.perf_counter()
    carry: tuple[torch.Tensor, ...] = ()
    for unit in units.values():
        carry = unit(carry, microbatch)
    carry[0].backward()  # type: ignore[no-untyped-call]
    synchronise(microbatch)
    return time.perf_counter() - begin


def synchronise(microbatch: Microbatch) -> None:
    """The device has done what it was told."""
    if microbatch.tokens.device.type == "cuda":
        torch.cuda.synchronize()


def table(cases: dict[str, Any]) -> str:
    """A row per mean length."""
    rows = []
    for mean, case in cases.items():
        ratios = sorted(packed / whole for packed, whole in case["pairs_s"])
        whole_s = statistics.median(whole for _, whole in case["pairs_s"])
        rows.append(
            [mean, str(case["documents"]), f"{whole_s * 1000:.1f} ms",
             f"{statistics.median(ratios):.3f} ({ratios[0]:.3f}-{ratios[-1]:.3f})"]
        )  # fmt: skip
    return markdown_table(["mean document", "documents", "whole", "packed / whole"], rows)


if __name__ == "__main__":
    raise SystemExit(main())
