"""The measured median step beside the replay of the same action lists with measured durations. The replay is modelled.

What the two rows of a rank differ in is what the replay does not know: collectives between replicas, the host, and
whatever made one action longer than the median of its kind.
"""

from __future__ import annotations

from collections.abc import Iterator

from hybrid_runtime.errors import PlanError, RecordsError
from hybrid_runtime.records import PHASES, RankRecords
from hybrid_runtime.report.cells import duration_text
from hybrid_runtime.report.page.figure import Figure, View, rows_layout
from hybrid_runtime.report.page.timeline import BUBBLE, MOST_BOXES, Box, box_traces, rank_boxes, rank_label, shown_ranks
from hybrid_runtime.report.run_data import Run, Window, chosen_steps, windows
from hybrid_runtime.report.schedule_grid import WORDS
from hybrid_runtime.schedule.actions import parse_actions
from hybrid_runtime.schedule.replayed import Replay


def replayed_figure(run: Run) -> Figure | None:
    """Two rows per pipeline rank, measured above replayed; None where no span was recorded or it cannot be replayed."""
    steps = chosen_steps(run.ranks)
    replay = _replay(run) if steps else None
    if replay is None or not replay.makespan:
        return None
    window = {one.step: one for one in windows(run.ranks)}[next(iter(steps))]
    pipeline = [rank for rank in run.ranks if (rank.header.tp, rank.header.dp) == (0, 0)]
    ranks, left_out = shown_ranks(pipeline, window.step, MOST_BOXES // 2)
    first_ns, last_ns = _actions_ns(ranks, window)
    words = (
        f"Step {window.step} (median), from its first action to the end of its last: "
        f"{duration_text((last_ns - first_ns) / 1e9)}. Paler, modelled: the plan's own lists replayed with the "
        f"medians of the measured durations: {duration_text(float(replay.makespan) / 1e9)}."
    )
    notes = [words, left_out] if left_out else [words]
    return Figure("replayed", "Measured against replayed", [_view(ranks, window, first_ns, replay)], notes, zoom=True)


def _replay(run: Run) -> Replay | None:
    from hybrid_runtime.planner.measured_costs import measured_costs
    from hybrid_runtime.schedule.replay import replay_step

    try:
        lists = tuple(map(parse_actions, run.plan.actions))
        return replay_step(lists, run.plan.stage_to_rank, measured_costs(run.ranks))
    except (PlanError, RecordsError, ValueError):  # an action that no measured step holds, or a plan that was edited
        return None


def _actions_ns(ranks: list[RankRecords], window: Window) -> tuple[int, int]:
    """Start of the first action of a step and end of the last."""
    times = [
        time + rank.header.clock_offset_ns
        for rank in ranks
        for span in rank.steps[window.step].spans
        if span.name not in PHASES
        for time in (span.start_ns, span.end_ns)
    ]
    return min(times, default=window.start_ns), max(times, default=window.end_ns)


def _view(ranks: list[RankRecords], window: Window, first_ns: int, replay: Replay) -> View:
    boxes: list[Box] = []
    labels: list[str] = []
    for number, rank in enumerate(ranks):
        boxes += rank_boxes(rank, window._replace(start_ns=first_ns), 2 * number)
        boxes += _replayed_boxes(replay, rank.header.pp, 2 * number + 1, first_ns)
        labels += [f"{rank_label(rank)}", "replayed"]
    layout = rows_layout(labels, "ms after the first action", row_px=24)
    end_ms = max(window.end_ns - first_ns, float(replay.makespan)) / 1e6
    layout |= {"barmode": "overlay", "hovermode": "closest"}
    layout["xaxis"] |= {"range": [0, end_ms], "showgrid": False}
    return View(box_traces(boxes, first_ns, pale=range(1, 2 * len(ranks), 2)), layout)


def _replayed_boxes(replay: Replay, pp_rank: int, row: int, first_ns: int) -> Iterator[Box]:
    """The actions of a rank and the gaps between them."""
    reached_ns = first_ns
    for timed in replay.ranks[pp_rank]:
        start_ns, end_ns = (first_ns + round(time) for time in (timed.start, timed.end))
        if start_ns > reached_ns:
            yield Box(BUBBLE, row, reached_ns, start_ns, "no work of this rank")
        yield Box(WORDS[timed.action.kind], row, start_ns, end_ns, f"{timed.action} (replayed)")
        reached_ns = end_ns
    yield Box(BUBBLE, row, reached_ns, first_ns + round(replay.makespan), "no work of this rank")
