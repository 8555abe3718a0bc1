"""Words that all tables of plans share."""

from __future__ import annotations

from hybrid_runtime.predicted import PredictedStep, TimeInterval
from hybrid_runtime.report.cells import duration_text

SHOWN_REASONS = 24


def labels_text(predicted: PredictedStep) -> str:
    """How the figures came about: "modelled: messages, ...; measured: ..."."""
    by_label: dict[str, list[str]] = {}
    for name, label in predicted.labels.items():
        by_label.setdefault(label, []).append(name.replace("_", " "))
    return "; ".join(f"{label}: {', '.join(names)}" for label, names in by_label.items())


def interval_text(time: TimeInterval) -> str:
    """Its p50 with p10 and p90: "1.74 s [1.6 s, 2.1 s]"; short for a line of text."""
    p50, low, high = (duration_text(ns / 1e9) for ns in (time.p50_ns, time.p10_ns, time.p90_ns))
    return f"{p50} [{low}, {high}]"
