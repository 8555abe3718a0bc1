"""What replicas take to sum gradients and to update what they share, and how much of it the pipeline's tail hides.

    rank   ... 3W2 3W3 | 0W2 0W3 |          0W3 is the last backward of stage 0: its sum begins there, behind the others
    sums               | stage 3 ---|- stage 0 ----|
                                 ends ^-- exposed --^ norm | update 1 | update 2 ...
                                                           | gather 1 | gather 2 ... -|     where the update is shared

A sum that runs beside compute takes longer, and so does the compute (`StepModel.overlap`); that a slower tail also
holds up other ranks is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from math import ceil

from hybrid_runtime.planner.layout import Layout, Setting, dp_crosses_nodes
from hybrid_runtime.planner.staged import Staged
from hybrid_runtime.planner.step_model import Collective, StepModel
from hybrid_runtime.schedule.actions import Kind
from hybrid_runtime.schedule.replay import Replay

BUCKET_BYTES = 25 * 2**20  # of gradients that are summed over replicas at once (data_parallel/buckets.py)
UPDATE_PARTS = 4  # of a shared update: while one is gathered, the next is made (training/adamw.py)
_GRADIENTS = (Kind.B, Kind.I, Kind.W, Kind.EB)


def norm_sum_ns(layout: Layout, setting: Setting, model: StepModel) -> int:
    """The gradient's norm, one number summed over all ranks of a replica; over replicas too, if each knows a part."""
    ranks, replicas = layout.mesh.tp_degree * layout.mesh.pp_degree, layout.mesh.dp_degree
    inside = 0
    if ranks > 1:
        inside = model.collective_ns("all_reduce", ranks, 8, same_host=ranks <= setting.devices_per_node)
    if replicas == 1 or not layout.shard_optimizer:
        return inside
    return inside + model.collective_ns("all_reduce", replicas, 8, same_host=not dp_crosses_nodes(layout, setting))


def sum_ns(parameters: int, layout: Layout, setting: Setting, model: StepModel) -> int:
    """Gradients of so many parameters summed over replicas, bucket by bucket; of each replica's part, if they share."""
    kind: Collective = "reduce_scatter" if layout.shard_optimizer else "all_reduce"
    return _buckets_ns(kind, parameters * model.state.gradient, layout, setting, model)


