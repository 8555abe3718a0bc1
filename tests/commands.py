"""How this project's tests call the console command: in this process, where no rank starts, else as a process."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from hybrid_runtime import cli

ROOT = Path(__file__).parents[1]


class Done(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str


def command(*arguments: object) -> Done:
    """`hybrid-runtime ARGUMENTS` in this process."""
    out, err = io.StringIO(), io.StringIO()
    code: object = "main() returned, but it must always exit"
    with (
        patch.object(sys, "argv", ["hybrid-runtime", *map(str, arguments)]),
        patch.dict(os.environ, {"COLUMNS": "200"}),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int), code
    return Done(code, out.getvalue(), err.getvalue())


def start(*arguments: object, folder: Path, **more: str) -> subprocess.Popen[str]:
    """`hybrid-runtime ARGUMENTS` as a process of its own in `folder`, where the test modules can be imported."""
    return subprocess.Popen(
        [sys.executable, "-m", "hybrid_runtime", *map(str, arguments)],
        cwd=folder,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait(process: subprocess.Popen[str], timeout_s: float = 90) -> Done:
    """Waits for a started command; one that does not end is killed and fails the test."""
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.terminate()
        out, err = process.communicate(timeout=30)
        raise AssertionError(f"still running after {timeout_s} s:\n{out}\n{err}") from None
    return Done(process.returncode, out, err)


def run(*arguments: object, folder: Path, **more: str) -> Done:
    """`start` and `wait`."""
    return wait(start(*arguments, folder=folder, **more))


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def environment(**more: str) -> dict[str, str]:
    """Of a process that a test starts: one thread, and this repository's packages importable."""
    one_thread = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "COLUMNS": "200"}
    return dict(os.environ) | one_thread | {"PYTHONPATH": str(ROOT)} | more


def small(**tables: Mapping[str, Any] | None) -> dict[str, Any]:
    """A deployment of one CPU rank that trains a few steps in well under a second; `tables` are merged over it."""
    values: dict[str, Any] = {
        "name": "small",
        "model": {"preset": "tiny", "hidden_size": 32, "num_layers": 2, "num_heads": 2, "ffn_size": 32},
        "parallel": {},
        "batch": {"global_batch_size": 4, "microbatch_size": 1, "sequence_length": 16},
        "workload": {"steps": 6},
        "hardware": {"device": "cpu", "oversubscribe": True},
        "measurement": {
            "warmup_steps": 4,
            "batch_steps": 1,
            "block_steps": 2,
            "settle_steps": 0,
            "blocks": 2,
            "looks": 1,
            "self_test": False,
        },
    }
    for name, table in tables.items():
        if table is None:
            del values[name]
        else:
            values[name] = values.get(name, {}) | table
    return values


def write_json(path: Path, values: object) -> Path:
    path.write_text(json.dumps(values))
    return path
