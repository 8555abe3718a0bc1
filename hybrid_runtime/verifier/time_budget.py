"""Where the recorded steps of every pipeline rank went, by the components that a plan predicts.

    rank 0 | 0F0 | 0F1 |~~ RECV ~~| 0B0 ~~ |  | 0B1 | ~~~ REDUCE ~~|## REDUCE ##|OPT|
    rank 1 |~~~~~| 1F0 | 1B0 | ...                           | 1B5 |## REDUCE ##|OPT|
                                                                   ^ the pipeline has ended on every rank

forward, backward, weight_grad   actions, the waits inside them left out
tensor_parallel                  those waits
data_parallel                    phases that only communicate and waits inside the update, after the pipeline's end (##)
optimizer                        the update without waits
overhead                         reading data, and gaps between spans in which nobody was waited for; what a rank does
                                 itself to move messages is there too, so "messages" is 0
idle                             the rest of the step's window (~~): for others, and for messages under way

So the parts of a rank add up to the window of the step. On the clock "thread_cpu" only compute is known: the first
three and the update.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from fractions import Fraction

from hybrid_runtime.predicted import RankTime
from hybrid_runtime.records import OPTIMIZER, REDUCE_GRAD, RankRecords, StepRecord
from hybrid_runtime.schedule.actions import Kind, is_action, parse_action
from hybrid_runtime.verifier.metrics import Clock, Metrics, host_ns, union_ns

COMPONENTS = tuple(name.removesuffix("_ns") for name in RankTime.model_fields)
COMPUTE = ("forward", "backward", "weight_grad", "optimizer")

Parts = dict[str, Fraction]


def component_of(name: str) -> str | None:
    """The component that a span's compute belongs to; None for phases that are no compute."""
    if name == OPTIMIZER:
        return "optimizer"
    if not is_action(name):
        return None
    kind = parse_action(name).kind
    if kind is Kind.W:
        return "weight_grad"
    return "forward" if kind in (Kind.F, Kind.EF, Kind.P, Kind.D) else "backward"


def rank_parts(metrics: Metrics, clock: Clock) -> dict[int, Parts]:
    """Per pipeline rank, the mean of every component over the recorded steps and the rank's peers, in ns.

    Args:
        metrics: of steps that hold spans.
        clock: "wall" gives all components, "thread_cpu" those of COMPUTE.
    """
    sums: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    counts: dict[int, int] = defaultdict(int)
    for window_ns, row in zip(metrics.windows_ns, metrics.rows(), strict=True):
        ends = _pipeline_ends(row) if clock == "wall" else {}
        for rank, step in row:
            parts = _compute(step, clock)
            if clock == "wall":
                parts = _whole(parts, step, ends[rank.header.dp] - rank.header.clock_offset_ns, window_ns)
            counts[rank.header.pp] += 1
            for name, time_ns in parts.items():
                sums[rank.header.pp][name] += time_ns
    return {
        pp: {name: Fraction(time_ns, counts[pp]) for name, time_ns in parts.items()}
        for pp, parts in sorted(sums.items())
    }


def _compute(step: StepRecord, clock: Clock) -> dict[str, int]:
    parts = dict.fromkeys(COMPUTE, 0)
    for span in step.spans:
        component = component_of(span.name)
        if component is not None:
            wall_ns = span.end_ns - span.start_ns - span.wait_ns
            parts[component] += wall_ns if clock == "wall" else max(0, span.cpu_ns)
    return parts


def _whole(compute: Mapping[str, int], step: StepRecord, pipeline_end_ns: int, window_ns: int) -> dict[str, int]:
    """All components of one step on one rank; `pipeline_end_ns` is on the rank's own clock."""
    parts = {
        **compute,
        "tensor_parallel": sum(span.wait_ns for span in step.spans if is_action(span.name)),
        "messages": 0,
        "data_parallel": union_ns(_communication(step, pipeline_end_ns)),
        "overhead": host_ns(step),
    }
    return parts | {"idle": window_ns - sum(parts.values())}


def _communication(step: StepRecord, from_ns: int) -> Iterator[tuple[int, int]]:
    """When a rank only communicated after the pipeline's end: summing gradients, and waiting inside the update."""
    updates = [(span.start_ns, span.end_ns) for span in step.spans if span.name == OPTIMIZER]
    phases = [(span.start_ns, span.end_ns) for span in step.spans if span.name == REDUCE_GRAD]
    inside = [
        (wait.start_ns, wait.end_ns)
        for wait in step.waits
        if any(start <= wait.start_ns and wait.end_ns <= end for start, end in updates)
    ]
    for start, end in (*phases, *inside):
        if end > from_ns:
            yield max(start, from_ns), end


def _pipeline_ends(row: list[tuple[RankRecords, StepRecord]]) -> dict[int, int]:
    """Per replica, the end of the last action of any of its ranks, on the common clock."""
    ends: dict[int, int] = defaultdict(int)
    for rank, step in row:
        last_ns = max((span.end_ns for span in step.spans if is_action(span.name)), default=step.start_ns)
        ends[rank.header.dp] = max(ends[rank.header.dp], last_ns + rank.header.clock_offset_ns)
    return ends
