"""What a rank runs on: its cores, its GPU, and whether it has them for itself.

A CPU run is measured hardware when `ranks * threads <= available cores` and every rank is pinned to cores of its own:
then one core set is one device. Otherwise the rank is a virtual device and its wall-clock claims are not judged. Two
hyperthreads of one core are one core: they would slow each other. Only `find_gpu` and `versions` import torch.
"""

from __future__ import annotations

import os
import platform
import socket
from collections import Counter
from collections.abc import Sequence
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from hybrid_runtime.records import Device, Host
from hybrid_runtime.telemetry.cgroup import quota_cores
from hybrid_runtime.telemetry.kernel import Kernel, told_apart
from hybrid_runtime.telemetry.secrets import hidden

_VARIABLES = (
    "NCCL_", "CUDA_", "TORCH_", "PYTORCH_", "NVIDIA_", "OMP_", "GOMP_", "KMP_", "GLOO_", "MKL_", "OPENBLAS_", "UCX_",
    "LD_PRELOAD", "PYTHONHASHSEED", "HYBRID_RUNTIME_",
)  # fmt: skip
_PACKAGES = ("hybrid-runtime", "torch", "triton", "numpy", "numba", "scipy", "pydantic", "safetensors", "tokenizers",
             "nvidia-ml-py")  # fmt: skip


class Gpu(NamedTuple):
    """A rank's GPU: NVML's UUID ("GPU-..."), name and memory."""

    uuid: str
    name: str
    total_bytes: int


class Found(NamedTuple):
    """What one rank found; the job all-gathers it in order of ranks and lets `with_own_names` tell hosts apart."""

    host: Host
    gpu: Gpu | None
    cpu_name: str
    kernel: Kernel


def with_own_names(found: Sequence[Found]) -> list[Found]:
    """Every rank's finds; hosts that have the same name and are not the same machine get different ones."""
    names = told_apart([rank.host.name for rank in found], [rank.kernel for rank in found])
    return [
        rank._replace(host=rank.host.model_copy(update={"name": name})) for rank, name in zip(found, names, strict=True)
    ]


def physical_cores(cpus: Sequence[int], topology: Path = Path("/sys/devices/system/cpu")) -> list[tuple[int, ...]]:
    """The given logical CPUs by physical core; each is its own core where the topology is hidden."""
    cores: dict[str, list[int]] = {}
    for cpu in sorted(cpus):
        siblings = topology / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        cores.setdefault(siblings.read_text().strip() if siblings.is_file() else str(cpu), []).append(cpu)
    return [tuple(core) for core in cores.values()]


def share_out(
    cores: Sequence[tuple[int, ...]], available: int, local_rank: int, local_world_size: int, threads_per_rank: int
) -> tuple[int, ...] | None:
    """The CPUs of one rank when all ranks get cores of their own; None when there are too few."""
    if local_world_size * threads_per_rank > available:
        return None
    first = local_rank * threads_per_rank
    return tuple(cpu for core in cores[first : first + threads_per_rank] for cpu in core)


def settle(local_rank: int, local_world_size: int, threads_per_rank: int, *, pin: bool = True) -> Host:
    """Pins this process (all its threads) to its own cores if there are enough, and describes the host.

    Call it once, early, before thread pools start; threads started later inherit the cores. Whether pinning worked is
    not assumed: `affinity` is read back. `pin=False` only describes (a GPU rank's threads should not share one core).
    """
    received = sorted(os.sched_getaffinity(0))
    cores = physical_cores(received)
    quota = quota_cores()
    available = len(cores) if quota is None else min(len(cores), quota)
    mine = share_out(cores, available, local_rank, local_world_size, threads_per_rank)
    if pin and mine is not None:
        pin_to(mine)
    return Host(
        name=socket.gethostname(),
        affinity=tuple(sorted(os.sched_getaffinity(0))),
        available_cores=available,
        threads_per_rank=threads_per_rank,
        local_world_size=local_world_size,
    )


def pin_to(cpus: Sequence[int]) -> None:
    """Pins this process, all its threads, to these CPUs as far as the system lets it."""
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(thread), cpus)
        except OSError:  # the thread ended, or the system refuses: the affinity read back tells
            continue


def cores_owned(found: Sequence[Found]) -> tuple[bool, ...]:
    """For each rank, whether its cores are its own: enough cores on its host, and shared with no other rank there.

    Containers of one machine are hosts of their own, but what one runs on a core the others feel.

    Args:
        found: of all ranks, in order of ranks.
    """
    seen = {rank.kernel.boot_id: Counter[int]() for rank in found}
    wanted: Counter[str] = Counter()
    for host, _, _, kernel in found:
        seen[kernel.boot_id].update(host.affinity)
        wanted[host.name] += host.threads_per_rank
    return tuple(
        wanted[host.name] <= host.available_cores
        and len(host.affinity) >= host.threads_per_rank
        and all(seen[kernel.boot_id][cpu] == 1 for cpu in host.affinity)
        for host, _, _, kernel in found
    )


def devices_of(found: Sequence[Found]) -> tuple[Device, ...]:
    """Every rank's device, from what all ranks found. Ranks that share a GPU have the same id and own nothing."""
    ranks_on = Counter(rank.gpu.uuid for rank in found if rank.gpu is not None)
    owned = cores_owned(found)
    devices: list[Device] = []
    for number, (rank, owns_cores) in enumerate(zip(found, owned)):
        if rank.gpu is not None:
            uuid, name, total_bytes = rank.gpu
            devices.append(Device(kind="cuda", id=uuid, name=name, owned=ranks_on[uuid] == 1, total_bytes=total_bytes))
            continue
        where = f"cores={ranges(rank.host.affinity)}" if owns_cores else f"rank{number}"
        identity = f"{rank.host.name}:{where}"
        devices.append(Device(kind="cpu", id=identity, name=rank.cpu_name, owned=owns_cores, total_bytes=None))
    return tuple(devices)


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as text: (0, 1, 2, 5) is "0-2,5"."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def find_gpu(index: int) -> Gpu:
    """The GPU that torch calls `index`, under the UUID that NVML knows it by (NVML's own index may differ)."""
    import torch

    properties = torch.cuda.get_device_properties(index)
    return Gpu(gpu_uuid(str(properties.uuid)), properties.name, properties.total_memory)


def gpu_uuid(text: str) -> str:
    """torch leaves out the prefix of a UUID that NVML requires."""
    return text if text.startswith(("GPU-", "MIG-")) else f"GPU-{text}"


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Model of the CPU, or the architecture where the system does not say."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def installed_versions() -> dict[str, str]:
    """Of what is installed here, without importing any of it."""
    found = {"python": platform.python_version(), "system": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "n/a (not installed as a package)"
    return found


def versions() -> dict[str, str]:
    """Of everything that may change a figure."""
    import torch

    found = installed_versions()
    found["cuda"] = torch.version.cuda or "n/a (torch was built without CUDA)"
    found["nccl"] = "n/a (no CUDA)"
    if torch.cuda.is_available():
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    return found


def environment() -> dict[str, str]:
    """The environment variables that steer torch, CUDA, NCCL, gloo, OpenMP and MKL; secrets are hidden."""
    return {name: hidden(name, value) for name, value in sorted(os.environ.items()) if name.startswith(_VARIABLES)}
