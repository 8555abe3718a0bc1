"""Two machines, played by two torchrun agents on loopback, one rank each: stage 0 on one, stage 1 on the other.

Machines with a network between them are in test_hosts.py.
"""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from tests.commands import Done, command, small, start, wait, write_json

pytestmark = pytest.mark.ranks


def free_endpoint() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def both(one: subprocess.Popen[str], other: subprocess.Popen[str]) -> tuple[Done, Done]:
    """Waits for both; whatever happens, none is left."""
    try:
        return wait(one), wait(other)
    finally:
        for process in (one, other):
            process.kill()


def file_in(folder: Path) -> Path:
    targets = {"compute_balance_pp": 99, "compute_balance_metric": "work_share_range"}
    return write_json(folder / "file.json", small(parallel={"pp_degree": 2}, targets=targets))


def test_several_machines_by_the_command(tmp_path: Path) -> None:
    file, endpoint, run = file_in(tmp_path), free_endpoint(), tmp_path / "run"
    first, second = (
        start(
            "run", file, "--run-folder", run, "--nodes", 2, "--node-rank", node_rank, "--rdzv-endpoint", endpoint,
            folder=tmp_path,
        )
        for node_rank in (0, 1)
    )  # fmt: skip
    judging, other = both(first, second)
    assert (judging.code, other.code) == (0, 0), (judging, other)
    assert "PASS: small: " in judging.out
    assert "candidate step 6/6" in judging.err
    assert (
        other.out == f"hybrid-runtime: this machine's ranks are done; the first machine judges the records in {run}\n"
    )
    assert other.err == ""
    assert {"log.txt", "log.node1.txt", "verdict.json", "report.md", "trace.json"} <= set(os.listdir(run))
    assert command("verify", "--recheck", run).code == 0


def test_machines_with_different_files_do_not_run(tmp_path: Path) -> None:
    values, endpoint = small(parallel={"pp_degree": 2}), free_endpoint()
    first, second = (
        start(
            "run", write_json(tmp_path / f"{seed}.json", values | {"workload": {"steps": 6, "seed": seed}}),
            "--run-folder", tmp_path / f"run{seed}",  # a machine of its own would not see the other's folder either
            "--nodes", 2, "--node-rank", seed, "--rdzv-endpoint", endpoint, folder=tmp_path,
        )
        for seed in (0, 1)
    )  # fmt: skip
    done = both(first, second)
    assert [node.code for node in done] == [2, 2], done
    for node in done:
        assert "the machine of rank 1 was given another deployment than that of rank 0; give every machine" in node.err
        assert "Traceback" not in node.err
