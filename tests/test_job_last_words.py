from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from hybrid_runtime.comm.start import Launch
from hybrid_runtime.errors import EnvironmentProblem, RunError, UsageError
from hybrid_runtime.job_last_words import LastWords
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.run_folder import Failure, RunFolder, read_failures, write_failure
from hybrid_runtime.telemetry.status import StatusFile

WHERE = "rank 3 (dp 0, pp 1, tp 1), stage 1, step 7, REDUCE_GRAD"
EXECUTORS = "rank 3 (dp 0, pp 1, tp 1), stage 1, step 7, 1B5, unit 2.mlp: ValueError: x"


@pytest.fixture
def words(tmp_path: Path) -> LastWords:
    """Of rank 3, which is summing gradients in step 7."""
    folder = RunFolder(tmp_path).create()
    last_words = LastWords()
    last_words.launch, last_words.mesh = Launch(3, 1, 4, 2), Mesh(tp_degree=2, pp_degree=2)
    last_words.begin(folder)
    status = StatusFile(folder.status / "rank3", 3, [1])
    status.step(7)
    status.doing("REDUCE_GRAD")
    status.close()
    return last_words


@pytest.fixture
def _joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)


@pytest.mark.usefixtures("_joined")
@pytest.mark.parametrize(
    ("problem", "sentence", "code"),
    [
        (ValueError("too large\nC++ frames"), f"{WHERE}: ValueError: too large", 4),
        (KeyError(), f"{WHERE}: KeyError: no message", 4),
        (UsageError("token 9 has id 300"), f"{WHERE}: token 9 has id 300", 2),
        (EnvironmentProblem("no space"), f"{WHERE}: no space", 4),
        (RunError(EXECUTORS), EXECUTORS, 4),
    ],
)  # fmt: skip
def test_a_problem_in_a_step_names_rank_stage_step_and_action(
    problem: Exception, sentence: str, code: int, words: LastWords, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words.say(problem) == code
    assert capsys.readouterr().err == f"hybrid_runtime: {sentence}\n"
    assert words.folder is not None
    (failure,) = read_failures(words.folder)
    assert (failure.rank, failure.message, failure.exit_code, failure.lost_peer) == (3, sentence, code, False)
    assert type(problem).__name__ in (words.folder.failures / "rank3.traceback.txt").read_text()


@pytest.mark.usefixtures("_joined")
@pytest.mark.parametrize(
    "said",
    [
        "[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 8000ms for recv operation to complete",
        "Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE, Timeout(ms)=8000) ran for "
        "8012 milliseconds before timing out.",
    ],
)
def test_a_rank_that_hears_nothing_says_for_how_long_and_that_it_may_be_the_network(
    said: str, words: LastWords, capsys: pytest.CaptureFixture[str]
) -> None:
    inside_a_unit = RunError(EXECUTORS)
    inside_a_unit.__cause__ = RuntimeError(said)
    for problem in (RuntimeError(said), inside_a_unit):
        assert words.say(problem) == 4
        sentence = capsys.readouterr().err
        assert sentence.startswith(f"hybrid_runtime: {WHERE}: heard nothing of another rank for 8 s: it hangs, or its")
    assert "the network to it is lost (measurement.timeout_s" in sentence
    assert words.folder is not None
    assert read_failures(words.folder)[0].message in sentence
    assert said in (words.folder.failures / "rank3.traceback.txt").read_text()


@pytest.mark.usefixtures("_joined")
def test_a_lost_connection_is_said_as_a_consequence(words: LastWords, capsys: pytest.CaptureFixture[str]) -> None:
    problem = RunError("rank 3 ...: RuntimeError")
    problem.__cause__ = RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:41")
    assert words.say(problem) == 4
    said = f"{WHERE}: lost the connection to another rank, which failed or was killed before"
    assert capsys.readouterr().err == f"hybrid_runtime: {said}\n"
    assert words.folder is not None
    assert read_failures(words.folder)[0].lost_peer


def test_what_every_rank_finds_before_they_join_is_said_once_on_a_machine(
    words: LastWords, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words.say(UsageError("no such file")) == 2
    assert capsys.readouterr().err == ""
    words.launch = Launch(2, 0, 4, 2)
    assert words.say(UsageError("no such file")) == 2
    assert capsys.readouterr().err == "hybrid_runtime: no such file\n"


def test_an_earlier_attempt_is_forgotten(words: LastWords) -> None:
    words.say(ValueError("x"))
    assert words.folder is not None
    words.begin(words.folder)
    assert read_failures(words.folder) == []
    assert list(words.folder.status.iterdir()) == []


@pytest.mark.parametrize(
    ("signals", "failed", "waits"),
    [
        ([signal.SIGTERM, signal.SIGTERM], False, True),  # of the scheduler, and of torchrun
        ([signal.SIGTERM, signal.SIGINT], False, False),
        ([signal.SIGTERM], True, False),  # torchrun stops the others of a rank that failed
        ([], False, True),
    ],
)
def test_the_time_to_write_a_checkpoint_is_not_cut_short_by_the_same_signal(
    signals: list[int], failed: bool, waits: bool, words: LastWords
) -> None:
    assert words.folder is not None
    words.grace_s = 0.3 if waits else 30
    if failed:
        write_failure(words.folder, Failure(0, "why", 4, 0), "")
    read_end, write_end = os.pipe()
    os.write(write_end, bytes(signals))
    began_s = time.monotonic()
    words._leave_time(read_end)
    assert (time.monotonic() - began_s >= 0.3) is waits
    os.close(read_end)
    os.close(write_end)
