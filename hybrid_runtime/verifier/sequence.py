"""Whether the steps of a side can be those of one run, and are judged as its deployment says: order in time, warm-up.

Ranks meet in a barrier before every step and are done with a step before they enter the next barrier, so on the common
clock

    step 7   rank 0 |--------|              every start of step 8 lies behind every end of step 7
             rank 1   |--------|            whoever swaps in a rank of another run, reorders steps and numbers them
    step 8   rank 0              |------    anew, or moves a clock breaks this

The measured window is fixed before the data: warm-up first, in each block a few unjudged steps first, nothing left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, pairwise

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.errors import RecordsError
from hybrid_runtime.records import PLANTED, RankRecords, StepRecord

SLACK_NS = 1_000_000  # ranks of one host read one clock
HOSTS_SLACK_NS = 1_000_000_000  # clocks of hosts are compared once and may drift apart; another run is seconds away


def check_sequence(ranks: Sequence[RankRecords], deployment: Deployment) -> None:
    """Refuses records that no honest run of this deployment leaves.

    Raises:
        RecordsError: steps of the ranks are not one after another in time, or the judged steps are not those that the
            deployment's warm-up and settling leave.
    """
    _check_time(ranks)
    _check_window(ranks[0], deployment)


def _check_time(ranks: Sequence[RankRecords]) -> None:
    """Host by host closely, over all hosts with room for clocks that drift apart after they were compared."""
    hosts = {rank.header.host.name for rank in ranks}
    for host in hosts:
        _check_order([rank for rank in ranks if rank.header.host.name == host], SLACK_NS)
    if len(hosts) > 1:
        _check_order(ranks, HOSTS_SLACK_NS)


def _check_order(ranks: Sequence[RankRecords], slack_ns: int) -> None:
    ends: list[tuple[int, str]] = []
    for row in zip(*(rank.steps for rank in ranks), strict=True):
        steps = [(step, rank.header.clock_offset_ns, rank.path.name) for step, rank in zip(row, ranks, strict=True)]
        start_ns, starting = min((step.start_ns + offset_ns, name) for step, offset_ns, name in steps)
        if ends and start_ns + slack_ns < max(ends)[0]:
            raise RecordsError(
                f"{ranks[0].path.parent}: step {row[0].step} begins in {starting} before step {row[0].step - 1} ends "
                f"in {max(ends)[1]}; the files are of different runs, or were edited"
            )
        ends = [(step.end_ns + offset_ns, name) for step, offset_ns, name in steps]


def _check_window(rank: RankRecords, deployment: Deployment) -> None:
    path, steps = rank.path, [step for step in rank.steps if step.purpose != PLANTED]
    measurement = deployment.measurement
    left = _steps_left(rank, deployment)
    if rank.header.trained_before and len(steps) > left:
        raise RecordsError(f"{path}: {len(steps)} steps, but {left} were left to train; the file was edited")
    asked = min(measurement.warmup_steps, left)
    unjudged = next((index for index, step in enumerate(steps) if step.phase == "measure"), len(steps))
    if unjudged < asked:
        raise RecordsError(
            f"{path}: {unjudged} steps of warm-up, but the deployment says {asked}; warm-up must not be judged, "
            "the file was edited"
        )
    first_judged = steps[unjudged].block if unjudged < len(steps) else None
    grouped = groupby(steps, key=lambda step: step.block)
    blocks = [list(block) for number, block in grouped if first_judged is not None and number >= first_judged]
    for block in blocks:
        _check_block(str(path), block, measurement.settle_steps)
    for purpose in {step.purpose for step in steps}:
        sizes = {sum(step.phase == "measure" for step in block) for block in blocks if block[0].purpose == purpose}
        if len(sizes) > 1 and not _is_cut_short(blocks, purpose):
            raise RecordsError(f"{path}: blocks of {sorted(sizes)} judged steps; steps were left out, or put in")


def _steps_left(rank: RankRecords, deployment: Deployment) -> int:
    """What the checkpoint that the run resumed, if it did, had left of the deployment's steps."""
    before, steps = rank.header.trained_before, deployment.workload.steps
    if not 0 <= before < steps:
        raise RecordsError(f"{rank.path}: resumed after {before} of {steps} steps, which cannot be; it was edited")
    return steps - before


def _check_block(path: str, block: list[StepRecord], settle_steps: int) -> None:
    judged = [step.phase == "measure" for step in block]
    before = judged.index(True) if any(judged) else len(judged)
    wrong = any(first and not second for first, second in pairwise(judged))
    if wrong or before > settle_steps:
        raise RecordsError(
            f"{path}: block {block[0].block} leaves out steps that must be judged (its first {settle_steps} may be "
            "left out); the file was edited"
        )


def _is_cut_short(blocks: list[list[StepRecord]], purpose: str) -> bool:
    """Only the last block of a purpose is smaller than the others, which are alike."""
    sizes = [len(block) for block in blocks if block[0].purpose == purpose]
    return len(set(sizes[:-1])) == 1 and sizes[-1] < sizes[0]
