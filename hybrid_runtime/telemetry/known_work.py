"""Work of known size for the self-test: equal units, so that a rank's share is known by counting them."""

from __future__ import annotations

import torch

_WIDTH = {"cpu": 128, "cuda": 2048}  # a unit takes some 0.1 ms on a core, some 20 us on a GPU


class KnownWork:
    """Multiplies two fixed random matrices again and again.

    Args:
        device: of the rank.
    """

    def __init__(self, device: torch.device) -> None:
        width = _WIDTH[device.type]
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        made = torch.Generator().manual_seed(0)
        self._a, self._b = (torch.randn(width, width, generator=made).to(device, dtype) for _ in range(2))
        self._product = torch.empty_like(self._a)

    def run(self, units: int) -> None:
        """So many units, on the current stream."""
        for _ in range(units):
            torch.mm(self._a, self._b, out=self._product)
