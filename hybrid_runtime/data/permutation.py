"""Permutations of [0, size) by key, without memory: a Feistel network (Luby and Rackoff, 1988) with cycle walking."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hybrid_runtime.data.tokens import Ids

_U64 = NDArray[np.uint64]
_ROUNDS = 6


def permuted(indices: Ids, size: int, seed: int, epochs: Ids) -> Ids:
    """The images of `indices` (each in [0, size)) under the permutation of [0, size) that belongs to (seed, epoch)."""
    half_bits = max(1, -(-(size - 1).bit_length() // 2))
    keys = mixed(epochs.astype(np.uint64) ^ mixed(np.full(1, seed, dtype=np.uint64)))
    images = _feistel(indices.astype(np.uint64), half_bits, keys)
    # The network permutes [0, 4^half_bits); walking on from an image outside [0, size) ends inside, for each its own.
    while (outside := images >= size).any():
        images[outside] = _feistel(images[outside], half_bits, keys[outside])
    return images.astype(np.int64)


def mixed(values: _U64) -> _U64:
    """splitmix64's finaliser (Steele, Lea and Flood, 2014); arrays wrap silently at 2^64, as it wants."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _feistel(values: _U64, half_bits: int, keys: _U64) -> _U64:
    bits, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> bits, values & mask
    for number in range(_ROUNDS):
        left, right = right, left ^ (mixed(right ^ mixed(keys + np.uint64(number))) & mask)
    return (left << bits) | right
