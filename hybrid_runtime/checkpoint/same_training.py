"""What makes two runs parts of one training, and how the second goes on where the first one stopped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from hybrid_runtime.checkpoint.manifest import Manifest, read_manifest
from hybrid_runtime.checkpoint.model_words import unequal_words, words_of_shape
from hybrid_runtime.checkpoint.training_state import TrainingState
from hybrid_runtime.comm.groups import Groups
from hybrid_runtime.data.tokens import Content
from hybrid_runtime.deployment import Deployment
from hybrid_runtime.deployment_data import Data
from hybrid_runtime.errors import UsageError
from hybrid_runtime.models.unit import UnitSpec
from hybrid_runtime.plan import Plan
from hybrid_runtime.telemetry.host import versions

_MASTER = "optimizer.master_weights"
_CONTENT = "source"
_BEFORE = {_MASTER: "false"}  # how a training was that does not say it; on which tokens, nobody knows then


class Training(NamedTuple):
    """What is trained, by whom, on what: `contents` as `contents_of` gives them of [data]."""

    deployment: Deployment
    plan: Plan
    specs: Sequence[UnitSpec]
    groups: Groups
    contents: Sequence[Content]


def describe(training: Training, step: int) -> Manifest:
    """The manifest of a checkpoint after `step` steps, without its tensors."""
    deployment, plan = training.deployment, training.plan
    return Manifest(
        step=step,
        training=training_facts(deployment, training.contents),
        deployment_fingerprint=deployment.fingerprint,
        plan_fingerprint=plan.fingerprint,
        mesh=_degrees(plan),
        versions=versions(),
        written_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        origin=_origin(deployment),
    )


def training_facts(deployment: Deployment, contents: Sequence[Content]) -> dict[str, str]:
    """What makes two runs parts of one training, by its place in the deployment file.

    Degrees, cuts, schedule, microbatch size, steps and the optimizer's settings may change on the way.
    """
    model, batch = deployment.model, deployment.batch
    assert model is not None
    assert batch is not None
    if deployment.shape is not None:
        units = words_of_shape(deployment.shape)
    else:
        units = json.dumps({"units": model.units, "options": model.options}, sort_keys=True)
    precision = {} if model.dtype == "float32" else {_MASTER: str(deployment.optimizer.master_weights).lower()}
    return {
        "model": units,
        "model.dtype": model.dtype,
        **precision,
        "workload.seed": str(deployment.workload.seed),
        "batch.global_batch_size": str(batch.global_batch_size),
        "batch.sequence_length": str(batch.sequence_length),
        "data.source": _words_of(deployment.data),
        "tokens in [data]": str(sum(content.num_tokens for content in contents)),
        **{f"{_CONTENT} {number} in [data]": str(content) for number, content in enumerate(contents, start=1)},
    }


def _words_of(data: Data) -> str:
    """Which samples are drawn, without the paths, which may be others on the way."""
    mixed = " + ".join(f"{source.weight} x {source.source}" for source in data.sources)
    words = mixed or str(data.source)
    held_out = "" if data.validation_fraction is None else f" without {data.validation_fraction} of its documents"
    return words + held_out + (", packed" if data.pack else "")


def restore_training(training: Training, state: TrainingState, resumed: Path) -> int:
    """Fills parameters, optimizer and random states; returns how many steps the model was trained. Every rank calls it.

    A checkpoint of step 0 holds weights alone (`convert`): optimizer and random states stay as a new training has them.

    Raises:
        CheckpointError: the checkpoint is damaged.
        UsageError: it is of another training, or has nothing left to train.
    """
    from hybrid_runtime.checkpoint.reader import restore  # loads torch.distributed.checkpoint, which takes a second

    manifest = read_manifest(resumed)
    if weights_alone := manifest.step == 0:
        facts = training_facts(training.deployment, training.contents)
        manifest = manifest.model_copy(update={"training": facts | manifest.training})  # what it does not say may be
    refuse_other(resumed, manifest, training.deployment, training.contents)
    state.skipped = manifest.skipped
    if weights_alone:
        restore(resumed, manifest, state.weights_to_restore())
        state.prepare()  # not before: a master copy is made of the weights that are there
    else:
        state.prepare(manifest.step - manifest.skipped)
        same_mesh = manifest.mesh == _degrees(training.plan)
        items = state.to_restore(random=same_mesh and state.random_names <= set(manifest.tensors))
        restore(resumed, manifest, items)
        state.go_on_random(items, manifest.step)
    training.groups.barrier()
    return manifest.step


def refuse_other(resumed: Path, manifest: Manifest, deployment: Deployment, contents: Sequence[Content]) -> None:
    """Whether the deployment can go on with a checkpoint's training.

    Raises:
        UsageError: it is of another training, or has nothing left to train.
    """
    for key, value in training_facts(deployment, contents).items():
        unsaid = value if key.startswith(_CONTENT) else _BEFORE.get(key)
        was = manifest.training.get(key, unsaid)
        if was != value:
            before, now = unequal_words(was or "nothing", value)
            raise UsageError(
                f"{resumed}: was trained with {key} = {before}, and this deployment has {now}; "
                "give it the same, or start anew without --resume"
            )
    steps = deployment.workload.steps
    if manifest.step >= steps:
        raise UsageError(
            f"{resumed}: the model was trained {manifest.step} steps, and workload.steps = {steps}; raise it to go on"
        )


def _origin(deployment: Deployment) -> dict[str, str]:
    model = deployment.model
    assert model is not None
    named = {
        "model.hf_config": model.hf_config,
        "model.weights": model.weights,
        "data.tokenizer": deployment.data.tokenizer,
    }
    return {key: str(Path(path).resolve()) for key, path in named.items() if path and Path(path).exists()}


def _degrees(plan: Plan) -> tuple[int, int, int]:
    return plan.tp_degree, plan.pp_degree, plan.dp_degree
