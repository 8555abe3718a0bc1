"""A layout calculated through: cut, replayed, rows filled in, memory added up. What a plan's prediction is made of."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import ceil

from hybrid_runtime.pieces import read_piece
from hybrid_runtime.plan import Plan
from hybrid_runtime.planner.embedding_rows import pieces_of
from hybrid_runtime.planner.layout import MESSAGE_BUFFERS, Layout, Setting
from hybrid_runtime.planner.make import place_lookups
from hybrid_runtime.planner.replicas import exposed_ns
from hybrid_runtime.planner.rows import fill_rows, rows_multiple
from hybrid_runtime.planner.stage_costs import lower_bound_ns, step_costs
from hybrid_runtime.planner.staged import Staged, as_planned, stage, state_of
from hybrid_runtime.planner.step_model import StepModel
from hybrid_runtime.predicted import RankMemory
from hybrid_runtime.schedule.actions import ActionList, parse_actions
from hybrid_runtime.schedule.held_bytes import Held, held_peaks
from hybrid_runtime.schedule.lower import lower
from hybrid_runtime.schedule.replay import Replay, replay_rows
from hybrid_runtime.schedule.rows import Rows, to_rows


@dataclass(frozen=True)
class Evaluated:
    """What a layout comes to.

    Attributes:
        step: the replay of the schedule's lists, in nanoseconds.
        rows: of a sharded embedding, per pipeline rank; empty where the first stage holds it.
        memory: per pipeline rank.
        as_run: the replayed lists have the lookups that a run has, and memory counts every message of them.
        data_parallel_ns, optimizer_ns: per pipeline rank, after its last action; sums that the tail hides not included.
        fixed_ns: of the step, what is neither an action nor the update.
        bound_ns: no pipeline of these stages is shorter.
    """

    staged: Staged
    step: Replay
    rows: tuple[int, ...]
    memory: tuple[RankMemory, ...]
    data_parallel_ns: tuple[int, ...]
    optimizer_ns: tuple[int, ...]
    step_ns: int
    fixed_ns: int
    bound_ns: int
    as_run: bool = False

    @property
    def lists(self) -> tuple[ActionList, ...]:
        """Compute lists, one per pipeline rank."""
        rows = self.step.rows
        return tuple(tuple(rows.actions[index] for index in rows.row(rank)) for rank in range(rows.num_ranks))

    @property
    def layout(self) -> Layout:
        return self.staged.layout

    @property
    def peak_bytes(self) -> int:
        return max(memory.ledger_peak for memory in self.memory)

    @property
    def compute_share_range(self) -> Fraction:
        """Gap between the largest and the smallest share of compute, of 1, over pipeline ranks."""
        return share_range([int(busy) for busy in self.step.busy], self._devices_per_rank)

    @property
    def memory_share_range(self) -> Fraction:
        return share_range([memory.ledger_peak for memory in self.memory], self._devices_per_rank)

    @property
    def _devices_per_rank(self) -> int:
        """Tensor ranks and replicas of a pipeline rank, all alike."""
        return self.layout.mesh.tp_degree * self.layout.mesh.dp_degree

    @property
    def bubble(self) -> Fraction:
        """Share of the step in which a pipeline rank waits for others, as the mean over ranks: what a plan's ranks have
        as `idle_ns`. Collectives are no bubble.
        """
        row, ranks = self.step.rows.row, range(self.layout.mesh.pp_degree)
        occupied = sum(sum(self.step.ends[i] - self.step.starts[i] for i in row(rank)) for rank in ranks)
        after = sum(self.data_parallel_ns) + sum(self.optimizer_ns)
        waiting = len(ranks) * (self.step_ns - self.fixed_ns) - self.step.time(occupied) - after
        return Fraction(waiting) / (len(ranks) * self.step_ns) if self.step_ns else Fraction(0)

    @property
    def utilisation(self) -> Fraction:
        """Compute-busy share of the least busy rank in the whole step."""
        return Fraction(min(self.step.busy)) / self.step_ns if self.step_ns else Fraction(1)


def share_range(figures: Sequence[int], devices_per_figure: int = 1) -> Fraction:
    """(max - min) / sum over all devices, of which so many share each figure; 0 where there is nothing to share."""
    if devices_per_figure > 1:
        return share_range(figures) / devices_per_figure
    return Fraction(max(figures) - min(figures), sum(figures)) if sum(figures) else Fraction(0)


def evaluate(layout: Layout, setting: Setting, model: StepModel, rows: Rows, staged: Staged | None = None) -> Evaluated:
    """Replays a schedule with the costs of a layout's stages and fills in the rows.

    A rank without rows looks nothing up, so the cuts are made again when the rows say so; the order of actions stays.
    Where that breaks a promise of balance, every rank gets at least a few rows: looking up costs all the same then.

    Args:
        rows: of compute lists (`to_rows`).
        staged: the layout's stages, where they are known.

    Raises:
        PlanError: as `stage`.
    """
    if layout.rows is not None:
        lookers = frozenset(rank for rank, count in enumerate(layout.rows) if count)
        return _evaluate(stage(layout, setting, model, lookers), setting, model, rows, given=layout.rows)
    everyone = _evaluate(staged or stage(layout, setting, model), setting, model, rows)
    found = everyone
    while (lookers := frozenset(rank for rank, count in enumerate(found.rows) if count)) != found.staged.lookers:
        found = _evaluate(stage(layout, setting, model, lookers), setting, model, rows)  # fewer every time
    if found is everyone or not broken_promises(found, setting):
        return found
    some_each = _evaluate(everyone.staged, setting, model, rows, some_each=True)
    return min(found, some_each, key=lambda one: (len(broken_promises(one, setting)), one.step_ns))


def as_run(found: Evaluated, setting: Setting, model: StepModel) -> Evaluated:
    """The same layout as its ranks run it: lookups of its rows are actions of their own, and memory is counted from
    the lists with their messages, which a search would take too long to make for everything that it compares.
    """
    if found.as_run:
        return found
    staged, lists = found.staged, lowered_lists(found)

    def placed(rows: tuple[int, ...]) -> Evaluated:
        return _evaluate(staged, setting, model, lists=lists, given=rows)

    again = placed(found.layout.rows or ())
    same = frozenset(rank for rank, count in enumerate(again.rows) if count) == staged.lookers
    return again if same else placed(found.rows)


def lowered_lists(found: Evaluated) -> tuple[ActionList, ...]:
    """The lists that ranks follow: with messages, and with the lookups of a sharded embedding."""
    staged = found.staged
    compute = tuple(tuple(one for one in actions if not one.kind.is_lookup) for actions in found.lists)
    lists = _lowered(compute, staged.stage_to_rank)
    pieces = pieces_of(found.rows, staged.line.units[0].cost.name)
    return place_lookups(lists, staged.stage_to_rank, pieces, found.step.costs.durations)


@lru_cache(maxsize=2)
def _lowered(compute: tuple[ActionList, ...], stage_to_rank: tuple[int, ...]) -> tuple[ActionList, ...]:
    """Kept, for a layout is improved, written down and checked in the same order of actions."""
    return tuple(lower(compute, stage_to_rank))


def evaluate_as_planned(plan: Plan, layout: Layout, setting: Setting, model: StepModel) -> tuple[RankMemory, ...]:
    """What the ranks of an existing plan are calculated to hold, with its own stages, rows and lists."""
    lookers = frozenset(rank for rank, piece in enumerate(plan.embedding_pieces) if piece)
    staged = as_planned(plan, layout, setting, model, lookers)
    lists = [parse_actions(row) for row in plan.actions]
    held = held_peaks(lists, plan.stage_to_rank, step_costs(staged, setting, model, lookups=bool(lookers)))
    pieces = [read_piece(name) for name in plan.embedding_pieces]
    rows = tuple(0 if piece is None else piece.parts for piece in pieces)
    return _memory(staged, setting, model, held, rows=rows)[1]


def broken_promises(found: Evaluated, setting: Setting) -> list[str]:
    """The balance that the deployment promises and a layout does not have, in words."""
    figures = (
        ("compute", found.compute_share_range, setting.compute_share_limit),
        ("memory", found.memory_share_range, setting.memory_share_limit),
    )
    return [
        f"shares of {what} differ by {float(100 * share):.2f} pp, {float(100 * limit):g} are promised"
        for what, share, limit in figures
        if limit is not None and share > limit
    ]


def _evaluate(
    staged: Staged,
    setting: Setting,
    model: StepModel,
    order: Rows | None = None,
    *,
    lists: Sequence[ActionList] = (),
    some_each: bool = False,
    given: tuple[int, ...] = (),
) -> Evaluated:
    """Of the order of a schedule, or of the lists that ranks follow."""
    ranks = range(staged.layout.mesh.pp_degree)
    lookups = bool(lists) and bool(staged.lookers)
    costs = step_costs(staged, setting, model, lookups=lookups)
    if order is None:
        compute = [tuple(one for one in actions if one.kind.is_compute) for actions in lists]
        order = to_rows(compute, staged.stage_to_rank)
    step = replay_rows(order, costs)
    if lists:
        held = held_peaks(lists, staged.stage_to_rank, costs)
    else:
        held = tuple(Held(peak.num_bytes, buffer_bytes(staged, rank)) for rank, peak in enumerate(step.peaks))
    rows, memory = _memory(staged, setting, model, held, some_each=some_each, rows=given)
    parameters = [memory[rank].parameters // model.state.parameter for rank in ranks]
    exposed, update, last_ns = (0,) * len(ranks), (0,) * len(ranks), int(step.makespan)
    if setting.workload == "train":
        exposed, update, last_ns = exposed_ns(staged, step, parameters, setting, model)
    return Evaluated(
        staged,
        step,
        rows,
        memory,
        exposed,
        update,
        last_ns + model.step_ns,
        model.step_ns,
        lower_bound_ns(staged, setting, model),
        as_run=bool(lists),
    )


def _memory(
    staged: Staged,
    setting: Setting,
    model: StepModel,
    most: Sequence[Held],
    *,
    some_each: bool = False,
    rows: tuple[int, ...] = (),
) -> tuple[tuple[int, ...], tuple[RankMemory, ...]]:
    """Rows of the embedding, and what every rank holds with them.

    Args:
        most: beside parameters and what belongs to them.
    """
    layout, state = staged.layout, state_of(staged.layout, model)
    ranks = range(layout.mesh.pp_degree)
    beside = setting.beside_bytes or (0,) * len(ranks)
    activations = [held.activations + more for held, more in zip(most, beside)]
    buffers = [held.buffers for held in most]
    held = [state.held(staged.rank_parameters(rank)) + activations[rank] + buffers[rank] for rank in ranks]
    if layout.sharded and not rows:
        rows = embedding_rows(held, staged.lookers, layout, setting, state.total, some_each=some_each)
    hidden, tp = setting.shape.hidden_size, layout.mesh.tp_degree
    memory = []
    for rank in ranks:
        shared = setting.shape.tie_embeddings and rank == staged.stage_to_rank[-1]  # its rows are the head's
        parameters = staged.rank_parameters(rank) + (rows[rank] * hidden // tp if rows and not shared else 0)
        memory.append(
            RankMemory(
                parameters=state.parameter * parameters,
                gradients=state.gradient * parameters,
                optimizer=ceil(state.optimizer * parameters),
                activations=activations[rank],
                buffers=buffers[rank],
            )
        )
    return rows, tuple(memory)


def embedding_rows(
    held_bytes: Sequence[int],
    lookers: Collection[int],
    layout: Layout,
    setting: Setting,
    state_bytes: int | Fraction,
    *,
    some_each: bool = False,
) -> tuple[int, ...]:
    """Rows per pipeline rank that make what all hold equal; the vocabulary padded to what tensor ranks divide.

    Args:
        lookers: the ranks that may have rows.
        some_each: none of them stays without.
    """
    tp, vocab = layout.mesh.tp_degree, setting.shape.vocab_size
    num_rows = -(-vocab // tp) * tp
    multiple = rows_multiple(vocab, tp, len(held_bytes))
    per_row = Fraction(state_bytes) * setting.shape.hidden_size / tp
    chosen = sorted(lookers)
    least = min(multiple, num_rows // len(chosen) // tp * tp) if some_each else 0
    held = [held_bytes[rank] + int(least * per_row) for rank in chosen]
    filled = [least + count for count in fill_rows(held, num_rows - least * len(chosen), per_row, multiple)]
    rows = [0] * len(held_bytes)
    for rank, count in zip(chosen, filled):
        rows[rank] = count
    return tuple(rows)


def buffer_bytes(staged: Staged, rank: int) -> int:
    """About what `held_peaks` finds, for a search: receives that are posted on every edge into the rank, and the newest
    message on every edge out of it.

    With a sharded embedding stage 0's rank has the sum of the next microbatch and the newest gradient that it sends,
    every other rank with rows the newest part that it sends and two gradients, one used and one under way.
    """
    into: dict[int, list[int]] = {}
    count = staged.layout.num_microbatches
    for number in range(1, len(staged.works)):
        before, after = staged.stage_to_rank[number - 1 : number + 1]
        if before != after and rank in (before, after):
            other = before if rank == after else after
            into.setdefault(other, []).append(staged.line.message_bytes(staged.boundaries[number]))
    buffers = sum(max(sizes) * (min(MESSAGE_BUFFERS, count * len(sizes)) + 1) for sizes in into.values())
    home = staged.stage_to_rank[0]
    others = staged.lookers - {home}
    sums = (1 + bool(others)) * bool(staged.lookers) if rank == home else (1 + min(2, count)) * (rank in others)
    return buffers + sums * staged.line.whole_carry_bytes
