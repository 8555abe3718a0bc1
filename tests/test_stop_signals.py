"""Ctrl-C and SIGTERM: a command is ended in order, and nothing that it has begun outlives it."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from hybrid_runtime.errors import RunError, Stopped
from hybrid_runtime.stop_signals import signals_stop, stops_held
from tests.commands import command, small, start, wait, write_json
from tests.test_failures import assert_gone, descendants

SERVING: dict[str, Any] = {
    "parallel": {"pp_degree": 2},
    "workload": {"kind": "generate"},
    "load": {"requests": 4, "output_tokens": 4},
    "batch": {"global_batch_size": 2, "microbatch_size": 1, "sequence_length": 20_000},
}


def test_a_signal_is_no_failed_rank() -> None:
    with pytest.raises(Stopped, match=r"^stopped by SIGTERM$") as stopped, signals_stop():
        signal.raise_signal(signal.SIGTERM)
    assert not isinstance(stopped.value, RunError)


def test_the_second_signal_is_not_heard() -> None:
    """Ranks are being stopped by then."""
    done = []

    def stop_ranks() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGTERM)
            done.append("all of them")

    with pytest.raises(Stopped, match="SIGINT"), signals_stop():
        stop_ranks()
    assert done


def test_handlers_are_as_before() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with signals_stop(), stops_held():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_nohup_is_obeyed() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_stop():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_held_signal_is_heard_at_the_end() -> None:
    begun = []

    def begin() -> None:
        with stops_held():
            signal.raise_signal(signal.SIGINT)
            begun.append("and somebody knows it")

    with pytest.raises(Stopped, match="SIGINT"), signals_stop():
        begin()
    assert begun


def test_what_failed_inside_outdoes_a_held_signal() -> None:
    def begin() -> None:
        with stops_held():
            signal.raise_signal(signal.SIGINT)
            raise KeyError

    with pytest.raises(KeyError), signals_stop():
        begin()


@pytest.mark.ranks
def test_ctrl_c_while_text_is_made(tmp_path: Path) -> None:
    """Two ranks that follow a given plan, in the midst of an answer of 19,000 tokens."""
    file, plan = write_json(tmp_path / "file.json", small(**SERVING)), tmp_path / "plan.json"
    assert command("plan", file, "--analytic", "--out", plan, "-q").code == 0
    process = start("generate", file, "--plan", plan, "--prompt", "a", "--max-new-tokens", 19_000, folder=tmp_path)
    assert process.stdout is not None
    assert process.stdout.read(1)
    pids = list(descendants(process.pid))
    assert any("--plan" in words and "job_generate" in words for words in map(_words, pids))
    stopped_s = time.time()
    process.send_signal(signal.SIGINT)
    done = wait(process, 15)
    assert_gone(pids, stopped_s)
    assert done.code == 4, done
    assert done.err.splitlines()[-1] == "hybrid-runtime: stopped by SIGINT; 0 of 1 request had ended"


def _words(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
