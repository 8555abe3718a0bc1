"""One rank of `hybrid-runtime generate`, from deployment to answers; read it top to bottom.

    torchrun --nproc-per-node 2 -m hybrid_runtime.job_generate deployment.json --run-folder FOLDER --socket SOCKET

Rank 0 is asked by the command over a socket of this machine, and tells it every token (`serving/line.py`). Nothing is
recorded: how fast a deployment answers is for `run` and `verify` to say.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import torch

from hybrid_runtime.checkpoint.model_alone import load_model
from hybrid_runtime.comm.start import Launch, choose_device, launch_from_environment, start_distributed
from hybrid_runtime.deployment import Deployment
from hybrid_runtime.errors import ExitCode, UsageError
from hybrid_runtime.inference.engine import build_engine
from hybrid_runtime.job_last_words import LastWords
from hybrid_runtime.job_out_of_memory import MemoryFacts
from hybrid_runtime.job_parts import build, join_mesh
from hybrid_runtime.job_watch import Watch
from hybrid_runtime.models.build import model_costs, model_units
from hybrid_runtime.plan import Plan
from hybrid_runtime.planner.given import adopted, deployment_and_plan
from hybrid_runtime.planner.make import make_plan
from hybrid_runtime.run_folder import RunFolder
from hybrid_runtime.serving.batcher import batcher_of
from hybrid_runtime.serving.line import Answering, call
from hybrid_runtime.serving.load import Listed
from hybrid_runtime.telemetry.host import settle
from hybrid_runtime.telemetry.recorder import NullRecorder
from hybrid_runtime.telemetry.status import StatusFile


def run_rank(
    deployment: Deployment,
    folder: RunFolder,
    launch: Launch,
    socket: Path,
    checkpoint: Path | None,
    last_words: LastWords,
    given: Plan | None = None,
) -> None:
    """Everything one rank does.

    Args:
        given: the plan it follows, for which the deployment was resolved.
        socket: where the command listens to rank 0.
        checkpoint: whose weights the model gets; None for the deployment's.
    """
    device, backend = choose_device(deployment.hardware, launch)
    threads = deployment.hardware.threads_per_rank
    settle(launch.local_rank, launch.local_world_size, threads, pin=device.type == "cpu")
    torch.set_num_threads(threads)
    timeout = timedelta(seconds=deployment.measurement.timeout_s)
    specs = model_units(deployment.model, deployment.shape)
    costs = model_costs(deployment, specs)
    plan = make_plan(deployment, costs) if given is None else adopted(given, costs, f"--plan {given.name}")
    last_words.memory = MemoryFacts(plan, launch.rank, device)
    start_distributed(launch, backend, device, timeout)
    groups = join_mesh(plan, specs, device=device, backend=backend, timeout=timeout)
    stages = [stage.index for stage in plan.stages_of(groups.place.pp)]
    status = StatusFile(folder.status / f"rank{launch.rank}", launch.rank, stages)
    groups.clocks.watch = status
    with closing(NullRecorder(device, status)) as recorder:
        built = build(deployment, plan, specs, groups, weights=checkpoint is None)
        last_words.memory.ledger = built.ledger
        if checkpoint is not None:
            assert deployment.shape is not None, "only models of the Llama family are served"
            load_model(checkpoint, deployment.shape, built.units, specs)
        engine = build_engine(deployment, plan, built.units, groups, recorder, built.ledger)
        groups.barrier()  # reading weights may take any time
        with Watch(folder, plan, launch.rank, status, 0, deployment.faults.hang_limit_s):
            if launch.rank == 0:
                with closing(call(socket)) as line:
                    command = Answering(line)
                    engine.serve(Listed(command.asked()), batcher_of(deployment), command)
            else:
                engine.follow()
            groups.barrier()
        recorder.finish()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of every rank. Returns (and exits with) the documented exit codes; prints sentences, not tracebacks."""
    options = _parse(arguments)
    last_words = LastWords()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        last_words.watch_signals()
    try:
        launch = last_words.launch = launch_from_environment()
        deployment, given = deployment_and_plan(options.file, options.plan)
        if deployment.mesh.world_size != launch.world_size:
            raise UsageError(
                f"{deployment.mesh} needs {deployment.mesh.world_size} ranks, torchrun started {launch.world_size}"
            )
        last_words.mesh = deployment.mesh
        folder = RunFolder(Path(options.run_folder)).create()
        last_words.begin(folder)
        run_rank(deployment, folder, launch, options.socket, options.checkpoint, last_words, given)
    except (Exception, KeyboardInterrupt) as problem:
        return last_words.say(problem)
    return ExitCode.PASS


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="hybrid_runtime.job_generate", description="One rank that answers; `hybrid-runtime generate` starts it."
    )
    parser.add_argument("file", type=Path, help="deployment file with [load]")
    parser.add_argument("--plan", type=Path, help="plan.json to follow")
    parser.add_argument("--run-folder", required=True, help="where status and failures are written")
    parser.add_argument("--socket", type=Path, required=True, help="where the command listens")
    parser.add_argument("--checkpoint", type=Path, help="whose weights the model gets")
    parser.add_argument("--launched", action="store_true", help="started by hybrid-runtime")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # a failed rank must not wait in a destructor for peers that are waiting for it
