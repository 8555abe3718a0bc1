"""Which device and backend a rank uses, and joining torch.distributed.

NCCL   when every rank of the machine can have its own GPU
gloo   otherwise: on CPUs, or (with `oversubscribe = true`) several ranks on one GPU, for function only
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.distributed import HashStore, PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from hybrid_runtime.comm.groups import Backend
from hybrid_runtime.deployment import Hardware
from hybrid_runtime.errors import EnvironmentProblem, UsageError


class Launch(NamedTuple):
    """What torchrun tells a rank through the environment."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int


def launch_from_environment() -> Launch:
    """Reads torchrun's variables; a job started without torchrun is one rank.

    Raises:
        UsageError: a variable is not a number.
    """
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    try:
        return Launch(*(int(os.environ.get(name, default)) for name, default in zip(names, "0011")))
    except ValueError as problem:
        raise UsageError(f"{', '.join(names)} must be numbers ({problem}); start the job with torchrun") from None


def choose_device(hardware: Hardware, launch: Launch) -> tuple[torch.device, Backend]:
    """The rank's device and the backend of its groups.

    Raises:
        EnvironmentProblem: the deployment asks for GPUs that this machine does not have.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if hardware.device == "cpu" or (hardware.device == "auto" and gpus < launch.local_world_size):
        return torch.device("cpu"), "gloo"
    if gpus == 0:
        raise EnvironmentProblem(
            "hardware.device = 'cuda', but torch sees no GPU here; run on a GPU machine or set it to 'auto' or 'cpu'"
        )
    if gpus < launch.local_world_size and not hardware.oversubscribe:
        raise EnvironmentProblem(
            f"hardware.device = 'cuda' with {launch.local_world_size} ranks on this machine, but torch sees {gpus} "
            "GPU(s); use fewer ranks, or set hardware.oversubscribe = true to share them (function only)"
        )
    device = torch.device("cuda", launch.local_rank % gpus)
    torch.cuda.set_device(device)
    return device, "nccl" if gpus >= launch.local_world_size else "gloo"


def start_distributed(launch: Launch, backend: Backend, device: torch.device, timeout: timedelta) -> None:
    """Joins torch.distributed; one rank without torchrun needs no rendezvous address.

    Raises:
        EnvironmentProblem: the ranks could not find each other.
    """
    try:
        dist.init_process_group(
            backend,
            store=_store(launch, timeout),
            rank=launch.rank,
            world_size=launch.world_size,
            timeout=timeout,
            device_id=device if backend == "nccl" else None,
        )
    except (RuntimeError, ValueError) as problem:
        raise EnvironmentProblem(
            f"rank {launch.rank} could not join the other {launch.world_size - 1} ranks ({problem}); check the "
            "rendezvous endpoint and that GLOO_SOCKET_IFNAME / NCCL_SOCKET_IFNAME name an interface all machines share"
        ) from None


def _store(launch: Launch, timeout: timedelta) -> Store:
    """Where the ranks find each other: torchrun's store, of which every restart of a run uses a part of its own.

    torchrun keeps its store over restarts; without this, a restarted rank may read the address of one that is gone.
    """
    if "MASTER_ADDR" not in os.environ:
        return HashStore()
    store, _, _ = next(rendezvous("env://", launch.rank, launch.world_size, timeout=timeout))
    return PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def refuse_different(fingerprint: str, launch: Launch) -> None:
    """Every machine must have been given the same deployment; ranks of one machine read one file.

    Raises:
        UsageError: a rank's deployment is not rank 0's; raised on every rank, so that none waits for the others.
    """
    if launch.world_size == launch.local_world_size:
        return
    everyone: list[str | None] = [None] * launch.world_size
    dist.all_gather_object(everyone, fingerprint)
    others = [rank for rank, theirs in enumerate(everyone) if theirs != everyone[0]]
    if others:
        raise UsageError(
            f"the machine of rank {others[0]} was given another deployment than that of rank 0; "
            "give every machine the same file"
        )
