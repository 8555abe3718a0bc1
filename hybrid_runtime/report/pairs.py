"""Two verdicts row by row. Nothing is judged or computed: each run's own words and figures stand next to each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple, Protocol, TypeVar

from hybrid_runtime.plan import Plan
from hybrid_runtime.report import cells, method_cells
from hybrid_runtime.verdict import DeviceRow, Outcome, Side, Verdict

ABSENT = "-"
DEVICE_HEADINGS = ("compute share", "busy", "memory share", "peak memory")


class _Row(Protocol):
    @property
    def id(self) -> str: ...

    @property
    def outcome(self) -> Outcome: ...


T = TypeVar("T", bound=_Row)


class Judged(NamedTuple):
    """One row of both runs: outcomes and what was found; None and "-" where a run has no such row."""

    text: str
    outcomes: tuple[Outcome | None, Outcome | None]
    found: tuple[str, str]


class Pair(NamedTuple):
    """One figure of both runs."""

    what: str
    values: tuple[str, str]

    @property
    def differs(self) -> bool:
        return self.values[0] != self.values[1]


def notice(first: Verdict, second: Verdict) -> str:
    """Whether the same deployment ran twice: else the figures compare deployments, not runs."""
    if first.deployment_fingerprint == second.deployment_fingerprint:
        return "Both are runs of the same deployment."
    names = dict.fromkeys(cells.printable(verdict.name) for verdict in (first, second))
    called = " and ".join(names) if len(names) > 1 else f"both called {next(iter(names))}"
    return f"These are runs of different deployments ({called}): what differs may come from that."


def claim_pairs(first: Verdict, second: Verdict) -> list[Judged]:
    """Claims; the limit stands with the figure, for it may differ."""
    return _judged(
        first.claims,
        second.claims,
        lambda claim: cells.printable(claim.text),
        lambda claim: f"{cells.measured_text(claim.measured, claim.unit)}; required {cells.claim_cells(claim)[2]}",
    )


def stage_pairs(first: Plan, second: Plan) -> list[Pair]:
    """What the stages of every pipeline rank hold; nothing where both plans cut alike."""
    ranks = range(max(first.pp_degree, second.pp_degree))
    pairs = [Pair(f"stages of pp rank {rank}", (_stages(first, rank), _stages(second, rank))) for rank in ranks]
    return pairs if any(pair.differs for pair in pairs) else []


def _stages(plan: Plan, rank: int) -> str:
    held = [stage.units for stage in plan.stages_of(rank)] if rank < plan.pp_degree else []
    ranges = (units[0] if len(units) == 1 else f"{units[0]}..{units[-1]}" for units in held)
    return cells.printable(" | ".join(ranges)) or ABSENT


def check_pairs(first: Verdict, second: Verdict) -> list[Judged]:
    """The static checks whose outcomes differ."""
    rows = _judged(
        first.static_checks,
        second.static_checks,
        lambda check: cells.printable(check.requirement),
        lambda check: cells.check_cells(check)[2],
    )
    return [row for row in rows if row.outcomes[0] is not row.outcomes[1]]


def self_check_pairs(first: Verdict, second: Verdict) -> list[Judged]:
    """Self-tests."""
    return _judged(
        first.self_test,
        second.self_test,
        lambda check: cells.printable(check.text),
        lambda check: method_cells.self_check_cells(check)[2],
    )


def _judged(
    first: Sequence[T], second: Sequence[T], text: Callable[[T], str], found: Callable[[T], str]
) -> list[Judged]:
    """Rows by id, the first run's order first."""
    ones, others = ({row.id: row for row in rows} for rows in (first, second))
    pairs = [(ones.get(id), others.get(id)) for id in dict.fromkeys([*ones, *others])]
    return [
        Judged(
            text(next(row for row in pair if row is not None)),
            (pair[0].outcome if pair[0] else None, pair[1].outcome if pair[1] else None),
            (found(pair[0]) if pair[0] else ABSENT, found(pair[1]) if pair[1] else ABSENT),
        )
        for pair in pairs
    ]


def device_pairs(first: Verdict, second: Verdict) -> list[tuple[str, list[Pair]]]:
    """Per device in order, a pair for each of DEVICE_HEADINGS."""
    rows = []
    for one, other in zip_longest(first.devices, second.devices):
        names = dict.fromkeys(cells.printable(row.device) for row in (one, other) if row)
        pairs = zip(_device(one), _device(other))
        rows.append((" | ".join(names), [Pair(what, pair) for what, pair in zip(DEVICE_HEADINGS, pairs)]))
    return rows


def _device(row: DeviceRow | None) -> tuple[str, ...]:
    if row is None:
        return (ABSENT,) * len(DEVICE_HEADINGS)
    share = cells.UNKNOWN if row.memory_share is None else cells.with_unit(row.memory_share, "%")
    peak = cells.UNKNOWN if row.memory_bytes is None else cells.bytes_text(row.memory_bytes)
    return cells.with_unit(row.time_share, "%"), cells.with_unit(row.busy, "%"), share, peak


def side_pairs(first: Verdict, second: Verdict) -> list[Pair]:
    """What ran, candidate and baseline."""
    return [pair for role in ("candidate", "baseline") for pair in _side_pairs(role, first.sides, second.sides)]


def _side_pairs(role: str, first: Sequence[Side], second: Sequence[Side]) -> Iterator[Pair]:
    ones, others = ([side for side in sides if side.role == role] for sides in (first, second))
    rows = [cells.side_rows(some[:1]) for some in (ones, others)]
    for one, other in zip(*rows):
        values = tuple(row[1] if len(row) > 1 else ABSENT for row in (one, other))
        if not set(values) <= {ABSENT, role}:
            yield Pair(f"{role}: {one[0] or 'kind'}", (values[0], values[1]))


def provenance_pairs(first: Verdict, second: Verdict) -> list[Pair]:
    """Where the runs come from, by section and name; only what differs."""
    ones, others = map(_provenance, (first, second))
    names = dict.fromkeys([*ones, *others])
    pairs = [Pair(name, (ones.get(name, ABSENT), others.get(name, ABSENT))) for name in names]
    return [pair for pair in pairs if pair.differs]


def _provenance(verdict: Verdict) -> dict[str, str]:
    sections = {"judgement": method_cells.rests_on(verdict), **method_cells.provenance_sections(verdict.provenance)}
    return {f"{title}: {name}": value for title, values in sections.items() for name, value in values.items()}
