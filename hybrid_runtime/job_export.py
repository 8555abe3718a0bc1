"""The end of a run that exports its model: the ranks of the first replica write one Hugging Face folder together.

rank 0        files with headers ->             -> config.json, tokenizer, the folder's name
its replica                      -> own parts ->
the others                          wait
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from hybrid_runtime.comm.groups import Groups
from hybrid_runtime.deployment import Deployment
from hybrid_runtime.models.hugging_face import save_hugging_face
from hybrid_runtime.weights.export import export_target, finish_export
from hybrid_runtime.weights.target import Target


def prepare_export(deployment: Deployment, rank: int) -> Target | None:
    """What will be exported, None for nothing; call it before the first step: what is wrong must not be found after it.

    Raises:
        UsageError: the folder is already there, or transformers has no such model.
        EnvironmentProblem: the folder cannot be made, or its disk has no room.
    """
    target = export_target(deployment)
    if target is not None and rank == 0:
        target.refuse_unusable()
    return target


def export(target: Target, deployment: Deployment, units: Mapping[str, nn.Module], groups: Groups) -> None:
    """Writes the model as it is now; every rank calls this.

    Raises:
        EnvironmentProblem: something cannot be written. No folder appears then.
    """
    assert deployment.shape is not None
    place = groups.place
    if place.rank == 0:
        target.begin()
    groups.barrier()
    if place.dp == 0:
        save_hugging_face(target, units, tp_rank=place.tp, tied=deployment.shape.tie_embeddings)
    groups.barrier()
    if place.rank == 0:
        finish_export(deployment, target)
    groups.barrier()
