from __future__ import annotations

import pytest
import torch

from hybrid_runtime.comm.start import Launch, choose_device, launch_from_environment
from hybrid_runtime.deployment import Hardware
from hybrid_runtime.errors import EnvironmentProblem, UsageError


def chosen(monkeypatch: pytest.MonkeyPatch, gpus: int, ranks: int, local_rank: int = 0, **hardware: object) -> str:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    device, backend = choose_device(Hardware.model_validate(hardware), Launch(local_rank, local_rank, ranks, ranks))
    return f"{device} {backend}"


def test_nccl_where_every_rank_has_its_own_gpu_else_gloo(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch, 0, 2) == "cpu gloo"
    assert chosen(monkeypatch, 1, 2) == "cpu gloo"
    assert chosen(monkeypatch, 2, 2, 1) == "cuda:1 nccl"
    assert chosen(monkeypatch, 8, 2, 1) == "cuda:1 nccl"
    assert chosen(monkeypatch, 8, 2, device="cpu") == "cpu gloo"


def test_ranks_share_a_gpu_only_when_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch, 2, 3, 2, device="cuda", oversubscribe=True) == "cuda:0 gloo"
    with pytest.raises(EnvironmentProblem, match=r"3 ranks on this machine, but torch sees 2 GPU\(s\)"):
        chosen(monkeypatch, 2, 3, device="cuda")
    with pytest.raises(EnvironmentProblem, match="torch sees no GPU here"):
        chosen(monkeypatch, 0, 1, device="cuda")


def test_torchruns_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "5"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "8"), ("LOCAL_WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    assert launch_from_environment() == Launch(5, 1, 8, 4)
    monkeypatch.setenv("RANK", "five")
    with pytest.raises(UsageError, match="must be numbers"):
        launch_from_environment()
