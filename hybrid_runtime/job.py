"""One rank, from deployment to records; read it top to bottom.

    torchrun --nproc-per-node 6 -m hybrid_runtime.job configs/demo.toml
    torchrun --nproc-per-node 6 -m hybrid_runtime.job configs/demo.toml --plan plan.json      as many ranks as it plans
    torchrun --nproc-per-node 6 -m hybrid_runtime.job my.toml --resume latest                 go on from a checkpoint

A rank writes down what happened and judges nothing: `hybrid-runtime verify --recheck RUN_FOLDER` does.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from datetime import timedelta
from pathlib import Path

import torch

from hybrid_runtime.checkpoint.folders import step_of
from hybrid_runtime.checkpoint.same_training import Training, training_facts
from hybrid_runtime.comm.groups import Groups
from hybrid_runtime.comm.start import (
    Launch,
    choose_device,
    launch_from_environment,
    refuse_different,
    start_distributed,
)
from hybrid_runtime.data.opening import Opened, contents_of, open_data
from hybrid_runtime.deployment import Deployment
from hybrid_runtime.errors import EnvironmentProblem, ExitCode, PlanError, RunError, UsageError
from hybrid_runtime.faults.meeting_point import meeting_point
from hybrid_runtime.inference.engine import build_engine
from hybrid_runtime.job_checkpoints import Checkpoints, choose_checkpoint, open_checkpoints
from hybrid_runtime.job_disk import refuse_too_full
from hybrid_runtime.job_export import export, prepare_export
from hybrid_runtime.job_header import describe_rank, peak_of_all, start_sampler
from hybrid_runtime.job_last_words import LastWords
from hybrid_runtime.job_loss import mean_loss
from hybrid_runtime.job_not_finite import NotFiniteGuard, is_finite
from hybrid_runtime.job_orders import Order, expected_steps, orders
from hybrid_runtime.job_out_of_memory import MemoryFacts
from hybrid_runtime.job_parts import Parts, assemble, build, join_mesh
from hybrid_runtime.job_planted import run_planted_step, with_work
from hybrid_runtime.job_progress import RankNumbers, RankProgress, rank_numbers, step_terms
from hybrid_runtime.job_serving import Rounds, serve
from hybrid_runtime.job_shared_folder import first_blind_rank
from hybrid_runtime.job_validation import Validation, open_validation
from hybrid_runtime.job_watch import Watch
from hybrid_runtime.models.build import model_costs, model_units
from hybrid_runtime.models.unit import UnitSpec, refuse_unpackable
from hybrid_runtime.plan import Plan
from hybrid_runtime.planner.given import adopted, deployment_and_plan
from hybrid_runtime.planner.make import make_plan
from hybrid_runtime.records import BETWEEN_STEPS, CHECKPOINT, DATA, EXPORT, OPTIMIZER, REDUCE_GRAD
from hybrid_runtime.report.exports import Exports, open_exports
from hybrid_runtime.run_folder import RunFolder, new_run_folder, write_whole
from hybrid_runtime.serving.load import traffic_of
from hybrid_runtime.telemetry.host import settle
from hybrid_runtime.telemetry.recorder import Recorder
from hybrid_runtime.turns import CANDIDATE, Turns


def run_rank(
    deployment: Deployment,
    folder: RunFolder,
    launch: Launch,
    turns: Turns | None,
    progress: RankProgress,
    last_words: LastWords,
    given: Plan | None = None,
    resumed: Path | None = None,
) -> None:
    """Everything one rank does.

    Args:
        given: the plan it follows, for which the deployment was resolved.
        resumed: the checkpoint from which the training goes on.
    """
    device, backend = choose_device(deployment.hardware, launch)
    threads = deployment.hardware.threads_per_rank
    host = settle(launch.local_rank, launch.local_world_size, threads, pin=device.type == "cpu")
    torch.set_num_threads(threads)
    timeout = timedelta(seconds=deployment.measurement.timeout_s)
    specs = model_units(deployment.model, deployment.shape)
    costs = model_costs(deployment, specs)
    plan = make_plan(deployment, costs) if given is None else adopted(given, costs, f"--plan {given.name}")
    last_words.memory = MemoryFacts(plan, launch.rank, device)
    data = _open_data(deployment, plan, specs) if not deployment.serves else None
    traffic = traffic_of(deployment) if deployment.serves and launch.rank == 0 else None
    _demand_room(folder, plan, deployment, launch)
    exported = None
    if data is not None and turns is None:
        exported = prepare_export(
            deployment, launch.rank, training_facts(deployment, contents_of(data.training)), resumed
        )
    start_distributed(launch, backend, device, timeout)
    refuse_different(deployment.fingerprint, launch)
    groups = join_mesh(plan, specs, device=device, backend=backend, timeout=timeout)
    _demand_one_of_each(plan, data, folder, launch, groups)
    if launch.rank == 0:
        write_whole(folder.plan, plan.to_json())
        write_whole(folder.deployment, deployment.canonical_json())
    with ExitStack() as stack:
        built = build(deployment, plan, specs, groups, weights=resumed is None)
        last_words.memory.ledger = built.ledger
        checkpoints = Checkpoints()
        if data is not None:
            training = Training(deployment, plan, specs, groups, contents_of(data.training))
            checkpoints = open_checkpoints(training, built, resumed, last_words, writing=turns is None)
        header = describe_rank(deployment, plan, built.units, groups, host, folder, checkpoints, traffic)
        progress.begin(step_terms(deployment, plan, peak_of_all(header, groups)))
        stack.enter_context(start_sampler(folder.records, header, launch, groups))
        records = folder.records / f"rank{launch.rank}.jsonl"
        recorder = stack.enter_context(closing(Recorder(header, records, device, groups.clocks, built.ledger)))
        assert recorder.status is not None
        limit_s, offset_ns, met = deployment.faults.hang_limit_s, header.clock_offset_ns, meeting_point(os.environ)
        stack.enter_context(Watch(folder, plan, launch.rank, recorder.status, offset_ns, limit_s, met))
        if data is None:
            engine = build_engine(deployment, plan, built.units, groups, recorder, built.ledger)
            rounds = stack.enter_context(Rounds(deployment, engine, groups, recorder, folder, traffic))
            serve(rounds, turns, progress)
        else:
            parts = assemble(deployment, plan, groups, built, data.training, recorder, checkpoints)
            validation = open_validation(deployment, parts, built, data.validation) if turns is None else None
            train(deployment, parts, validation, NotFiniteGuard(deployment.faults, built, folder), turns, progress)
        recorder.finish()
        if exported is not None:
            recorder.note(EXPORT)
            export(exported, deployment, built.units, groups, built.update)
        groups.barrier()


def train(
    deployment: Deployment,
    parts: Parts,
    validation: Validation | None,
    guard: NotFiniteGuard,
    turns: Turns | None,
    progress: RankProgress,
) -> None:
    """All steps of a rank that does not serve (`job_serving.serve`), and whatever is done between them."""
    groups, recorder, checkpoints = parts.groups, parts.recorder, parts.checkpoints
    for order, work in with_work(orders(deployment, turns, groups, checkpoints.trained_before), groups.device):
        guard.begin_step()
        loss, numbers = run_planted_step(groups, recorder, work, order) if work else run_step(parts, order)
        validation_loss = None if validation is None else validation.after_step(order.trained + 1, numbers)
        progress.show(order, loss, numbers, validation_loss)
        guard.after_step(parts, order, loss, numbers)
        recorder.note(CHECKPOINT)
        checkpoints.after_step(order.trained + 1, numbers)
        recorder.note(BETWEEN_STEPS)
    recorder.note(CHECKPOINT)
    checkpoints.finish()


def _demand_room(folder: RunFolder, plan: Plan, deployment: Deployment, launch: Launch) -> None:
    """The records of the first steps fit on the disk, or nothing begins; whether all will is only said."""
    warning = refuse_too_full(folder, plan, deployment.workload.steps)
    if warning and launch.rank == 0:
        print(f"hybrid_runtime: {warning}", file=sys.stderr, flush=True)


def _demand_one_of_each(plan: Plan, data: Opened | None, folder: RunFolder, launch: Launch, groups: Groups) -> None:
    _demand_one_plan(plan, groups)
    if data is not None:
        _demand_one_data(data, groups)
    _demand_one_folder(folder, launch, groups)


def _demand_one_plan(plan: Plan, groups: Groups) -> None:
    """Every rank plans on its own; lists that differ would wait for each other forever."""
    fingerprints = groups.gather_objects(plan.fingerprint)
    other = next((rank for rank, found in enumerate(fingerprints) if found != fingerprints[0]), None)
    if other is not None:
        raise RunError(
            f"rank {other} has another plan than rank 0 for this deployment: give all machines the same files and "
            "the same versions of this package and of numba"
        )


def _demand_one_data(data: Opened, groups: Groups) -> None:
    """Every rank opens its machine's own files; other tokens on one of them would train another model in silence."""
    contents = groups.gather_objects(data.contents)
    other = next((rank for rank, found in enumerate(contents) if found != contents[0]), None)
    if other is not None:
        raise UsageError(
            f"rank {other} has other tokens than rank 0 under the names in [data]; give all machines the same files"
        )


