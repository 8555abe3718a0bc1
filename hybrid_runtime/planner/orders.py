"""The order in which a layout's ranks do their actions: a schedule's own, or one that is searched for its costs."""

from __future__ import annotations

import math
from collections.abc import Callable

from hybrid_runtime.planner.layout import Layout, Setting
from hybrid_runtime.planner.rows import water_level
from hybrid_runtime.planner.stage_costs import step_costs
from hybrid_runtime.planner.staged import Staged, embedding_parameters, stage, state_of, weigh
from hybrid_runtime.planner.step_model import StepModel
from hybrid_runtime.schedule.registry import generate
from hybrid_runtime.schedule.rows import Rows, to_rows

# Actions replayed in a round of annealing, all searched layouts of a plan together: some twenty seconds in all.
MOST_REPLAYED = 250_000_000


def known_rows(layout: Layout, setting: Setting) -> Rows:
    """The order of a schedule that has a name.

    Raises:
        PlanError: the schedule does not accept the layout.
    """
    lists = generate(
        layout.schedule, layout.mesh.pp_degree, layout.num_microbatches, setting.workload, layout.virtual_stages
    )
    return to_rows(lists, layout.stage_to_rank)


def searched(
    layout: Layout,
    setting: Setting,
    model: StepModel,
    most_replayed: int = MOST_REPLAYED,
    progress: Callable[[float], None] | None = None,
) -> Rows:
    """The order of the shortest step that a search with a fixed amount of work finds for a layout.

    Raises:
        PlanError: no schedule holds so little, or as `stage`.
    """
    from hybrid_runtime.schedule.auto.search import search  # compiled loops: numba takes a while to import

    staged = stage(layout, setting, model)
    ranks = layout.mesh.pp_degree
    tries = max(1, most_replayed // (3 * len(staged.works) * layout.num_microbatches))
    found = search(
        ranks,
        layout.num_microbatches,
        step_costs(staged, setting, model),
        limits(staged, setting, model),
        setting.seed,
        math.inf,
        None if progress is None else lambda state: progress(state.done),
        stage_to_rank=staged.stage_to_rank,
        most_tries=tries,
    )
    return to_rows(found.lists, staged.stage_to_rank)


def limits(staged: Staged, setting: Setting, model: StepModel) -> list[int]:
    """Bytes that the actions of every rank may hold: so many microbatches of its share, the head's logits once, and
    no more than its memory leaves.

    In a V the head's rank has few layers, and few activations of them in its limit. On many ranks it has then held all
    that it may long before its first microbatch is back, and idles. Rows of a sharded embedding would fill what it
    does not hold, so with `even_rows` that room is for activations, and the others leave some for rows:

        level  ------------------        ------------------      r rows, a activations, s states:
               | r |    |    |           | r || r || r |         the level stays
               | r || a || a |           | a || a || a |
               | a || a || a |           | a || a || a |
               | s || s || s |           | s || s || s |
    """
    layout, state = staged.layout, state_of(staged.layout, model)
    ranks = range(layout.mesh.pp_degree)
    states = [state.held(staged.rank_parameters(rank)) for rank in ranks]
    held = [weigh(staged.line, layout, state, rank, staged.rank_work(rank), staged.tied_parameters) for rank in ranks]
    rows = state.held(embedding_parameters(layout, setting)) if layout.sharded else 0
    level = int(water_level(held, rows))
    most = setting.memory_bytes or max(level, *held)
    if layout.level:
        most = min(most, level)
    if layout.even_rows:
        held = [max(here, level) for here in held]
        states = [below + rows // len(ranks) for below in states]
    return [min(here, most) - below for here, below in zip(held, states)]
