"""Jobs over several machines: hosts made of namespaces, with a slow network between them, clocks of their own, and a
cable that is pulled."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hybrid_runtime.records import RankRecords, read_side
from hybrid_runtime.run_folder import RunFolder, read_failures
from hybrid_runtime.verifier.judge import judge
from tests.commands import ROOT, Done, environment, small, wait, write_json
from tests.hosts import Hosts, missing

pytestmark = [pytest.mark.ranks, pytest.mark.skipif(missing() is not None, reason=f"no hosts here: {missing()}")]

TARGETS = {"compute_balance_pp": 99, "compute_balance_metric": "work_share_range"}
SLOW = {"delay_s": 0.002, "bytes_per_s": 25e6}


def settings(**more: str) -> dict[str, str]:
    """The environment of a program on a host; its address comes from its name, as on a real one."""
    found = environment(**more)
    del found["GLOO_SOCKET_IFNAME"]
    return found


def ended(processes: list[subprocess.Popen[str]]) -> list[Done]:
    """Waits for all; whatever happens, none is left."""
    try:
        return [wait(process) for process in processes]
    finally:
        for process in processes:
            process.kill()


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


SERVER = """
import socket
server = socket.create_server(("", 5000)); print("ready", flush=True)
end, _ = server.accept()
end.send(end.recv(1))
while end.recv(1 << 20): pass
"""
CLIENT = """
import socket, sys, time
end = socket.create_connection(("host1", 5000)); end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
begin = time.monotonic(); end.send(b"x"); end.recv(1); print(time.monotonic() - begin)
begin = time.monotonic(); end.sendall(b"x" * 2_000_000); end.shutdown(socket.SHUT_WR); end.recv(1)
print(time.monotonic() - begin)
"""


def test_hosts_have_names_and_clocks_of_their_own_and_the_network_is_slow() -> None:
    """What the other tests rest on: at least these times, and nothing at all once a host is cut off."""
    with Hosts(2, delay_s=0.005, bytes_per_s=10e6, clock_offsets_s=(0, 5000)) as hosts:
        server = hosts[0].start(python(SERVER))
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        round_trip_s, sending_s = map(float, hosts[1].run(python(CLIENT)).split())
        assert 0.01 <= round_trip_s < 1
        assert 0.2 <= sending_s < 5
        names = [host.run(["hostname"]).strip() for host in (hosts[0], hosts[1])]
        clocks = [float(host.run(python("import time; print(time.monotonic())"))) for host in (hosts[0], hosts[1])]
        assert names == ["host1", "host2"]
        assert 5000 < clocks[1] - clocks[0] < 5010
        hosts[1].cut_off()
        lost = hosts[1].start(python("import socket; socket.create_connection(('host1', 5000), timeout=0.3)"))
        assert "TimeoutError" in wait(lost).err


def test_a_job_over_two_machines_by_the_launch_file(tmp_path: Path) -> None:
    """Two ranks on each: tensor-parallel peers share a host, and clocks hours apart are put on one."""
    run = tmp_path / "run"
    file = write_json(tmp_path / "file.json", small(parallel={"tp_degree": 2, "pp_degree": 2}, targets=TARGETS))
    apart_s = 5000
    with Hosts(2, **SLOW, clock_offsets_s=(0, apart_s)) as hosts:
        done = ended([
            hosts[number].start(
                [ROOT / "launch/several_machines.sh", file, "--run-folder", run, "--quiet"],
                folder=tmp_path,
                env=settings(
                    NNODES="2", NPROC_PER_NODE="2", RDZV_ENDPOINT="host1:29500", NODE_RANK=str(number),
                ),
            )
            for number in (0, 1)
        ])  # fmt: skip
    assert [node.code for node in done] == [0, 0], done
    assert "".join(node.err for node in done).count("judge them: hybrid-runtime verify --recheck") == 1
    ranks = read_side(run)
    first = ranks[0].header.host.name  # torchrun numbers the machines in the order in which they join
    second = {"host1": "host2", "host2": "host1"}[first]
    assert [rank.header.host.name for rank in ranks] == [first, first, second, second]
    assert [rank.header.clock_offset_ns for rank in ranks[:2]] == [0, 0]
    for rank in ranks[2:]:
        _check_clock(rank, apart_s if first == "host2" else -apart_s)
    verdict = judge(run)
    assert verdict.exit_code == 0, verdict
    assert not any("tensor-parallel" in warning for warning in verdict.warnings)
    assert verdict.provenance is not None
    assert set(verdict.provenance.hosts) == {"host1", "host2"}


def _check_clock(rank: RankRecords, expected_s: int) -> None:
    """The bound holds, and is that of a network with 2 ms in each direction."""
    header = rank.header
    assert abs(header.clock_offset_ns - expected_s * 10**9) <= header.clock_uncertainty_ns
    assert 2_000_000 <= header.clock_uncertainty_ns < 200_000_000


def test_a_run_folder_that_is_not_shared_is_refused_before_the_first_step(tmp_path: Path) -> None:
    own = tmp_path / "disk"
    own.mkdir()
    file = write_json(tmp_path / "file.json", small(parallel={"pp_degree": 2}))
    with Hosts(2, **SLOW, private=own) as hosts:
        done = ended(start_ranks(hosts, tmp_path, file, own / "run"))
    assert [rank.code for rank in done] == [4, 4], done
    for rank in done:
        assert (
            f"{own}/run: rank 1 on host2 does not see what rank 0 on host1 writes there; name a --run-folder"
            in rank.err
        )
        assert "Traceback" not in rank.err


def test_a_machine_that_is_cut_off_ends_the_job_on_both_sides(tmp_path: Path) -> None:
    """Tensor-parallel peers on two machines: until then their sums cross the network, for no memory is shared."""
    timeout_s, run = 5, tmp_path / "run"
    values: Any = small(parallel={"tp_degree": 2}, workload={"steps": 10**6}, measurement={"timeout_s": timeout_s})
    file = write_json(tmp_path / "file.json", values)
    with Hosts(2, **SLOW) as hosts:
        ranks = start_ranks(hosts, tmp_path, file, run)
        _wait_for_steps(run, 3, ranks)
        hosts[1].cut_off()
        cut_s = time.monotonic()
        done = ended(ranks)
        took_s = time.monotonic() - cut_s
    assert [rank.code for rank in done] == [4, 4], done
    for number, rank in enumerate(done):
        sentence = next(line for line in rank.err.splitlines() if line.startswith("hybrid_runtime: "))
        assert f"rank {number} (dp 0, pp 0, tp {number}), stage 0, step " in sentence
        assert f": heard nothing of another rank for {timeout_s} s: it hangs, or its machine or the network" in sentence
        assert "Traceback" not in rank.err
    assert {failure.rank for failure in read_failures(RunFolder(run))} == {0, 1}
    assert took_s < timeout_s + 10


def start_ranks(hosts: Hosts, folder: Path, file: Path, run: Path) -> list[subprocess.Popen[str]]:
    """One rank on each of two hosts, told of each other as torchrun would; it and the launcher are tested elsewhere."""
    return [
        hosts[rank].start(
            [sys.executable, "-m", "hybrid_runtime.job", file, "--run-folder", run, "--quiet"],
            folder=folder,
            env=settings(
                RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE="2", LOCAL_WORLD_SIZE="1", MASTER_ADDR="host1",
                MASTER_PORT="29500",
            ),
        )
        for rank in (0, 1)
    ]  # fmt: skip


def _wait_for_steps(run: Path, steps: int, ranks: list[subprocess.Popen[str]]) -> None:
    deadline_s = time.monotonic() + 60
    progress = RunFolder(run).progress
    while not progress.exists() or len(progress.read_text().splitlines()) < steps:
        assert time.monotonic() < deadline_s
        assert all(rank.poll() is None for rank in ranks), [rank.communicate() for rank in ranks]
        time.sleep(0.05)
