"""The words of a judged prediction and of modelled figures, which all reports share. Nothing here draws or decides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hybrid_runtime.predicted import RankTime
from hybrid_runtime.prediction_history import Bias
from hybrid_runtime.report.cells import UNKNOWN, bytes_text, duration_text, printable, with_unit
from hybrid_runtime.verdict import Claim
from hybrid_runtime.verdict_modelled import ModelledRun, ModelledStep
from hybrid_runtime.verdict_prediction import BudgetRow, JudgedPrediction, PredictionVerdict, Quantity

QUANTITY_HEADINGS = ("quantity", "predicted", "measured", "error", "median over ranks", "in interval", "verdict", "how")
RANK_HEADINGS = ("quantity", "pp rank", "predicted", "measured", "error")
BUDGET_HEADINGS = ("component", "predicted", "measured", "error")
STEP_HEADINGS = (
    "replayed",
    "mesh",
    "schedule",
    "step",
    "least busy",
    "latency reduction",
    "throughput gain",
    "note",
)
HISTORY_HEADINGS = ("machine", "costs from", "what", "runs", "median error", "optimistic / pessimistic", "drift")
MODELLED_TITLE = "Modelled: replayed with this run's own costs, decides nothing"
HISTORY_TITLE = "Predictions over runs: signed errors, shown and never used"
Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]
BUDGET_TITLES = {
    "step_time": "Error budget of the step: means over pipeline ranks; the errors add up to the error of the step",
    "busy": "Error budget of busy time: means over pipeline ranks; the errors add up to the error of their mean",
    "": "",
}


def prediction_sentence(judged: JudgedPrediction) -> str:
    """The verdict of the prediction, where it came from, and why it is that: "PREDICTED (rehearsal): ..."."""
    about = judged.reason or judged.source
    return printable(f"{judged.verdict}{f' ({about})' if about else ''}: {judged.detail}")


def quantity_cells(quantity: Quantity) -> tuple[str, ...]:
    """One quantity under QUANTITY_HEADINGS; of ranks, the worst."""
    where = "" if quantity.worst_rank is None else f" (worst: pp {quantity.worst_rank})"
    interval = UNKNOWN
    if quantity.interval is not None:
        low, high = (_amount(end, quantity.unit) for end in quantity.interval)
        interval = f"{'yes' if quantity.inside else 'no'}, {low} to {high}"
    limit = "" if quantity.limit is None else f" at {quantity.limit} %"
    role = "" if quantity.decides else ", shown only"
    return (
        printable(f"{quantity.text}{where}"),
        _amount(quantity.predicted, quantity.unit),
        _amount(quantity.measured, quantity.unit),
        _signed(quantity.error),
        UNKNOWN if quantity.worst_rank is None else _signed(quantity.median_error),
        interval,
        f"{quantity.verdict}{limit}{role}" if quantity.limit else f"-{role}",
        printable(f"{quantity.label}; {quantity.method}"),
    )


def rank_rows(judged: JudgedPrediction) -> list[tuple[str, ...]]:
    """Every pipeline rank's figures under RANK_HEADINGS."""
    return [
        (
            printable(quantity.text),
            str(row.pp_rank),
            _amount(row.predicted, quantity.unit),
            _amount(row.measured, quantity.unit),
            _signed(row.error),
        )
        for quantity in judged.quantities
        for row in quantity.ranks
    ]


def budget_rows(rows: Sequence[BudgetRow]) -> list[tuple[str, ...]]:
    """The budget under BUDGET_HEADINGS, its sum last; components that are nothing on both sides are left out."""
    shown = [row for row in rows if row.predicted_ns or row.measured_ns]
    if not shown:
        return []
    total = BudgetRow(
        component="sum",
        predicted_ns=sum(row.predicted_ns for row in rows),
        measured_ns=sum(row.measured_ns for row in rows),
        error_ns=sum(row.error_ns for row in rows),
    )
    return [
        (
            printable(row.component.replace("_", " ")),
            _time(row.predicted_ns),
            _time(row.measured_ns),
            f"{'+' if row.error_ns > 0 else ''}{_time(row.error_ns)}",
        )
        for row in (*shown, total)
    ]


