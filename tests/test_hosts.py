"""Jobs over several machines: hosts made of namespaces, with a slow network between them, clocks of their own, and a
cable that is pulled."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hybrid_runtime.checkpoint.folders import name_of
from hybrid_runtime.records import RankRecords, read_side
from hybrid_runtime.report.progress import ProgressLine
from hybrid_runtime.run_folder import RunFolder
from hybrid_runtime.verifier.judge import judge
from tests.checkpoint.examples import assert_close, whole_state
from tests.commands import ROOT, Done, environment, small, wait, write_json
from tests.hosts import Hosts, missing

pytestmark = [pytest.mark.ranks, pytest.mark.skipif(missing() is not None, reason=f"no hosts here: {missing()}")]

TARGETS = {"compute_balance_pp": 99, "compute_balance_metric": "work_share_range"}
SLOW = {"delay_s": 0.002, "bytes_per_s": 25e6}
STEPS, LIMIT_S, ENDED_S = 6, 3, 20


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
        done = ended(start_nodes(hosts, tmp_path, file, run, ranks_per_node=2))
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
    values = small(parallel={"pp_degree": 2})
    with Hosts(2, **SLOW, private=own) as hosts:
        done = ended(start_ranks(hosts, tmp_path, values, own / "run")[1])
    assert [rank.code for rank in done] == [4, 4], done
    for rank in done:
        assert (
            f"{own}/run: rank 1 on host2 does not see what rank 0 on host1 writes there; name a --run-folder"
            in rank.err
        )
        assert "Traceback" not in rank.err


def test_three_machines_train_as_one_process_until_one_is_cut_off(tmp_path: Path) -> None:
    """A stage on each; the one in the middle loses its cable, and every machine says so."""
    values = small(workload={"steps": 10**6}, faults={"hang_limit_s": LIMIT_S})
    with Hosts(3, **SLOW) as hosts:
        run, ranks = start_ranks(hosts, tmp_path, values | {"parallel": {"pp_degree": 3}})
        alone, one = start_alone(tmp_path, values)
        _wait_for_steps(run, STEPS, ranks)
        _wait_for_steps(alone, STEPS, [one])
        one.kill()
        one.communicate()
        hosts[1].cut_off()
        cut_s = time.monotonic()
        done = ended(ranks)
        took_s = time.monotonic() - cut_s
    assert took_s < ENDED_S
    assert [rank.code for rank in done] == [4, 4, 4], done
    for rank in done:
        assert re.match(r"rank 1 .*: its machine host2 is cut off from host1, host3(; rank|$| \()", first_line(rank)), (
            done
        )
    assert_same_training(run, alone)


def test_four_machines_train_as_one_process(tmp_path: Path) -> None:
    """Every tensor-parallel sum, every gradient and every slice of the optimizer crosses the network."""
    values = small(checkpoint={"folder": str(tmp_path / "one")})
    four = values | {
        "parallel": {"tp_degree": 2, "dp_degree": 2, "shard_optimizer": True},
        "checkpoint": {"folder": str(tmp_path / "four")},
    }
    with Hosts(4, **SLOW) as hosts:
        run, ranks = start_ranks(hosts, tmp_path, four)
        alone, one = start_alone(tmp_path, values)
        done = ended([*ranks, one])
    assert [rank.code for rank in done] == [0] * 5, done
    assert [rank.header.host.name for rank in read_side(run)] == ["host1", "host2", "host3", "host4"]
    assert_same_training(run, alone)
    assert_close(whole_state(tmp_path / "four" / name_of(STEPS)), whole_state(tmp_path / "one" / name_of(STEPS)), 1e-5)


def assert_same_training(run: Path, alone: Path) -> None:
    """The losses and gradient norms of the first steps are those of one process."""
    found, one = ([(line.loss, line.grad_norm) for line in progress(folder)[:STEPS]] for folder in (run, alone))
    assert len(one) == STEPS
    np.testing.assert_allclose(np.array(found, float), np.array(one, float), rtol=1e-5)


def progress(run: Path) -> list[ProgressLine]:
    return [ProgressLine.model_validate_json(line) for line in RunFolder(run).progress.read_text().splitlines()]


def test_plain_torchrun_ends_on_both_sides_when_a_machine_loses_network_and_disk(tmp_path: Path) -> None:
    """No packet comes through and nobody is told; on the second machine the ranks' files are gone as well."""
    run = tmp_path / "run"
    values: Any = small(parallel={"pp_degree": 2}, workload={"steps": 10**6}, faults={"hang_limit_s": LIMIT_S})
    file = write_json(tmp_path / "file.json", values)
    with Hosts(2, **SLOW) as hosts:
        nodes = start_nodes(hosts, tmp_path, file, run, ranks_per_node=1)
        _wait_for_steps(run, 3, nodes)
        hosts[1].run(["mount", "-t", "tmpfs", "tmpfs", run / "status"])
        hosts[1].cut_off()
        cut_s = time.monotonic()
        done = ended(nodes)
        took_s = time.monotonic() - cut_s
    assert took_s < ENDED_S
    assert all(node.code for node in done), done
    assert re.match(r"rank \d .*: (its machine host2 is|.* machine host2) cut off", first_line(done[0])), done
    assert re.match(
        rf"rank (\d) .*, step \d+, .*: waits in \S+ for rank \d for \d\.\d s, and {run} does not answer; this machine, "
        r"host2, is cut off: it does not reach host1:\d+, where the ranks met$", first_line(done[1]),
    ), done  # fmt: skip


