"""Random weights that are the same for every mesh, drawn without ever holding a whole parameter.

The whole parameter is cut along dim 0 into blocks of 1024 rows; each block has its own generator, seeded by a hash of
(seed, unit, parameter, block). A rank draws only the blocks that it holds rows of and keeps its part of each:

    block 0   1024 rows   seed = hash(7, "0.attn", "qkv.weight", 0)
    block 1   1024 rows   seed = hash(7, "0.attn", "qkv.weight", 1)    <- whoever holds row 1500 draws this
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from hybrid_runtime.tensor_parallel.shard import Segment, ShardSpec

BLOCK_ROWS = 1024

_ANY_WEIGHTS: ContextVar[bool] = ContextVar("any weights", default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Init:
    """Where a layer's random weights come from.

    Attributes:
        seed: of the whole model.
        unit: the unit that holds the layer.
        layer: the layer's name in the unit; weights are drawn from (seed, unit, layer + parameter).
        std: standard deviation of weights; 0 draws nothing and leaves zeros.
    """

    seed: int
    unit: str = ""
    layer: str = ""
    std: float = 0.02


def init_from_default_generator() -> Init:
    """An Init seeded from torch's default generator, which must then be equal on all ranks of the axis."""
    return Init(seed=int(torch.randint(2**62, ()).item()))


def derived_seed(*key: object) -> int:
    """A seed below 2**63 that depends on every part of the key and on nothing else (not on Python's hash seed)."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@contextmanager
def any_weights() -> Iterator[None]:
    """Inside, weights are drawn where they lie, equal to no other mesh's: milliseconds instead of minutes on a GPU.

    For a rank that runs alone: what is measured does not depend on which normal numbers they are.
    """
    token = _ANY_WEIGHTS.set(True)
    try:
        yield
    finally:
        _ANY_WEIGHTS.reset(token)


@torch.no_grad()
def draw_normal_(local: Tensor, spec: ShardSpec, init: Init, parameter: str) -> None:
    """Fills a rank's part of a parameter with its part of the whole model's normal weights; padding becomes zero.

    Nothing happens on the meta device.
    """
    if local.device.type == "meta":
        return
    if _ANY_WEIGHTS.get():
        local.normal_(0.0, init.std)
        return
    local.zero_()
    if init.std == 0:
        return
    rows, *rest = spec.global_shape
    name = f"{init.layer}.{parameter}" if init.layer else parameter
    for block, first in enumerate(range(0, rows, BLOCK_ROWS)):
        last = min(first + BLOCK_ROWS, rows)
        if spec.dim == 0 and not any(_overlap(segment, first, last) for segment in spec.segments):
            continue
        generator = torch.Generator().manual_seed(derived_seed(init.seed, init.unit, name, block))
        drawn = torch.empty(last - first, *rest, device="cpu").normal_(0.0, init.std, generator=generator)
        _keep(local, spec, drawn, first)


def _overlap(segment: Segment, first: int, last: int) -> bool:
    return segment.start < last and first < segment.start + segment.length


def _keep(local: Tensor, spec: ShardSpec, drawn: Tensor, first: int) -> None:
    """Copies the rank's part of rows first.. of the whole parameter into its local one."""
    if spec.dim is None:
        local[first : first + len(drawn)] = drawn
        return
    target = local if spec.dim == 0 else local[first : first + len(drawn)]
    base, size = (first, len(drawn)) if spec.dim == 0 else (0, spec.global_shape[spec.dim])
    offset = 0
    for segment in spec.segments:
        begin, end = max(segment.start, base), min(segment.start + segment.length, base + size)
        if begin < end:
            into = target.narrow(spec.dim, offset + begin - segment.start, end - begin)
            into.copy_(drawn.narrow(spec.dim, begin - base, end - begin))
        offset += segment.length
