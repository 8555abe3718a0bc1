"""A serving plan as tables: what was chosen, how long requests wait, what every rank does and holds, why not others."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from hybrid_runtime.plan import Plan
from hybrid_runtime.predicted import PredictedStep, RankTime
from hybrid_runtime.predicted_serving import LatencyTimes, PredictedServing
from hybrid_runtime.report.cells import bytes_text, duration_text, printable, rate_text
from hybrid_runtime.report.plain_table import HEADING, plain_table
from hybrid_runtime.report.plan_words import SHOWN_REASONS, interval_text, labels_text
from hybrid_runtime.report.trade_off import trade_off_lines


def serving_plan_tables(
    plan: Plan, predicted: PredictedStep, serving: PredictedServing, sentences: Sequence[str], why_not: Sequence[str]
) -> RenderableType:
    """Everything that `hybrid-runtime plan` prints of a deployment that serves.

    Args:
        sentences: what is said of the plan.
        why_not: one line per mesh that was not chosen.
    """
    more = len(why_not) - SHOWN_REASONS
    rate = serving.tokens * 10**9 / max(1, predicted.step_time.p50_ns)
    picture = trade_off_lines(serving.trade_offs)
    return Group(
        Text(f"chosen: {_chosen(plan)}", style="bold"),
        Text(f"a round of the load takes {interval_text(predicted.step_time)}: {rate_text(rate)} tokens/s"),
        Text(f"figures: {labels_text(predicted)}", style="dim"),
        _latencies(serving),
        _ranks(plan, predicted, serving),
        *([Text(f"\nTP against PP, {_words(serving.latency)} latency", style="bold")] if picture else []),
        *(Text(line, no_wrap=True) for line in picture),
        Text(),
        Text("why not the others" if why_not else "no other layout was looked at", style=HEADING),
        *(Text(printable(line)) for line in why_not[:SHOWN_REASONS]),
        *([Text(f"and {more} more reasons")] if more > 0 else []),
        Text(),
        *(Text(printable(sentence)) for sentence in sentences),
    )


def _chosen(plan: Plan) -> str:
    chunk = plan.prefill_chunk_tokens
    prefill = "whole prompts" if chunk is None else f"prompts in chunks of {chunk} tokens"
    sets = "1 microbatch" if plan.num_microbatches == 1 else f"{plan.num_microbatches} microbatches"
    return (
        f"tp {plan.tp_degree} x pp {plan.pp_degree}, {sets} of {plan.microbatch_size} sequences, "
        f"{min(plan.items_in_flight or plan.num_microbatches, plan.num_microbatches)} in flight, {prefill}"
    )


def _words(latency: str) -> str:
    return latency.replace("_", " ")


def _latencies(serving: PredictedServing) -> RenderableType:
    table = plain_table("Latencies", "", "median", "90 %", "99 %")
    for name in ("first_token", "output_token", "request"):
        times: LatencyTimes | None = getattr(serving, name)
        if times is not None:
            texts = (duration_text(ns / 1e9) for ns in (times.median_ns, times.p90_ns, times.p99_ns))
            table.add_row(_words(name), *texts)
    return table


def _ranks(plan: Plan, predicted: PredictedStep, serving: PredictedServing) -> RenderableType:
    table = plain_table(
        "Pipeline ranks, one round",
        "rank",
        "units",
        "prefill",
        "decode",
        "collectives",
        "idle",
        "weights",
        "cache",
        "room",
    )
    for stage, rank, served in zip(plan.stages, predicted.ranks, serving.ranks, strict=True):
        table.add_row(
            str(rank.pp_rank),
            f"{stage.units[0]}..{stage.units[-1]}",
            *(duration_text(ns / 1e9) for ns in (served.prefill_ns, served.decode_ns, *_not_compute(rank.time))),
            bytes_text(rank.memory.parameters),
            bytes_text(served.kv_cache_bytes),
            "-" if served.capacity_tokens is None else f"{served.capacity_tokens} tokens",
        )
    return table


def _not_compute(time: RankTime) -> tuple[int, int]:
    return time.tensor_parallel_ns, time.idle_ns
