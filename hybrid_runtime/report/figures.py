"""Every figure of a running deployment, once: its name, unit and meaning, and how a progress line tells it.

    ProgressLine --STEP_FIGURES, RANK_FIGURES--> terminal, TensorBoard, Weights & Biases, Prometheus

To add a figure, give `ProgressLine` (or `RankLoad`) a field of its name, have rank 0 fill it in (job_progress.py), and
enter it here: all of them draw from this list, progress.jsonl holds the fields themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from hybrid_runtime.report.cells import UNKNOWN, duration_text, rate_text

if TYPE_CHECKING:  # progress.py shows its lines with these figures
    from hybrid_runtime.report.progress import ProgressLine, RankLoad


class StepFigure(NamedTuple):
    """One figure of a step of the whole run.

    Attributes:
        name: the field of `ProgressLine`, the key in progress.jsonl and the tag `run/<name>`.
        metric: Prometheus's name; the unit stands in it.
        unit: "" for a pure number.
        meaning: in a sentence.
        source: who measured or computed it.
        text: how a terminal shows it.
        live: it says something only while the run goes on.
        unknown: what a terminal shows where it is not known; "" for nothing.
    """

    name: str
    metric: str
    unit: str
    meaning: str
    source: str
    text: Callable[[float], str]
    live: bool = False
    unknown: str = ""

    def of(self, line: ProgressLine) -> float | None:
        """Its value; None where it is not known."""
        value: float | None = getattr(line, self.name)
        return value


class RankFigure(NamedTuple):
    """One figure of a rank in a step; `tag` is its name in TensorBoard and Weights & Biases, None for none."""

    tag: str | None
    metric: str
    unit: str
    meaning: str
    source: str
    of: Callable[[RankLoad], float | None]


STEP_FIGURES = (
    StepFigure(
        "loss", "loss", "", "Mean loss of the newest step.", "summed by the last stage's ranks", "loss {:.3f}".format
    ),
    StepFigure(
        "validation_loss", "validation_loss", "", "Mean loss of the newest validation.",
        "summed by the last stage's ranks over the validation's batches", "validation loss {:.3f}".format,
    ),
    StepFigure(
        "grad_norm", "grad_norm", "", "Global gradient norm before clipping, of the newest step.",
        "every rank, over the whole replica", "norm {:.3g}".format,
    ),
    StepFigure(
        "learning_rate", "learning_rate", "", "Learning rate of the newest step.",
        "[optimizer], by the steps trained before", "lr {:.3g}".format,
    ),
    StepFigure(
        "first_token_s", "first_token_seconds", "s", "Median time from a request's arrival to its first token.",
        "rank 0's clock, the judged rounds so far", lambda value: f"first token {duration_text(value)}",
    ),
    StepFigure(
        "output_token_s", "output_token_seconds", "s", "Median time between an answer's tokens after the first.",
        "rank 0's clock, the judged rounds so far", lambda value: f"then each {duration_text(value)}",
    ),
    StepFigure(
        "request_s", "request_seconds", "s", "Median time from a request's arrival to the end of its answer.",
        "rank 0's clock, the judged rounds so far", lambda value: f"answer {duration_text(value)}",
    ),
    StepFigure(
        "tokens_per_s", "tokens_per_second", "tokens/s", "Tokens of the global batch per second of the newest step.",
        "tokens of the batch over step_time_s", lambda value: f"{rate_text(value)} tokens/s" if value else "",
        live=True,
    ),
    StepFigure(
        "step_time_s", "step_seconds", "s", "The newest step's longest window over all ranks.",
        "the ranks' monotonic clocks", lambda value: f"{duration_text(value)}/step", live=True,
    ),
    StepFigure(
        "mfu", "model_flops_utilisation_ratio", "ratio",
        "Model FLOPs of the newest step over what the devices could do in it (PaLM, appendix B).",
        "planner/model_flops.py over the devices' rates in peak_rates.py", lambda value: f"MFU {100 * value:.1f} %",
        live=True, unknown=f"MFU {UNKNOWN}",
    ),
)  # fmt: skip
RANK_FIGURES = (
    RankFigure(
        "busy_share", "compute_busy_ratio", "ratio", "Compute without waits, of the newest measured step.",
        "the rank's spans", lambda load: _share(load.busy_percent),
    ),
    RankFigure(
        "wait_share", "wait_ratio", "ratio", "Waits for other ranks, of the newest measured step.",
        "the rank's waits", lambda load: _share(load.wait_percent),
    ),
    RankFigure(
        "memory_bytes", "memory_bytes", "bytes",
        "Newest known peak memory of the rank: allocator on a GPU, else ledger.",
        "torch's allocator, or the byte ledger", lambda load: load.memory_bytes,
    ),
    RankFigure(
        None, "rank_tokens_per_second", "tokens/s", "Tokens of the rank's replica in its newest step.",
        "tokens of the replica over the rank's window", lambda load: load.tokens_per_s,
    ),
)  # fmt: skip


def scalars(line: ProgressLine) -> Iterator[tuple[str, float]]:
    """(tag, value) of everything that a line knows: `run/loss`, `busy_share/rank3`, ...; shares are from 0 to 1."""
    for figure in STEP_FIGURES:
        if (value := figure.of(line)) is not None:
            yield f"run/{figure.name}", value
    for load in line.ranks:
        for ranked in RANK_FIGURES:
            if ranked.tag is not None and (value := ranked.of(load)) is not None:
                yield f"{ranked.tag}/rank{load.rank}", float(value)


def overall_text(line: ProgressLine) -> str:
    """ "loss 2.513  norm 0.81  lr 0.0003  5 343 tokens/s  383 ms/step  MFU 41.2 %": what belongs to no rank."""
    values = ((figure, figure.of(line)) for figure in STEP_FIGURES)
    parts = [figure.unknown if value is None else figure.text(value) for figure, value in values]
    return "  ".join(part for part in parts if part)


def _share(percent: float | None) -> float | None:
    return None if percent is None else percent / 100