def prediction_tables(judged: JudgedPrediction) -> Iterator[Table]:
    """Every table of a judged prediction: (title, headings, rows)."""
    yield "Predicted against measured", QUANTITY_HEADINGS, [quantity_cells(one) for one in judged.quantities]
    yield "Predicted against measured, by pipeline rank", RANK_HEADINGS, rank_rows(judged)
    yield BUDGET_TITLES[judged.budget_of], BUDGET_HEADINGS, budget_rows(judged.budget)


def modelled_tables(run: ModelledRun) -> Iterator[Table]:
    """Every table of a replay: (title, headings, rows)."""
    if run.steps:
        yield "Replayed plans", STEP_HEADINGS, [modelled_cells(step) for step in run.steps]
        headings, *rows = modelled_budget(run)
        yield "Time budget of the replayed step", headings, rows


def claim_modelled(claim: Claim) -> str:
    """What a replay says of a claim that shared cores leave undecided; "" where there is none."""
    modelled = claim.modelled
    if modelled is None:
        return ""
    beside = ", ".join(f"{kind} {figure}" for kind, figure in modelled.beside.items())
    words = f"modelled {with_unit(modelled.point, claim.unit)}: {modelled.would} ({modelled.method})"
    return printable(f"{words}; {_BESIDE.get(claim.id, 'against')} {beside}" if beside else words)


_BESIDE = {"utilisation": "the same of"}


def modelled_cells(step: ModelledStep) -> tuple[str, ...]:
    """One replayed plan under STEP_HEADINGS."""
    figures = (step.utilisation, step.latency_reduction, step.throughput_gain)
    return (
        printable(step.kind),
        printable(step.mesh),
        printable(f"{step.schedule}, m = {step.num_microbatches}"),
        UNKNOWN if step.step_ns is None else _time(step.step_ns),
        *("-" if figure is None else with_unit(figure, "%") for figure in figures),
        printable(step.detail),
    )


def modelled_budget(run: ModelledRun) -> list[tuple[str, ...]]:
    """Headings, then where the replayed step of the candidate goes on each pipeline rank, in time and share."""
    names = [name for name in RankTime.model_fields if any(getattr(rank, name) for rank in run.ranks)]
    rows = [("pp rank", *(name.removesuffix("_ns").replace("_", " ") for name in names))]
    for pp, rank in enumerate(run.ranks):
        rows.append((str(pp), *(_part(getattr(rank, name), rank.total_ns) for name in names)))
    return rows


def _part(time_ns: int, whole_ns: int) -> str:
    return f"{_time(time_ns)} ({100 * time_ns / whole_ns:.1f} %)" if whole_ns else "0"


def history_cells(bias: Bias) -> tuple[str, ...]:
    """One quantity or term of the history under HISTORY_HEADINGS."""
    drift = "one-sided: the model errs the same way every time" if bias.one_sided else "-"
    sides = f"{bias.optimistic} / {bias.pessimistic}"
    error = _signed(bias.median_percent)
    return (printable(bias.machine), printable(bias.source), printable(bias.what), str(bias.runs), error, sides, drift)


def _signed(error: str) -> str:
    return error if error == UNKNOWN else f"{'' if error.startswith('-') else '+'}{printable(error)} %"


def _time(time_ns: int) -> str:
    return duration_text(time_ns / 1e9)


def _amount(amount: int, unit: str) -> str:
    return _time(amount) if unit == "ns" else bytes_text(amount)


VERDICT_CLASS = {  # of PASS, FAIL and the others, whose colours the pages have
    PredictionVerdict.PREDICTED: "PASS",
    PredictionVerdict.OPTIMISTIC: "FAIL",
    PredictionVerdict.PESSIMISTIC: "INCONCLUSIVE",
    PredictionVerdict.STALE: "INCONCLUSIVE",
    PredictionVerdict.UNJUDGED: "NOT_APPLICABLE",
}