def gather_ns(parameters: int, layout: Layout, setting: Setting, model: StepModel) -> int:
    """What replicas that share an update take, after it, to have all parameters: what their updates do not hide."""
    if not layout.shard_optimizer:
        return 0
    num_bytes = parameters * model.state.parameter
    whole = _buckets_ns("all_gather", num_bytes, layout, setting, model)
    parts = min(UPDATE_PARTS, max(1, -(-parameters * model.state.gradient // BUCKET_BYTES)))
    update = update_ns(parameters, layout, model)
    return max(update + whole // parts, update // parts + whole) - update


def _buckets_ns(kind: Collective, num_bytes: int, layout: Layout, setting: Setting, model: StepModel) -> int:
    replicas = layout.mesh.dp_degree
    if replicas == 1 or num_bytes == 0:
        return 0
    full, rest = divmod(num_bytes, BUCKET_BYTES)
    same_host = not dp_crosses_nodes(layout, setting)
    whole = model.collective_ns(kind, replicas, BUCKET_BYTES, same_host=same_host) if full else 0
    return full * whole + (model.collective_ns(kind, replicas, rest, same_host=same_host) if rest else 0)


def update_ns(parameters: int, layout: Layout, model: StepModel) -> int:
    """Clearing, norm, clipping and update of a rank's parameters, or of its part of them.

    Gradients are cleared whole, but a source of costs says one figure for all four: of a part, that is a tenth too low.
    """
    return model.optimizer_ns(ceil(Fraction(parameters, layout.mesh.dp_degree if layout.shard_optimizer else 1)))


def least_after_ns(parameters: int, layout: Layout, setting: Setting, model: StepModel) -> int:
    """What follows the pipeline at least, on a rank whose stages have equally many parameters: the last one's sum.

    With several stages on a rank an estimate: the last one may be the lightest.
    """
    per_rank = len(layout.stage_to_rank) // layout.mesh.pp_degree
    after = gather_ns(parameters, layout, setting, model) + update_ns(parameters, layout, model)
    return after + sum_ns(parameters // per_rank, layout, setting, model)


def summed_ns(
    staged: Staged, step: Replay, rank: int, parameters: int, setting: Setting, model: StepModel
) -> tuple[int, int]:
    """When a rank's last action ends, and when all its gradients are summed, from the step's begin on.

    Args:
        parameters: of the rank, rows of a sharded embedding included.
    """
    row = step.rows.row(rank)
    ends = int(step.time(step.ends[row[-1]])) if row else 0
    if staged.layout.mesh.dp_degree == 1:
        return ends, ends
    slowed, free = 0, 0
    tail = model.overlap
    for done, count in _sums(staged, step, rank, parameters):
        alone = sum_ns(count, staged.layout, setting, model)
        begin = max(done, free)
        hidden = min(alone, int(max(0, ends - begin) / tail.collective))
        stop = begin + int(hidden * tail.collective)
        slowed += int((tail.compute - 1) * _busy_ns(step, rank, begin, stop))
        free = stop + alone - hidden
    return ends, max(ends, free) + slowed


def _sums(staged: Staged, step: Replay, rank: int, parameters: int) -> Iterator[tuple[int, int]]:
    """When the gradients of each of a rank's stages are there, and of how many parameters, in this order; a tied weight
    is summed over its ranks first, after everything else.
    """
    stages = [stage for stage, owner in enumerate(staged.stage_to_rank) if owner == rank]
    counts = {stage: staged.works[stage].parameters for stage in stages}
    tied = staged.tied_parameters if rank == staged.stage_to_rank[-1] else 0
    counts[stages[0]] += parameters - sum(counts.values()) - tied  # rows
    done: dict[int, int] = {}
    row = step.rows.row(rank)
    for index in reversed(row):
        action = step.rows.actions[index]
        if action.kind in _GRADIENTS and action.stage not in done:
            done[action.stage] = int(step.time(step.ends[index]))
            if len(done) == len(stages):
                break
    yield from sorted((done[stage], counts[stage]) for stage in done)
    if tied:
        yield int(step.time(step.ends[row[-1]])), tied


def _busy_ns(step: Replay, rank: int, begin_ns: int, stop_ns: int) -> int:
    """How long a rank computes between two times."""
    begin, stop = Fraction(begin_ns) / step.tick, Fraction(stop_ns) / step.tick
    busy = Fraction(0)
    for index in reversed(step.rows.row(rank)):
        if step.ends[index] <= begin:
            break
        first, last = max(begin, Fraction(step.starts[index])), min(stop, Fraction(step.ends[index]))
        busy += max(Fraction(0), last - first)
    return int(busy * step.tick)


def exposed_ns(
    staged: Staged, step: Replay, parameters: Sequence[int], setting: Setting, model: StepModel
) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Of every pipeline rank what its sums and gathers take beyond its own actions, and its update; and the time from
    the step's begin until all are done.

    Args:
        parameters: of every pipeline rank.
    """
    layout = staged.layout
    norm = norm_sum_ns(layout, setting, model)
    ends = [summed_ns(staged, step, rank, count, setting, model) for rank, count in enumerate(parameters)]
    gathers = [gather_ns(count, layout, setting, model) for count in parameters]
    updates = tuple(update_ns(count, layout, model) for count in parameters)
    last = max(summed for _, summed in ends) + norm + max(map(sum, zip(gathers, updates)))
    exposed = tuple(summed - end + norm + gather for (end, summed), gather in zip(ends, gathers))
    return exposed, updates, last
