"""The peer to beat: torch's own tensor and pipeline parallelism, put together as well as we know how.

tp      `parallelize_module` with ColwiseParallel / RowwiseParallel on fused projections, a RowwiseParallel embedding, a
        vocabulary-parallel head with `loss_parallel`. Activations between linears are plain tensors (use_local_output)
pp      `torch.distributed.pipelining`: PipelineStage with static metadata, Schedule1F1B, outputs not collected
update  AdamW, fused where torch takes it; parameters that are DTensors and those that are not in groups of their own
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, loss_parallel, parallelize_module

from benchmarks.peer_model import AttentionBlock, Embedding, MlpBlock
from hybrid_runtime.deployment import Optimizer
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.models.unit import Microbatch

AdamWKind = Literal["fused", "foreach", "plain"]


class TorchPeer:
    """One rank of torch's side.

    Args:
        blocks: of this rank's stage, whole; they are sharded here.
        mesh: of the run; dp_degree is 1.
        num_microbatches: of a step.
        sample: one microbatch, for its shapes.
        hidden_size: width of what stages pass on.
    """

    def __init__(
        self,
        blocks: nn.ModuleDict,
        mesh: Mesh,
        settings: Optimizer,
        *,
        num_microbatches: int,
        sample: Microbatch,
        hidden_size: int,
        device: torch.device,
        adamw: AdamWKind = "fused",
    ) -> None:
        shape = (mesh.pp_degree, mesh.tp_degree)
        self._device_mesh = init_device_mesh(device.type, shape, mesh_dim_names=("pp", "tp"))
        self._tp = self._device_mesh["tp"] if mesh.tp_degree > 1 else None
        self._stage_index = self._device_mesh.get_local_rank("pp")
        self._num_stages = mesh.pp_degree
        self._num_microbatches = num_microbatches
        blocks.to(device)
        if self._tp is not None:
            for block in blocks.values():
                _parallelize(block, self._tp)
        self.module = nn.Sequential(*blocks.values())
        self.optimizer = make_adamw(self.module.parameters(), settings, adamw)
        self._schedule: Schedule1F1B | None = None
        if mesh.pp_degree > 1:
            self._schedule = self._make_schedule(sample, hidden_size, device)

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
            loss = self._loss(self.module(microbatch.tokens), microbatch.targets) / self._num_microbatches
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(_local(loss.detach()))
        return torch.stack(losses).sum()

    def _pipeline(self, microbatches: Sequence[Microbatch]) -> Tensor | None:
        assert self._schedule is not None
        is_first, is_last = self._stage_index == 0, self._stage_index == self._num_stages - 1
        inputs = (torch.cat([microbatch.tokens for microbatch in microbatches]),) if is_first else ()
        targets, losses = None, None
        if is_last:
            targets, losses = torch.cat([_targets(microbatch) for microbatch in microbatches]), list[Tensor]()
        self._schedule.step(*inputs, target=targets, losses=losses, return_outputs=False)
        return torch.stack([_local(loss.detach()) for loss in losses]).mean() if losses else None

    def _make_schedule(self, sample: Microbatch, hidden_size: int, device: torch.device) -> Schedule1F1B:
        """Static metadata: shape inference by a trial run is slower to start and would not be faster later."""
        carry = torch.empty(*sample.tokens.shape, hidden_size, device="meta")
        is_first, is_last = self._stage_index == 0, self._stage_index == self._num_stages - 1
        inputs = sample.tokens.to("meta") if is_first else carry.clone().requires_grad_()
        outputs = carry.clone().requires_grad_()
        if is_last:
            head: Any = self.module[-1]
            rows = _local(head.output.weight).shape[0]
            outputs = torch.empty(*sample.tokens.shape, rows, device="meta", requires_grad=True)
        stage = PipelineStage(
            self.module,
            self._stage_index,
            self._num_stages,
            device,
            input_args=inputs,
            output_args=outputs,
            group=self._device_mesh.get_group("pp"),
        )
        return Schedule1F1B(stage, self._num_microbatches, loss_fn=self._loss)

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
