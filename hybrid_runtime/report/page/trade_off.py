"""TP against PP, as it was predicted: latency and throughput of the layouts that no other of their mesh beats."""

from __future__ import annotations

from collections.abc import Iterator

from hybrid_runtime.plan import Plan
from hybrid_runtime.predicted_serving import TradeOff
from hybrid_runtime.report.page.figure import Figure, Trace, View
from hybrid_runtime.report.run_data import Run
from hybrid_runtime.report.trade_off import mesh_of

# A mesh has its own colour; there are few meshes of one number of devices.
_COLOURS = ("forward", "backward", "weight-gradient", "lookup", "optimizer", "communication", "parameters", "baseline")


def trade_off_figure(run: Run) -> Figure | None:
    """Of the plan that ran; None where it was not chosen among several meshes by a search."""
    return figure_of(run.plan)


def figure_of(plan: Plan) -> Figure | None:
    """Of a plan."""
    serving = None if plan.predicted is None else plan.predicted.serving
    trade_offs = () if serving is None else serving.trade_offs
    if serving is None or len({mesh_of(one) for one in trade_offs}) < 2:
        return None
    words = serving.latency.replace("_", " ")
    layout = {
        "height": 420,
        "hovermode": "closest",
        "xaxis": {"title": {"text": f"median {words} latency, s"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "tokens per second"}, "rangemode": "tozero"},
    }
    notes = (
        "Predicted: every point is a layout of the same devices, simulated with the deployment's load; of each mesh "
        "those that no other beats in both. The ringed one is the plan.",
    )
    return Figure("trade-off", "TP against PP", [View(list(_traces(trade_offs)), layout)], notes)


def _traces(trade_offs: tuple[TradeOff, ...]) -> Iterator[Trace]:
    """A line of points per mesh, and a ring around the plan."""
    meshes = dict.fromkeys(mesh_of(one) for one in sorted(trade_offs, key=lambda one: one.tp_degree))
    for number, mesh in enumerate(meshes):
        points = sorted((one for one in trade_offs if mesh_of(one) == mesh), key=lambda one: one.latency_ns)
        colour = _COLOURS[number % len(_COLOURS)]
        yield {
            "type": "scatter",
            "mode": "lines+markers",
            "name": mesh,
            **_places(points),
            "text": [_words(one) for one in points],
            "hoverinfo": "name+text",
            "line": {"color": colour, "width": 1, "dash": "dot"},
            "marker": {"color": colour, "size": 8},
        }
    yield {
        "type": "scatter",
        "mode": "markers",
        "name": "the plan",
        **_places([trade_offs[0]]),
        "text": [_words(trade_offs[0])],
        "hoverinfo": "name+text",
        "marker": {"symbol": "circle-open", "size": 16, "color": "ink", "line": {"width": 2}},
    }


def _places(points: list[TradeOff]) -> Trace:
    return {"x": [one.latency_ns / 1e9 for one in points], "y": [float(one.tokens_per_s) for one in points]}


def _words(one: TradeOff) -> str:
    chunk = "whole prompts" if one.prefill_chunk_tokens is None else f"chunks of {one.prefill_chunk_tokens} tokens"
    return (
        f"{mesh_of(one)}: microbatches of {one.microbatch_size}, {chunk}: {one.latency_ns / 1e9:.4g} s, "
        f"{float(one.tokens_per_s):.4g} tokens/s"
    )
