"""What training keeps for every parameter, by dtype: the rule that decides most of a rank's memory."""

from __future__ import annotations

from fractions import Fraction
from math import ceil
from typing import NamedTuple


class StateBytes(NamedTuple):
    """Bytes per parameter; of the optimizer, a fraction where replicas share its state."""

    parameter: int
    gradient: int
    optimizer: int | Fraction

    @property
    def total(self) -> int | Fraction:
        return self.parameter + self.gradient + self.optimizer

    def shared_by(self, replicas: int) -> StateBytes:
        """Of a replica that has the optimizer's state of its part of the parameters only (ZeRO-1)."""
        return self._replace(optimizer=Fraction(self.optimizer, replicas)) if replicas > 1 else self

    def held(self, parameters: int) -> int:
        """Of so many parameters."""
        return ceil(self.total * parameters)


# Gradients have the parameter's dtype, and so have both moments of Adam.
FLOAT32 = StateBytes(4, 4, 8)
BFLOAT16 = StateBytes(2, 2, 4)
# bfloat16 weights with float32 gradient, master copy and moments (as Megatron-LM; Rajbhandari et al. 2020,
# arXiv 1910.02054, have 16 with a half-precision gradient).
MIXED = StateBytes(2, 4, 12)
ELEMENT_BYTES = {"float32": 4, "bfloat16": 2}


def state_bytes(dtype: str, workload: str, *, master_weights: bool) -> StateBytes:
    """Of a deployment.

    Args:
        dtype: "float32" or "bfloat16", of parameters.
        workload: "train", or "forward", where only parameters are kept.
        master_weights: bfloat16 parameters are updated in float32.
    """
    if workload == "forward":
        return StateBytes(ELEMENT_BYTES[dtype], 0, 0)
    if dtype == "float32":
        return FLOAT32
    return MIXED if master_weights else BFLOAT16
