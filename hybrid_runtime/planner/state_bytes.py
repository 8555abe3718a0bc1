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


# This runtime: gradients have the parameter's dtype, and so have both moments of Adam.
FLOAT32 = StateBytes(4, 4, 8)
BFLOAT16 = StateBytes(2, 2, 4)
# bfloat16 weights with float32 gradient, master copy and moments (Megatron-LM; Rajbhandari et al. 2020,
# arXiv 1910.02054, have 16 with a half-precision gradient): not implemented by this runtime, used for comparisons.
MIXED = StateBytes(2, 4, 12)
FORWARD_ONLY = {"float32": StateBytes(4, 0, 0), "bfloat16": StateBytes(2, 0, 0)}
TRAINING = {"float32": FLOAT32, "bfloat16": BFLOAT16}
ELEMENT_BYTES = {"float32": 4, "bfloat16": 2}
