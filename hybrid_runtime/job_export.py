"""The end of a run that exports its model: the ranks of the first replica write one Hugging Face folder together.

rank 0        files with headers ->             -> config.json, tokenizer, the folder's name
its replica                      -> own parts ->
the others                          wait
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from hybrid_runtime.checkpoint.folders import step_of
from hybrid_runtime.comm.groups import Groups
from hybrid_runtime.deployment import Deployment
from hybrid_runtime.models.hugging_face import save_hugging_face
from hybrid_runtime.training.update import Update
from hybrid_runtime.weights.export import Exported, export_dtype, export_target, finish_export, refuse_other_export
from hybrid_runtime.weights.target import Target


class Prepared(NamedTuple):
    """A folder to be, and of which training."""

    target: Target
    training: Mapping[str, str]


def prepare_export(
    deployment: Deployment, rank: int, training: Mapping[str, str], resumed: Path | None = None
) -> Prepared | None:
    """What will be exported, None for nothing; call it before the first step: what is wrong must not be found after it.

    Args:
        training: the facts of the training (`training_facts`).
        resumed: the checkpoint from which it goes on; then the folder may hold an earlier export of it.

    Raises:
        UsageError: the folder is already there, or transformers has no such model.
        EnvironmentProblem: the folder cannot be made, or its disk has no room.
    """
    target = export_target(deployment, replaces=resumed is not None)
    if target is None:
        return None
    if rank == 0:
        if resumed is not None:
            refuse_other_export(target.folder, Exported(training, step_of(resumed)))
        target.refuse_unusable()
    return Prepared(target, training)


def export(
    prepared: Prepared,
    deployment: Deployment,
    units: Mapping[str, nn.Module],
    groups: Groups,
    update: Update | None = None,
) -> None:
    """Writes the model as it is now; every rank calls this.

    Args:
        update: of the training that has ended. A float32 folder of a bfloat16 model gets its master copies, which take
            the place of the gradients here.

    Raises:
        EnvironmentProblem: something cannot be written. No folder appears then.
    """
    assert deployment.shape is not None
    place, target = groups.place, prepared.target
    wide = update is not None and export_dtype(deployment) == "float32" and update.optimizer.masters_for_gradients()
    if place.rank == 0:
        target.begin()
    groups.barrier()
    if place.dp == 0:
        tied, values_of = deployment.shape.tie_embeddings, _master if wide else _itself
        save_hugging_face(target, units, tp_rank=place.tp, tied=tied, values_of=values_of)
    groups.barrier()
    if place.rank == 0:
        steps = deployment.workload.steps if deployment.workload.kind == "train" else 0
        finish_export(deployment, target, Exported(prepared.training, steps))
    groups.barrier()


def _itself(parameter: nn.Parameter) -> Tensor:
    return parameter


def _master(parameter: nn.Parameter) -> Tensor:
    """Of a parameter that was trained, where its gradient was."""
    return parameter if parameter.grad is None else parameter.grad
