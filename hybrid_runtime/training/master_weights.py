"""AdamW whose state is float32 where gradients are: with a master copy of every narrower parameter.

    gradient (float32) --AdamW--> master (float32) --rounded--> parameter (bfloat16), which the next forward reads

bfloat16 has 8 bits of precision: a weight of 1 takes no step smaller than 0.004, and a learning rate of 1e-4 would move
nothing. The master copy takes them all; the parameter follows when they add up. A parameter whose gradient has its own
type has no master copy and is updated as torch's AdamW does it.

Method: Micikevicius et al. 2018 (mixed precision training, arXiv 1710.03740); with bfloat16 no loss needs scaling
(Kalamkar et al. 2019, arXiv 1905.12322).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from hybrid_runtime.tensor_parallel.gradients import gradient_dtype

MASTER = "master"


class MasterAdamW:
    """torch's fused AdamW, per parameter on the float32 master copy where there is one.

    Torch's function is called and its class avoided: the first `torch.optim.Optimizer` of a process imports
    torch._dynamo, which takes a core two seconds of every rank's start, and nothing here is compiled.

    Attributes:
        state: of a parameter, from its first update on (or `prepare`): "step" (float32, on its device), "exp_avg",
            "exp_avg_sq" and, beside a gradient that is wider than the parameter, "master": all of the gradient's type
            and the parameter's shape.
    """

    def __init__(self, decays: Mapping[nn.Parameter, float], *, betas: tuple[float, float], eps: float) -> None:
        """`decays` has the weight decay of every parameter that is updated."""
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        self._decays = dict(decays)
        self._betas = betas
        self._eps = eps

    def prepare(self) -> None:
        """Gives every parameter the state of one that was never updated, where it has none yet."""
        for parameter in self._decays:
            if parameter not in self.state:
                self.state[parameter] = _fresh_state(parameter)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update, at a learning rate, of every parameter that has a gradient."""
        self.prepare()
        alike: dict[tuple[float, torch.dtype], list[nn.Parameter]] = {}
        for parameter, decay in self._decays.items():
            if parameter.grad is not None:
                alike.setdefault((decay, parameter.grad.dtype), []).append(parameter)
        for (decay, _), parameters in alike.items():
            self._update(parameters, decay, rate)

    def _update(self, parameters: list[nn.Parameter], decay: float, rate: float) -> None:
        states = [self.state[parameter] for parameter in parameters]
        updated: list[Tensor] = [state.get(MASTER, parameter) for state, parameter in zip(states, parameters)]
        beta1, beta2 = self._betas
        adamw(
            updated,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=rate,
            weight_decay=decay,
            eps=self._eps,
            maximize=False,
        )
        rounded = [(parameter, state[MASTER]) for parameter, state in zip(parameters, states) if MASTER in state]
        if rounded:
            torch._foreach_copy_([parameter for parameter, _ in rounded], [master for _, master in rounded])


def _fresh_state(parameter: nn.Parameter) -> dict[str, Tensor]:
    wide = torch.promote_types(parameter.dtype, gradient_dtype(parameter))
    state = {"step": torch.zeros((), dtype=torch.float32, device=parameter.device)}  # where a fused AdamW counts
    for moment in ("exp_avg", "exp_avg_sq"):
        state[moment] = torch.zeros_like(parameter, dtype=wide, memory_format=torch.preserve_format)
    if wide != parameter.dtype:
        state[MASTER] = parameter.detach().to(wide)
    return state