def first_line(done: Done) -> str:
    """What the ranks of a machine say first; torch's own libraries warn before."""
    return next(line for line in done.err.splitlines() if line.startswith("hybrid_runtime: ")).partition(": ")[2]


def start_nodes(hosts: Hosts, folder: Path, file: Path, run: Path, ranks_per_node: int) -> list[subprocess.Popen[str]]:
    """torchrun on two hosts, by the launch file."""
    return [
        hosts[number].start(
            [ROOT / "launch/several_machines.sh", file, "--run-folder", run, "--quiet"],
            folder=folder,
            env=settings(
                NNODES="2", NPROC_PER_NODE=str(ranks_per_node), RDZV_ENDPOINT="host1:29500", NODE_RANK=str(number),
            ),
        )
        for number in (0, 1)
    ]  # fmt: skip


def start_ranks(
    hosts: Hosts, folder: Path, values: dict[str, Any], run: Path | None = None
) -> tuple[Path, list[subprocess.Popen[str]]]:
    """One rank on each host, told of each other as torchrun would; it and the launcher are tested elsewhere."""
    file, run = write_json(folder / "file.json", values), run or folder / "run"
    job = [sys.executable, "-m", "hybrid_runtime.job", file, "--run-folder", run, "--quiet"]
    world = {"WORLD_SIZE": str(len(hosts)), "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    met = {"MASTER_ADDR": "host1", "MASTER_PORT": "29500"}
    numbers = range(len(hosts))
    return run, [hosts[k].start(job, folder=folder, env=settings(RANK=str(k), **world, **met)) for k in numbers]


def start_alone(folder: Path, values: dict[str, Any]) -> tuple[Path, subprocess.Popen[str]]:
    """The same training in one process, on this machine."""
    file, run = write_json(folder / "alone.json", values), folder / "alone"
    job = [sys.executable, "-m", "hybrid_runtime.job", file, "--run-folder", run, "--quiet"]
    return run, subprocess.Popen(
        list(map(str, job)), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _wait_for_steps(run: Path, steps: int, ranks: list[subprocess.Popen[str]]) -> None:
    deadline_s = time.monotonic() + 60
    progress = RunFolder(run).progress
    while not progress.exists() or len(progress.read_text().splitlines()) < steps:
        assert time.monotonic() < deadline_s
        assert all(rank.poll() is None for rank in ranks), [rank.communicate() for rank in ranks]
        time.sleep(0.05)
