"""Which tokens a step trains on: a function of (seed, step) alone, so any mesh and any restart sees the same batches.

The text is cut into windows of sequence_length tokens. Sample number p (p = step * global_batch_size + g) is window
`permutation(epoch)[p mod windows]` with epoch = p div windows: every window once before any comes again. The
permutation is a Feistel network over the window numbers (Luby and Rackoff, 1988) with cycle walking, which needs no
memory however long the text is.

    global batch, G = 8     g0 g1 g2 g3 | g4 g5 g6 g7
    dp 2, microbatch 2      dp 0        | dp 1           replica d takes samples [d G/D, (d+1) G/D)
                            m0    m1    | m0    m1       and cuts them into microbatches in order

B microbatch, S sequence, G global batch, D dp_degree.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from hybrid_runtime.data.tokens import Ids, TokenSource
from hybrid_runtime.errors import UsageError
from hybrid_runtime.models.unit import Microbatch

_U64 = NDArray[np.uint64]
_ROUNDS = 6


def sample_starts(num_tokens: int, sequence_length: int, seed: int, step: int, global_batch_size: int) -> Ids:
    """(G,) int64: where in the text each sample of a step begins; its targets reach one token further than its tokens.

    Raises:
        UsageError: the text is too short for one sample.
    """
    num_windows = (num_tokens - 1) // sequence_length
    if num_windows < 1:
        raise UsageError(
            f"{num_tokens} tokens are too few for a sample of sequence_length {sequence_length} and its targets; "
            "give more text or a smaller [batch] sequence_length"
        )
    positions = step * global_batch_size + np.arange(global_batch_size, dtype=np.int64)
    epochs, indices = np.divmod(positions, num_windows)
    return permuted(indices, num_windows, seed, epochs) * sequence_length


def permuted(indices: Ids, size: int, seed: int, epochs: Ids) -> Ids:
    """The images of `indices` (each in [0, size)) under the permutation of [0, size) that belongs to (seed, epoch)."""
    half_bits = max(1, -(-(size - 1).bit_length() // 2))
    keys = _mixed(epochs.astype(np.uint64) ^ _mixed(np.full(1, seed, dtype=np.uint64)))
    images = _feistel(indices.astype(np.uint64), half_bits, keys)
    # The network permutes [0, 4^half_bits); walking on from an image outside [0, size) ends inside, for each its own.
    while (outside := images >= size).any():
        images[outside] = _feistel(images[outside], half_bits, keys[outside])
    return images.astype(np.int64)


def _feistel(values: _U64, half_bits: int, keys: _U64) -> _U64:
    bits, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> bits, values & mask
    for number in range(_ROUNDS):
        left, right = right, left ^ (_mixed(right ^ _mixed(keys + np.uint64(number))) & mask)
    return (left << bits) | right


def _mixed(values: _U64) -> _U64:
    """splitmix64's finaliser (Steele, Lea and Flood, 2014); arrays wrap silently at 2^64, as it wants."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """The batches of one replica.

    Attributes:
        source: as `check_source` returned it.
        device: where the microbatches shall be; on CUDA the host does not wait for the copy.

    Raises:
        UsageError: the global batch does not divide into dp_degree x microbatch_size.
    """

    source: TokenSource = field(kw_only=False)
    global_batch_size: int
    microbatch_size: int
    sequence_length: int
    dp_degree: int = 1
    dp_rank: int = 0
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        assert 0 <= self.dp_rank < self.dp_degree
        if self.global_batch_size % (self.dp_degree * self.microbatch_size):
            raise UsageError(
                f"[batch] global_batch_size = {self.global_batch_size} is not a multiple of dp_degree x "
                f"microbatch_size = {self.dp_degree} x {self.microbatch_size}; change one of them"
            )

    def microbatches(self, step: int) -> list[Microbatch]:
        """This replica's microbatches of a step, in order: tokens and targets (B, S), targets one token ahead."""
        block = self._read(step).to(self.device, non_blocking=True)
        pairs_2BS = torch.chunk(block, block.shape[1] // self.microbatch_size, dim=1)
        return [Microbatch(tokens_BS, targets_BS) for tokens_BS, targets_BS in pairs_2BS]

    def _read(self, step: int) -> torch.Tensor:
        """(2, G/D, S) int64: tokens and targets, in page-locked memory if they are to be copied to CUDA."""
        length = self.sequence_length
        starts = sample_starts(len(self.source), length, self.seed, step, self.global_batch_size)
        own = starts.reshape(self.dp_degree, -1)[self.dp_rank]
        block = torch.empty((2, len(own), length), dtype=torch.int64, pin_memory=self.device.type == "cuda")
        rows = block.numpy()
        for number, start in enumerate(own):
            sample = self.source.read(int(start), length + 1)
            rows[0, number], rows[1, number] = sample[:-1], sample[1:]
        return block
