from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hybrid_runtime.checkpoint.manifest import Manifest
from hybrid_runtime.checkpoint.same_training import refuse_other, training_facts
from hybrid_runtime.data.tokens import Content
from hybrid_runtime.deployment import Deployment
from hybrid_runtime.errors import UsageError
from tests.parity import deployment

HELD = (Content(600, "a" * 64), Content(400, "b" * 64))


def checkpoint_of(settings: Deployment, step: int = 3) -> Manifest:
    return Manifest(
        step=step,
        training=training_facts(settings, HELD),
        deployment_fingerprint=settings.fingerprint,
        plan_fingerprint="",
        mesh=(1, 1, 1),
        versions={},
        written_utc="",
    )


def test_mesh_cuts_schedule_and_optimizer_may_change() -> None:
    before = checkpoint_of(deployment())
    after = deployment(
        parallel={"pp_degree": 2, "dp_degree": 2},
        pipeline={"schedule": "gpipe", "cuts": "even"},
        optimizer={"learning_rate": "0.1"},
        workload={"steps": 50, "seed": 7},
        batch={"global_batch_size": 8, "microbatch_size": 2, "sequence_length": 8},
    )
    refuse_other(Path("x"), before, after, HELD)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"model": {"num_layers": 2}},
            r'with model = {"num_layers": 3}, and this deployment has {"num_layers": 2}; give',
        ),
        ({"model": {"dtype": "bfloat16"}}, "model.dtype = float32, and this deployment has bfloat16; give it the same"),
        ({"workload": {"steps": 5, "seed": 8}}, "workload.seed = 7, and this deployment has 8"),
        ({"batch": {"global_batch_size": 4, "microbatch_size": 1, "sequence_length": 8}}, "global_batch_size = 8"),
        ({"data": {"source": "text", "path": "x"}}, "data.source = python-stdlib, and this deployment has text"),
        ({"data": {"pack": True}}, "data.source = python-stdlib, and this deployment has python-stdlib, packed"),
        (
            {"data": {"sources": [{"path": "a", "weight": 3}, {"path": "b"}], "validation_fraction": "0.1"}},
            r"this deployment has 3 x corpus \+ 1 x corpus without 0.1 of its documents; give it the same",
        ),
        ({"workload": {"steps": 3, "seed": 7}}, "was trained 3 steps, and workload.steps = 3; raise it"),
    ],
)
def test_another_training_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        refuse_other(Path("x"), checkpoint_of(deployment()), deployment(**changes), HELD)


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ([*HELD, Content(1, "c" * 64)], r"tokens in .* = 1000, and this deployment has 1001"),
        (HELD[::-1], r"source 1 in \[data\] = 600 tokens of SHA-256 a{16}, and this deployment has 400 tokens of "),
        ([HELD[0], Content(400, "c" * 64)], r"source 2 in \[data\] = 400 tokens of SHA-256 b{16}, and .* c{16}"),
    ],
)
def test_other_data_is_refused(held: Sequence[Content], words: str) -> None:
    """Corpora that change their places, or one in the place of another, are drawn from otherwise, unseen."""
    with pytest.raises(UsageError, match=words):
        refuse_other(Path("x"), checkpoint_of(deployment()), deployment(), held)


def test_a_checkpoint_that_does_not_say_what_its_sources_held_goes_on() -> None:
    before = checkpoint_of(deployment())
    older = {key: value for key, value in before.training.items() if not key.startswith("source ")}
    refuse_other(Path("x"), before.model_copy(update={"training": older}), deployment(), HELD)
