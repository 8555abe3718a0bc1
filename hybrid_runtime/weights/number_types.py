"""Floating-point numbers of one type in a file as those of another, with numpy alone: it has no bfloat16.

bfloat16   the upper half of a float32; rounded to the nearest, ties to even, as torch does
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

DTYPES: Mapping[str, str] = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # torch's names
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def converted(content: memoryview, source: str, target: str) -> memoryview:
    """The bytes of the same numbers in another type, rounded to the nearest (to bfloat16 by way of float32).

    Args:
        source, target: of tensor_file.FLOATS.

    Raises:
        OverflowError: a finite number is too large for the type.
    """
    if source == target:
        return content
    stored: NDArray[np.generic] = np.frombuffer(content, dtype=_NUMPY[source])
    numbers = (stored.astype("<u4") << 16).view("<f4") if source == "BF16" else stored
    with np.errstate(over="ignore", invalid="ignore"):
        wide = numbers.astype("<f4") if target == "BF16" else numbers.astype(_NUMPY[target])
        out = _upper_halves(wide) if target == "BF16" else wide
        after = (out.astype("<u4") << 16).view("<f4") if target == "BF16" else out
    if np.count_nonzero(np.isinf(after)) != np.count_nonzero(np.isinf(numbers)):
        raise OverflowError
    return out.view(np.uint8).data


def _upper_halves(wide: NDArray[np.generic]) -> NDArray[np.generic]:
    bits = wide.view("<u4")
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(wide), np.uint32(0x7FC0), rounded).astype("<u2")