def _demand_one_folder(folder: RunFolder, launch: Launch, groups: Groups) -> None:
    """All ranks write their records into one folder, or nobody could ever judge them."""
    if launch.world_size == launch.local_world_size:
        return
    hosts = groups.gather_objects(socket.gethostname())
    blind = first_blind_rank(folder.path, groups)
    if blind is not None:
        raise EnvironmentProblem(
            f"{folder.path}: rank {blind} on {hosts[blind]} does not see what rank 0 on {hosts[0]} writes there; name "
            "a --run-folder on a disk that all machines share"
        )


def run_step(parts: Parts, order: Order) -> tuple[float | None, list[RankNumbers]]:
    """One step: forward and backward of every microbatch, gradients summed, parameters updated, times written down.

    Returns:
        The mean loss over the targets of the global batch, and every rank's numbers (`job_progress.RankNumbers`).
    """
    groups, recorder, update, checkpoints = parts.groups, parts.recorder, parts.update, parts.checkpoints
    groups.barrier()
    order.begin(recorder)
    norm, skipped = None, False
    with recorder.span(DATA):
        microbatches = parts.batches.microbatches(order.trained)
        num_targets = parts.batches.num_targets(order.trained)
    if update is not None:
        with recorder.span(OPTIMIZER):
            update.buckets.zero()
    loss_sum = parts.executor.run_step(microbatches, order.step, loss_scale=1.0 / num_targets)
    if update is not None:
        with recorder.span(REDUCE_GRAD):
            update.sum_gradients()
        with recorder.span(OPTIMIZER):
            norm = update.gradient_norm()
            with groups.clocks.watching("norm", "device"):
                skipped = not is_finite(norm)
            if not skipped:
                update.apply(order.trained, norm)
    summary = recorder.close_window()
    loss_here = [0.0, 0.0] if loss_sum is None else [1.0, loss_sum.item()]
    grad_norm = None if norm is None else norm.item()
    mine = rank_numbers(
        summary,
        recorder.memory_bytes,
        grad_norm,
        written_step=checkpoints.written_step,
        asked_to_stop=checkpoints.asked_to_stop,
    )
    everyone = groups.gather_numbers([*loss_here, *mine])
    loss = mean_loss(everyone, parts.plan, num_targets)
    recorder.note(BETWEEN_STEPS)
    recorder.end_step(
        loss=loss if loss_sum is not None else None,
        grad_norm=grad_norm,
        tokens=parts.plan.tokens_per_step,
        skipped=skipped,
    )
    return loss, [RankNumbers(*row[2:]) for row in everyone]


