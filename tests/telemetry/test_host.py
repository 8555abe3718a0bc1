import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hybrid_runtime.records import Host
from hybrid_runtime.telemetry import host as this
from hybrid_runtime.telemetry.host import (
    Found,
    Gpu,
    cores_owned,
    devices_of,
    physical_cores,
    ranges,
    share_out,
    with_own_names,
)
from hybrid_runtime.telemetry.kernel import Kernel
from tests.telemetry.examples import host


def test_ranges_of_cores() -> None:
    assert ranges((0, 1, 2, 3)) == "0-3"
    assert ranges((0, 2, 3, 7)) == "0,2-3,7"
    assert ranges(()) == ""


def test_hyperthreads_of_one_core_are_one_core(tmp_path: Path) -> None:
    for cpu, siblings in {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}.items():
        file = tmp_path / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        file.parent.mkdir(parents=True)
        file.write_text(siblings + "\n")
    assert physical_cores([3, 2, 1, 0], tmp_path) == [(0, 2), (1, 3)]
    assert physical_cores([0, 1], tmp_path) == [(0,), (1,)]
    assert physical_cores([0, 2], tmp_path) == [(0, 2)]
    assert physical_cores([4, 5], tmp_path / "hidden") == [(4,), (5,)]


def test_ranks_get_cores_of_their_own_or_none() -> None:
    cores = [(0, 4), (1, 5), (2, 6), (3, 7)]
    assert [share_out(cores, 4, rank, 2, 2) for rank in range(2)] == [(0, 4, 1, 5), (2, 6, 3, 7)]
    assert [share_out(cores, 4, rank, 3, 1) for rank in range(3)] == [(0, 4), (1, 5), (2, 6)]
    assert share_out(cores, 4, 0, 5, 1) is None
    assert share_out(cores, 1, 0, 2, 1) is None  # the quota is tighter than the mask


def found(host: Host, gpu: Gpu | None = None, boot_id: str = "") -> Found:
    """What a rank finds; a host name is a machine unless a boot id says otherwise."""
    return Found(host, gpu, "a CPU", Kernel(boot_id or host.name, "time:[1]"))


def test_owning_needs_enough_cores_and_no_sharing() -> None:
    def owned(*hosts: Host) -> tuple[bool, ...]:
        return cores_owned([found(host) for host in hosts])

    assert owned(host(affinity=(0,)), host(affinity=(1,))) == (True, True)
    assert owned(host(affinity=(0,)), host(affinity=(0,))) == (False, False)  # pinning had no effect
    assert owned(*[host(affinity=(0, 1))] * 3) == (False, False, False)
    assert owned(host(affinity=(0, 1), available_cores=1)) == (True,)
    assert owned(host(affinity=(0,), available_cores=1), host(affinity=(1,), available_cores=1)) == (False, False)
    assert owned(host(affinity=(0,), threads_per_rank=2)) == (False,)
    # the same core numbers on another host are other cores; only the pair on "two" shares
    assert owned(host(), host("two"), host("two")) == (True, False, False)


def test_containers_of_one_machine_share_its_cores() -> None:
    apart = [found(host("pod-a"), boot_id="b"), found(host("pod-b"), boot_id="b")]
    assert cores_owned(apart) == (False, False)
    assert cores_owned([apart[0], found(host("pod-b", affinity=(1,)), boot_id="b")]) == (True, True)


def test_machines_of_one_name_get_names_of_their_own() -> None:
    clones = [found(host("localhost"), boot_id=boot_id) for boot_id in ("1" * 36, "2" * 36, "1" * 36)]
    names = [rank.host.name for rank in with_own_names(clones)]
    assert names == ["localhost@11111111", "localhost@22222222", "localhost@11111111"]
    assert [device.id for device in devices_of(with_own_names(clones))] == [
        "localhost@11111111:rank0", "localhost@22222222:cores=0", "localhost@11111111:rank2",
    ]  # fmt: skip
    others = [found(host("pod-a"), boot_id="b"), found(host("pod-b"), boot_id="b")]
    assert [rank.host.name for rank in with_own_names(others)] == ["pod-a", "pod-b"]


def test_devices_have_names_that_tell_them_apart() -> None:
    own = devices_of([found(host(affinity=(0, 1), available_cores=4))])
    assert (own[0].id, own[0].owned, own[0].kind, own[0].total_bytes) == ("one:cores=0-1", True, "cpu", None)
    shared = devices_of([found(host(affinity=(0, 1)))] * 3)
    assert [device.id for device in shared] == ["one:rank0", "one:rank1", "one:rank2"]
    assert not any(device.owned for device in shared)


def test_ranks_on_one_gpu_own_nothing() -> None:
    first, second = Gpu("GPU-a", "H100", 80), Gpu("GPU-b", "H100", 80)
    devices = devices_of([found(host(), gpu) for gpu in (first, second, second)])
    assert [(device.id, device.owned) for device in devices] == [("GPU-a", True), ("GPU-b", False), ("GPU-b", False)]
    assert devices[0].kind == "cuda"
    assert devices[0].total_bytes == 80
    assert this.gpu_uuid("1a2b") == "GPU-1a2b"
    assert this.gpu_uuid("GPU-1a2b") == "GPU-1a2b"


_SETTLE = """
import os, threading
from hybrid_runtime.telemetry.host import settle
stop = threading.Event()
thread = threading.Thread(target=stop.wait); thread.start()
whole = os.sched_getaffinity(0)
alone = settle(0, 10_000, 1)
assert set(alone.affinity) == whole, "too few cores: stays unpinned"
described = settle(0, 1, 1, pin=False)
assert set(described.affinity) == whole
pinned = settle(0, 1, 1)
assert pinned.available_cores == alone.available_cores >= 1
assert set(pinned.affinity) == os.sched_getaffinity(thread.native_id) <= whole
assert len(pinned.affinity) < len(whole) or pinned.available_cores == 1
stop.set()
import sys
assert "torch" not in sys.modules
"""


def test_pinning_moves_every_thread_and_is_read_back() -> None:
    subprocess.run([sys.executable, "-c", _SETTLE], check=True, timeout=60)


def test_what_is_recorded_of_the_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(this.environment()):
        monkeypatch.delenv(name)
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("SECRET_TOKEN", "x")
    assert this.environment() == {"NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "1"}
    versions = this.versions()
    assert versions["torch"] == torch.__version__
    assert {"python", "numpy", "cuda", "nccl", "nvidia-ml-py"} <= set(versions)
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n")
    assert this.cpu_name(tmp_path / "cpuinfo") == "Some CPU @ 2 GHz"
    assert this.cpu_name(tmp_path / "absent") == os.uname().machine


@pytest.mark.gpu(1)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")
def test_the_gpu_has_the_uuid_that_nvml_knows() -> None:
    from hybrid_runtime.telemetry.nvml import Nvml

    gpu = this.find_gpu(0)
    nvml = Nvml()
    (device,) = nvml.inventory([gpu.uuid], "before").devices
    sample = nvml.sample(gpu.uuid)
    nvml.close()
    assert device.name == gpu.name
    assert isinstance(sample.memory_total_bytes, int)
    assert sample.memory_total_bytes >= gpu.total_bytes
