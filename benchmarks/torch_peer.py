"""The peer to beat: torch's own tensor and pipeline parallelism, put together as well as we know how.

tp      `parallelize_module` with ColwiseParallel / RowwiseParallel on fused projections, a RowwiseParallel embedding, a
        vocabulary-parallel head with `loss_parallel`. Activations between linears are plain tensors (use_local_output)
pp      `torch.distributed.pipelining`: PipelineStages with static metadata, one of its schedules, outputs not collected
update  AdamW, fused where torch takes it; parameters that are DTensors and those that are not in groups of their own
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
)
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, loss_parallel, parallelize_module

from benchmarks.peer_model import AttentionBlock, Embedding, MlpBlock
from hybrid_runtime.deployment import Optimizer
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.models.unit import Microbatch

AdamWKind = Literal["fused", "foreach", "plain"]

# Our name of a schedule -> torch's class that runs the same lists.
SCHEDULES: Mapping[str, Any] = {
    "1f1b": Schedule1F1B,
    "interleaved_1f1b": ScheduleInterleaved1F1B,
    "zb_h1": ScheduleInterleavedZeroBubble,  # which is ZB-H1 where a rank holds one stage
    "interleaved_zb": ScheduleInterleavedZeroBubble,
    "zb_v": ScheduleZBVZeroBubble,
}


class TorchPeer:
    """One rank of torch's side.

    Args:
        stages: this rank's stages by global index, each the blocks it holds, whole; they are sharded here.
        num_stages: of the whole pipeline.
        mesh: of the run; dp_degree is 1.
        num_microbatches: of a step.
        sample: one microbatch, for its shapes.
        hidden_size: width of what stages pass on.
        schedule: a name in SCHEDULES; it decides which stages a rank must hold.
    """

    def __init__(
        self,
        stages: Mapping[int, nn.ModuleDict],
        num_stages: int,
        mesh: Mesh,
        settings: Optimizer,
        *,
        num_microbatches: int,
        sample: Microbatch,
        hidden_size: int,
        device: torch.device,
        schedule: str = "1f1b",
        adamw: AdamWKind = "fused",
    ) -> None:
        shape = (mesh.pp_degree, mesh.tp_degree)
        self._device_mesh = init_device_mesh(device.type, shape, mesh_dim_names=("pp", "tp"))
        self._tp = self._device_mesh["tp"] if mesh.tp_degree > 1 else None
        self._num_stages = num_stages
        self._num_microbatches = num_microbatches
        self.modules: dict[int, nn.Sequential] = {}
        for index, blocks in stages.items():
            blocks.to(device)
            if self._tp is not None:
                for block in blocks.values():
                    _parallelize(block, self._tp)
            self.modules[index] = nn.Sequential(*blocks.values())
        self.optimizer = make_adamw(nn.ModuleList(self.modules.values()).parameters(), settings, adamw)
        self._schedule: Any = None
        if mesh.pp_degree > 1:
            made = [self._make_stage(index, sample, hidden_size, device) for index in self.modules]
            one_stage = SCHEDULES[schedule] is Schedule1F1B
            self._schedule = SCHEDULES[schedule](made[0] if one_stage else made, num_microbatches, loss_fn=self._loss)

    def step(self, microbatches: Sequence[Microbatch]) -> Tensor | None:
        """Forward, backward and update. Returns the mean loss on ranks of the last stage."""
        self.optimizer.zero_grad(set_to_none=True)
        with self._loss_context():
            loss = self._accumulate(microbatches) if self._schedule is None else self._pipeline(microbatches)
        self.optimizer.step()
        return loss

    def _accumulate(self, microbatches: Sequence[Microbatch]) -> Tensor:
        losses = []
        for microbatch in microbatches:
            loss = self._loss(self.modules[0](microbatch.tokens), microbatch.targets) / self._num_microbatches
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(_local(loss.detach()))
        return torch.stack(losses).sum()

    def _pipeline(self, microbatches: Sequence[Microbatch]) -> Tensor | None:
        is_first, is_last = 0 in self.modules, self._num_stages - 1 in self.modules
        inputs = (torch.cat([microbatch.tokens for microbatch in microbatches]),) if is_first else ()
        targets, losses = None, None
        if is_last:
            targets, losses = torch.cat([_targets(microbatch) for microbatch in microbatches]), list[Tensor]()
        self._schedule.step(*inputs, target=targets, losses=losses, return_outputs=False)
        return torch.stack([_local(loss.detach()) for loss in losses]).mean() if losses else None

    def _make_stage(self, index: int, sample: Microbatch, hidden_size: int, device: torch.device) -> PipelineStage:
        """Static metadata: shape inference by a trial run is slower to start and would not be faster later."""
        carry = torch.empty(*sample.tokens.shape, hidden_size, device="meta")
        inputs = sample.tokens.to("meta") if index == 0 else carry.clone().requires_grad_()
        outputs = carry.clone().requires_grad_()
        if index == self._num_stages - 1:
            head: Any = self.modules[index][-1]
            rows = _local(head.output.weight).shape[0]
            outputs = torch.empty(*sample.tokens.shape, rows, device="meta", requires_grad=True)
        return PipelineStage(
            self.modules[index],
            index,
            self._num_stages,
            device,
            input_args=inputs,
            output_args=outputs,
            group=self._device_mesh.get_group("pp"),
        )

    def _loss(self, logits: Tensor, targets: Tensor | None) -> Tensor:
        assert targets is not None
        if self._tp is not None:
            logits = DTensor.from_local(logits, self._tp, [Shard(-1)], run_check=False)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def _loss_context(self) -> AbstractContextManager[None]:
        return nullcontext() if self._tp is None else loss_parallel()


def _parallelize(block: nn.Module, tp: DeviceMesh) -> None:
    """Outputs are local tensors (the styles' default): what lies between linears then costs no DTensor dispatch."""
    if isinstance(block, Embedding):
        plan: dict[str, Any] = {"tokens": RowwiseParallel(input_layouts=Replicate())}
    elif isinstance(block, AttentionBlock):
        plan = {"attention.qkv": ColwiseParallel(), "attention.out": RowwiseParallel()}
    elif isinstance(block, MlpBlock):
        plan = {"mlp.gate_up": ColwiseParallel(), "mlp.down": RowwiseParallel()}
    else:
        plan = {"output": ColwiseParallel(output_layouts=Shard(-1))}
    parallelize_module(block, tp, plan)


def make_adamw(parameters: Any, settings: Optimizer, kind: AdamWKind) -> torch.optim.AdamW:
    """AdamW with the settings of the deployment; matrices decay, vectors do not.

    With tensor parallelism the matrices are DTensors and the vectors are not, so no group mixes the two, which torch's
    foreach and fused kernels refuse.
    """
    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": float(settings.weight_decay)},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=float(settings.learning_rate),
        betas=(float(settings.beta1), float(settings.beta2)),
        eps=float(settings.eps),
        fused=kind == "fused",
        foreach=kind == "foreach",
    )


def _local(tensor: Tensor) -> Tensor:
    if not isinstance(tensor, DTensor):
        return tensor
    local: Tensor = tensor.to_local()
    return local


def _targets(microbatch: Microbatch) -> Tensor:
    assert microbatch.targets is not None
    return microbatch.targets
