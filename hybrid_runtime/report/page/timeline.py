"""Chosen steps, rank by rank: a box per action, phase and wait; what is left of the step's window is bubble.

rank 0 | FFFFF FFFFF ////// BBBBB ~~~ //// opt |       ~ communication that nothing hides, / bubble
rank 1 | ///// FFFFF BBBBBB ~~~ FFFFF //// opt |
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from hybrid_runtime.records import DATA, OPTIMIZER, REDUCE_GRAD, RankRecords, StepRecord
from hybrid_runtime.report.cells import duration_text, printable, ranges_text
from hybrid_runtime.report.page.figure import HATCHED, Figure, Trace, View, plot_text, rows_layout
from hybrid_runtime.report.run_data import Run, Window, chosen_steps, windows
from hybrid_runtime.report.schedule_grid import WORDS
from hybrid_runtime.schedule.actions import Kind, is_action, parse_action

MOST_BOXES = 4000  # of one view: a browser draws them at once
BUBBLE, RECEIVE, COMMUNICATION, HOST = "bubble", "waiting for another stage", "exposed communication", "host, data"
_KINDS = WORDS | {Kind.P: "prefill", Kind.D: "decode"}
COLOUR_OF = {words: words.replace(" ", "-") for words in _KINDS.values()} | {
    "optimizer": "optimizer",
    COMMUNICATION: "communication",
    HOST: "host",
    RECEIVE: "muted",
    BUBBLE: "bubble",
}
_NARROW = (RECEIVE,)
_OUTLINED = 300
_OF_PHASE = {OPTIMIZER: "optimizer", REDUCE_GRAD: COMMUNICATION, DATA: HOST}


class Box(NamedTuple):
    """One box; times in ns."""

    kind: str
    row: int
    start_ns: int
    end_ns: int
    name: str


def timeline(run: Run) -> Figure | None:
    """The timeline of the median, slowest, fastest and first measured step."""
    chosen = chosen_steps(run.ranks)
    spans = {one.step: one for one in windows(run.ranks)}
    views, notes = [], []
    for step, words in chosen.items():
        ranks, left_out = shown_ranks(run.ranks, step)
        label = f"step {step}: {words}, {duration_text(spans[step].duration_ns / 1e9)}"
        views.append(_view(ranks, spans[step], label))
        notes = [left_out] if left_out else []
    if not views:
        return None
    notes.append("Hatched: no work of this rank (bubble). trace.json has these steps, and the last ones, of all ranks.")
    return Figure("timeline", "Timeline of chosen steps", views, notes, zoom=True)


def shown_ranks(
    ranks: Sequence[RankRecords], step: int, most_boxes: int | None = None
) -> tuple[list[RankRecords], str]:
    """The ranks whose boxes are few enough to draw, and in words which those are if not all."""
    most = MOST_BOXES if most_boxes is None else most_boxes
    alike = [rank for rank in ranks if (rank.header.tp, rank.header.dp) == (0, 0)]
    for some in (list(ranks), alike):
        if sum(_num_boxes(rank.steps[step]) for rank in some) <= most:
            break
    while len(some) > 1 and sum(_num_boxes(rank.steps[step]) for rank in some) > most:
        some = some[: len(some) // 2]
    if len(some) == len(ranks):
        return some, ""
    shown = ranges_text([rank.header.rank for rank in some])
    return some, f"Shown are ranks {shown} of {len(ranks)}, as many as a browser draws at once."


def _num_boxes(step: StepRecord) -> int:
    return len(step.spans) + len(step.waits)


def rank_label(rank: RankRecords) -> str:
    """ "rank 3 · stage 1" """
    stages = "stage" if len(rank.header.stages) == 1 else "stages"
    return f"rank {rank.header.rank} · {stages} {ranges_text(rank.header.stages)}"


def _view(ranks: Sequence[RankRecords], window: Window, label: str) -> View:
    boxes = [box for row, rank in enumerate(ranks) for box in rank_boxes(rank, window, row)]
    layout = rows_layout([rank_label(rank) for rank in ranks], "ms after the step's start", row_px=34)
    layout |= {"barmode": "overlay", "hovermode": "closest"}
    layout["xaxis"] |= {"range": [0, window.duration_ns / 1e6], "showgrid": False}
    return View(box_traces(boxes, window.start_ns), layout, label)


def rank_boxes(rank: RankRecords, window: Window, row: int) -> Iterator[Box]:
    """A rank's boxes of a step, on the clock of all hosts; later boxes lie on earlier ones."""
    step, offset_ns = rank.steps[window.step], rank.header.clock_offset_ns
    yield Box(BUBBLE, row, window.start_ns, window.end_ns, "no work of this rank")
    for span in step.spans:
        yield Box(_kind(span.name), row, span.start_ns + offset_ns, span.end_ns + offset_ns, span.name)
    for wait in step.waits:
        kind = RECEIVE if is_action(wait.name) else COMMUNICATION
        yield Box(kind, row, wait.start_ns + offset_ns, wait.end_ns + offset_ns, wait.name)


def _kind(name: str) -> str:
    if name in _OF_PHASE:
        return _OF_PHASE[name]
    return _KINDS.get(parse_action(name).kind, HOST) if is_action(name) else HOST


def box_traces(boxes: Sequence[Box], base_ns: int, pale: Sequence[int] = ()) -> list[Trace]:
    """A bar trace per kind of box; times in ms after `base_ns`, to the microsecond.

    Args:
        pale: rows that are drawn paler, for they are modelled.
    """
    of_kind: dict[str, list[Box]] = defaultdict(list)
    for box in boxes:
        of_kind[box.kind].append(box)
    order = [BUBBLE, *(kind for kind in COLOUR_OF if kind != BUBBLE)]
    return [_bars(kind, of_kind[kind], base_ns, pale) for kind in order if of_kind[kind]]


def _bars(kind: str, boxes: Sequence[Box], base_ns: int, pale: Sequence[int]) -> Trace:
    # Outlines part neighbours of one kind; around thousands of boxes they would be all that is seen.
    outline = {"width": 0.5 if len(boxes) <= _OUTLINED else 0, "color": "paper"}
    marker: Trace = {"color": COLOUR_OF[kind], "line": outline}
    if kind == BUBBLE:
        marker |= HATCHED
    if pale:
        marker["opacity"] = [0.6 if box.row in pale else 1 for box in boxes]
    return {
        "type": "bar",
        "orientation": "h",
        "name": printable(kind),
        "base": [_ms(box.start_ns - base_ns) for box in boxes],
        "x": [_ms(max(0, box.end_ns - box.start_ns)) for box in boxes],
        "y": [box.row for box in boxes],
        "width": 0.28 if kind in _NARROW else 0.8,
        "marker": marker,
        "hovertext": [plot_text(box.name) for box in boxes],
        "hoverinfo": "text",
        "boxes": True,  # the page's script adds start and length to the hover texts: half the size of the file's data
    }


def _ms(time_ns: int) -> float:
    return round(time_ns / 1e6, 3)
