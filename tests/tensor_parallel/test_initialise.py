"""Initial weights: equal for every mesh, drawn block by block, depending on every part of the key."""

from __future__ import annotations

import pytest
import torch

from hybrid_runtime.comm.axis import Axis
from hybrid_runtime.tensor_parallel import initialise
from hybrid_runtime.tensor_parallel.initialise import Init, derived_seed, draw_normal_
from hybrid_runtime.tensor_parallel.linear import ColumnParallelLinear, RowParallelLinear
from hybrid_runtime.tensor_parallel.shard import ShardSpec, local_of, split_evenly

INIT = Init(seed=7, unit="0.attn", layer="qkv", std=0.5)


def drawn(spec: ShardSpec, init: Init = INIT) -> torch.Tensor:
    local = torch.full(spec.local_shape, torch.nan)
    draw_normal_(local, spec, init, "weight")
    return local


def test_every_layout_is_a_part_of_the_same_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initialise, "BLOCK_ROWS", 8)  # blocks 8, 8, 3: segments start and end inside and across blocks
    whole = drawn(ShardSpec(global_shape=(19, 12)))
    assert not whole.isnan().any()
    for size in (2, 3, 4):
        for rank in range(size):
            axis = Axis(size, rank)
            padded = split_evenly("rows", [19], axis, padded=True)
            layouts = [
                ShardSpec(global_shape=(19, 12), dim=0, segments=padded),
                ShardSpec(global_shape=(19, 12), dim=1, segments=split_evenly("columns", [12], axis)),
            ]
            if size == 4:
                fused = split_evenly("rows", [12, 2, 2], axis, [1, 2, 2])  # rows 0..15; the rest is held by nobody
                layouts.append(ShardSpec(global_shape=(19, 12), dim=0, segments=fused))
            for spec in layouts:
                assert torch.equal(drawn(spec), local_of(whole, spec)), spec


def test_only_the_needed_blocks_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks: list[object] = []
    monkeypatch.setattr(initialise, "BLOCK_ROWS", 8)

    def remember(*key: object) -> int:
        blocks.append(key[-1])
        return 1

    monkeypatch.setattr(initialise, "derived_seed", remember)
    drawn(ShardSpec(global_shape=(64, 3), dim=0, segments=split_evenly("rows", [64], Axis(4, 2))))
    assert blocks == [4, 5]


def test_weights_depend_on_every_part_of_the_key_and_on_nothing_else() -> None:
    spec = ShardSpec(global_shape=(40, 30))
    others = [
        Init(seed=8, unit="0.attn", layer="qkv", std=0.5),
        Init(seed=7, unit="1.attn", layer="qkv", std=0.5),
        Init(seed=7, unit="0.attn", layer="output", std=0.5),
    ]
    assert torch.equal(drawn(spec), drawn(spec))
    assert not any(torch.equal(drawn(spec), drawn(spec, other)) for other in others)
    assert drawn(spec).std().item() == pytest.approx(0.5, rel=0.1)
    assert derived_seed(7, "0.attn", 0) == 1690243922565712630, "weights of earlier versions must stay reproducible"


def test_layers_without_an_init_follow_torchs_seed() -> None:
    for layer in (ColumnParallelLinear, RowParallelLinear):
        weights = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            weights.append(layer(4, 6, Axis()).weight)
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[1], weights[2])
        assert layer(4, 6, Axis(), device="meta").weight.is_meta


def test_weights_do_not_depend_on_the_default_device() -> None:
    """Units are built under their device's context, and generators live on the CPU."""
    spec, init = ShardSpec(global_shape=(5, 3)), Init(seed=1, unit="u")
    inside, outside = torch.empty(5, 3), torch.empty(5, 3)
    draw_normal_(outside, spec, init, "weight")
    with torch.device("meta"):
        draw_normal_(inside, spec, init, "weight")
    assert torch.equal(inside, outside)
