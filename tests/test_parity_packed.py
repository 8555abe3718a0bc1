"""Packed documents of several sources on a mesh train exactly as in one process; validating changes no bit of it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from hybrid_runtime.data.corpus import open_corpus
from hybrid_runtime.data.mixture import Mixture
from tests.data.corpora import random_corpus
from tests.parity import assert_same, deployment, joined_rows, one_process, this_rank
from tests.ranks import run_ranks

# Attention and MLP cut between pieces, V placement, split backward; then a sharded embedding and replicas.
PIECES = ["embedding..0.mlp", "1.attn..1.mlp[:20]", "1.mlp[20:]..2.attn[:2]", "2.attn[2:]..head"]
MESHES: dict[str, dict[str, Any]] = {
    "tp 2 x pp 2": {
        "parallel": {"tp_degree": 2, "pp_degree": 2, "sequence_parallel": True},
        "pipeline": {"schedule": "zb_v", "cuts": PIECES},
    },
    "pp 2 x dp 2": {
        "parallel": {"pp_degree": 2, "dp_degree": 2},
        "pipeline": {"schedule": "zb_h1", "embedding_rows": "equal"},
    },
}


def compare(rank: int, folder: str) -> None:
    """All of it in one world, because starting processes costs seconds."""
    sources = tuple(open_corpus(Path(folder) / str(k)) for k in range(3))
    data = Mixture(sources[:2], (Fraction(7), Fraction(3)))
    model = {"num_kv_heads": 4}  # so that half of the attention is whole heads on each of two ranks
    plain = {"model": model, "data": {"pack": True}}
    validated = {**plain, "workload": {"steps": 5, "seed": 7, "validate_every": 2, "validation_batches": 2}}
    validated["data"] = {"pack": True, "validation_sources": [{"path": "elsewhere"}]}
    oracle = one_process(deployment(**validated), data, sources[2])
    assert len(oracle.validations) == 3
    for mesh in MESHES.values():
        _, _, run = this_rank(deployment(**validated, **mesh), data, sources[2])
        assert_same(run._replace(gradients=joined_rows(run.gradients)), oracle)
        _, _, without = this_rank(deployment(**plain, **mesh), data)
        assert (run.losses, run.norms) == (without.losses, without.norms)
        assert all(torch.equal(run.gradients[name], without.gradients[name]) for name in without.gradients)


@pytest.mark.ranks
def test_packed_mixtures_equal_one_process_and_validation_changes_nothing(tmp_path: Path) -> None:
    for k in range(3):
        random_corpus(tmp_path / str(k), 400, seed=k)
    run_ranks(4, compare, str(tmp_path), timeout_s=170)
