"""Which device, which stage, which wait: the lines that a reader of a verdict asks for first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from hybrid_runtime.records import RankRecords
from hybrid_runtime.report.cells import duration_text, printable, ranges_text, with_unit
from hybrid_runtime.schedule.actions import Kind, is_action, parse_action
from hybrid_runtime.schedule.messages import partner
from hybrid_runtime.verdict import DeviceRow, Verdict


class Line(NamedTuple):
    """One question and its answer."""

    question: str
    answer: str


class _Wait(NamedTuple):
    """A wait of one rank: `kind` is its name without the microbatch."""

    rank: int
    kind: str


def why_lines(verdict: Verdict, ranks: Sequence[RankRecords]) -> list[Line]:
    """What sets the balance, which device works most and which least, and who waits longest for what."""
    return [*_claim_lines(verdict), *_device_lines(verdict.devices), *_wait_lines(ranks)]


def _claim_lines(verdict: Verdict) -> Iterator[Line]:
    for question, metric in (
        ("What sets the balance of compute?", "time_share_range"),
        ("What sets the balance of memory?", "alloc_peak_share_range"),
    ):
        claim = next((claim for claim in verdict.claims if claim.metric == metric), None)
        if claim is not None:
            yield Line(question, printable(claim.detail))


def _device_lines(rows: Sequence[DeviceRow]) -> Iterator[Line]:
    if len(rows) < 2:
        return
    most, least = (pick(rows, key=lambda row: row.compute_ns) for pick in (max, min))
    yield Line(
        "Which device works most, which least?",
        f"{_device(most)} computes {duration_text(most.compute_ns / 1e9)} in the measured steps "
        f"({with_unit(most.busy, '%')} of the time), {_device(least)} {duration_text(least.compute_ns / 1e9)} "
        f"({with_unit(least.busy, '%')}).",
    )


def _device(row: DeviceRow) -> str:
    stages = "stage" if len(row.stages) == 1 else "stages"
    return f"{printable(row.device)} ({stages} {ranges_text(row.stages)})"


def _wait_lines(ranks: Sequence[RankRecords]) -> Iterator[Line]:
    """Waits of the measured steps: the rank and kind with the largest sum, and the longest single one."""
    sums: Counter[_Wait] = Counter()
    longest: tuple[int, int, int, str] = (0, 0, 0, "")
    for rank in ranks:
        for step in rank.measured():
            for wait in step.waits:
                length_ns = wait.end_ns - wait.start_ns
                sums[_Wait(rank.header.rank, _kind(wait.name))] += length_ns
                longest = max(longest, (length_ns, rank.header.rank, step.step, wait.name))
    if not sums:
        return
    (most, sum_ns), *_ = sums.most_common(1)
    spent_ns = sum(step.end_ns - step.start_ns for step in ranks[most.rank].measured())
    share = f", {100 * sum_ns / spent_ns:.1f} % of its measured steps" if spent_ns else ""
    yield Line(
        "Which wait is the longest?",
        f"Rank {most.rank} ({_stages(ranks[most.rank])}) waits {duration_text(sum_ns / 1e9)} in all for "
        f"{_words(most.kind)}{share}. The longest single wait: {duration_text(longest[0] / 1e9)}, rank {longest[1]} "
        f"({_stages(ranks[longest[1]])}) in step {longest[2]} for {printable(longest[3])}.",
    )


def _stages(rank: RankRecords) -> str:
    stages = "stage" if len(rank.header.stages) == 1 else "stages"
    return f"{stages} {ranges_text(rank.header.stages)}"


def _kind(name: str) -> str:
    """ "1RECV_F3" -> "1RECV_F"; collectives have no number."""
    bare = name.rstrip("0123456789")
    return bare if bare != name and is_action(name) else name


def _words(kind: str) -> str:
    if not is_action(f"{kind}0"):  # a collective
        return printable(kind)
    action = parse_action(f"{kind}0")
    if action.kind.is_lookup:
        what = (
            "the sum of a sharded embedding" if action.kind is Kind.EF else "the gradient of a sharded embedding's sum"
        )
        return f"{what} ({kind})"
    what = "activations" if action.kind in (Kind.RECV_F, Kind.SEND_F) else "gradients"
    if action.kind.is_receive:
        return f"{what} from stage {partner(action).stage} ({kind})"
    return f"{what} to be taken by stage {partner(action).stage} ({kind})"
