"""FLOPs of one rank's built unit, read off the modules that will run: local weight shapes and local heads.

Same convention as planner/costs.py (one multiply-add is 2 FLOPs; norms, softmax and the like are not counted), but for
what this rank really computes: padded vocabulary rows and replicated key/value heads included.

    linear           2 * tokens * inputs * outputs          F, I and W each
    attention core   2 * B * q * S * S                      F; 5/2 of it I (causal half; flash recomputes the scores)
"""

from __future__ import annotations

from torch import nn

from hybrid_runtime.models.llama import AttentionUnit
from hybrid_runtime.tensor_parallel.linear import ColumnParallelLinear, RowParallelLinear


def flops(unit: nn.Module, microbatch_size: int, sequence_length: int) -> dict[str, int]:
    """FLOPs of one microbatch on this rank.

    Counts this package's parallel linears, `nn.Linear` and the Llama attention core, each linear applied once to every
    token. A unit that computes otherwise defines a method `flops(microbatch_size, sequence_length)` of its own, which
    is used instead.

    Returns:
        {"F": forward, "I": input gradient, "W": weight gradient}.
    """
    own = getattr(unit, "flops", None)
    if callable(own):
        counted = own(microbatch_size, sequence_length)
        return {kind: int(counted[kind]) for kind in "FIW"}
    tokens = microbatch_size * sequence_length
    linears = [m for m in unit.modules() if isinstance(m, ColumnParallelLinear | RowParallelLinear | nn.Linear)]
    product = sum(2 * tokens * linear.weight.numel() for linear in linears)
    cores = [m.num_q * m.head_dim for m in unit.modules() if isinstance(m, AttentionUnit)]
    core = sum(2 * microbatch_size * local_q * sequence_length**2 for local_q in cores)
    return {"F": product + core, "I": product + 5 * core // 2, "W": product}