def _open_data(deployment: Deployment, plan: Plan, specs: Sequence[UnitSpec]) -> Opened:
    if deployment.data.pack:
        refuse_unpackable(specs)
    vocab_size = None if deployment.shape is None else deployment.shape.vocab_size
    return open_data(deployment.data, vocab_size, plan.sequence_length)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of every rank. Returns (and exits with) the documented exit codes; prints sentences, not tracebacks."""
    options = _parse(arguments)
    last_words = LastWords()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        last_words.watch_signals()
    try:
        launch = last_words.launch = launch_from_environment()
        deployment, given = deployment_and_plan(Path(options.file), options.plan)
        _refuse_wrong_world(deployment, launch)
        last_words.mesh = deployment.mesh
        folder = _run_folder(options, deployment, launch)
        last_words.begin(folder)
        resumed = _resumed(options, deployment)
        turns = None if options.turns is None else Turns(Path(options.turns), options.side)
        with _progress(options, deployment, launch, folder, resumed) as progress:
            run_rank(deployment, folder, launch, turns, progress, last_words, given, resumed)
    except (Exception, KeyboardInterrupt) as problem:
        return last_words.say(problem)
    if launch.rank == 0 and not options.launched:
        print(f"records: {folder.path}   judge them: hybrid-runtime verify --recheck {folder.path}", file=sys.stderr)
    return ExitCode.PASS


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="hybrid_runtime.job", description="One rank of a deployment; torchrun starts it."
    )
    parser.add_argument("file", help="deployment file")
    parser.add_argument("--plan", type=Path, help="plan.json to follow: degrees, stages and lists are the plan's")
    parser.add_argument("--resume", help="'latest', 'auto' (the latest if there is one) or a checkpoint to go on from")
    parser.add_argument("--run-folder", help="where to write; default: runs/<name>-<time>")
    parser.add_argument("--turns", help="folder in which candidate and baseline take turns")
    parser.add_argument("--side", default=CANDIDATE, help="its name in that folder")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--launched", action="store_true", help="started by hybrid-runtime, which shows the progress")
    return parser.parse_args(arguments)


def _refuse_wrong_world(deployment: Deployment, launch: Launch) -> None:
    if deployment.model is None or deployment.batch is None:
        missing = " and ".join(name for name in ("model", "batch") if getattr(deployment, name) is None)
        raise UsageError(f"{deployment.name}: a run needs the table(s) {missing}; `check` alone works without")
    if deployment.mesh.world_size != launch.world_size:
        raise PlanError(
            f"{deployment.mesh} needs {deployment.mesh.world_size} ranks, torchrun started {launch.world_size}; "
            f"use --nproc-per-node so that nodes x processes = {deployment.mesh.world_size}"
        )


def _resumed(options: argparse.Namespace, deployment: Deployment) -> Path | None:
    """The checkpoint to go on from, if any; a run that torchrun restarts goes on from its own newest one."""
    if options.turns is not None:
        return None
    return choose_checkpoint(deployment, options.resume, restarted=_restart() != "0")


def _progress(
    options: argparse.Namespace, deployment: Deployment, launch: Launch, folder: RunFolder, resumed: Path | None
) -> RankProgress:
    assert deployment.batch is not None
    trained = step_of(resumed) if resumed else 0
    return RankProgress(
        folder,
        rank=launch.rank,
        replicas=deployment.mesh.dp_degree,
        exports=Exports() if options.launched else _exports(deployment, launch, folder),
        side=options.side,
        steps=expected_steps(
            deployment,
            options.side,
            alternating=options.turns is not None,
            trained=trained,
        ),
        tokens_per_step=deployment.batch.global_batch_size * deployment.batch.sequence_length,
        terminal=not options.launched,
        quiet=options.quiet,
        trained_before=trained,
    )


def _exports(deployment: Deployment, launch: Launch, folder: RunFolder) -> Exports:
    """Under plain torchrun every machine's first rank tells of its machine, and rank 0 of the whole run."""
    if launch.local_rank != 0:
        return Exports()
    return open_exports(deployment, folder, first=launch.rank == 0)


def _run_folder(options: argparse.Namespace, deployment: Deployment, launch: Launch) -> RunFolder:
    """The given folder, or one that every rank derives alike: from torchrun's run id and its parent process.

    A run that torchrun has restarted writes into a folder of its own, for its records begin anew.
    """
    if options.run_folder is None and launch.world_size == 1:
        return new_run_folder(deployment.name).create()
    restart = _restart()
    if options.run_folder is not None:
        path = Path(options.run_folder)
        folder = RunFolder(path if restart == "0" else path.with_name(f"{path.name}-restart{restart}"))
    else:
        _refuse_no_folder(launch)
        folder = RunFolder(Path("runs") / _name_for_all(deployment, restart))
    folder.refuse_used()
    return folder.create()


def _restart() -> str:
    """How often torchrun has started this run again."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def _refuse_no_folder(launch: Launch) -> None:
    if launch.world_size != launch.local_world_size:
        raise UsageError("several machines need --run-folder, the same new folder on a disk that all of them share")


def _name_for_all(deployment: Deployment, restart: str) -> str:
    run_id = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return f"{deployment.name.replace(' ', '-')}-{run_id[:8]}-{os.getppid()}-{restart}"


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # a failed rank must not wait in a destructor for peers that are waiting for it
