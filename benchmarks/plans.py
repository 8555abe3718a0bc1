"""Predicted balance and utilisation of planned pipelines for three published models, against reference figures.

    scripts/bench plans [--quick] [--save] [--only NAME]

V placement, embedding rows filled in, tensor parallelism 1, one sequence per microbatch, 18 bytes of state per
parameter (mixed precision), saved bytes of bfloat16, granules of 64 MLP columns. GPT-3-13B has a plain MLP and a tied
head: a model for cost purposes, which this runtime cannot run. Nothing is measured here: FLOPs are durations, a message
takes 1 % of a rank's forward. The reference figures are of an independent calculation with the same model.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from benchmarks.results import RESULTS, arguments_given, environment, markdown_table, save
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.plan import UnitCost
from hybrid_runtime.planner.analytic import Kept, UnitModel, analytic_line
from hybrid_runtime.planner.candidates import searched_layouts
from hybrid_runtime.planner.evaluate import Evaluated, evaluate
from hybrid_runtime.planner.layout import Layout, Setting
from hybrid_runtime.planner.orders import searched
from hybrid_runtime.planner.residuals import residuals
from hybrid_runtime.planner.rows import fill_rows
from hybrid_runtime.planner.staged import Staged, stage, weigh
from hybrid_runtime.planner.state_bytes import MIXED, StateBytes
from hybrid_runtime.planner.step_model import Collective, Overlap
from hybrid_runtime.planner.work import Line
from hybrid_runtime.predicted import LABELS, Label, TimeInterval
from hybrid_runtime.schedule.step_costs import Hop
from hybrid_runtime.shapes import LlamaShape

MOST_REPLAYED = 600_000_000  # actions in a round of annealing: half a minute of two cores for 8 ranks


@dataclass(frozen=True)
class Published:
    """A published model and the reference figures for 3, 4 and 8 pipeline ranks.

    Attributes:
        mlp_linears: 3 with a gate, 2 without.
        memory_imbalance: max/mean - 1 in %, by (ranks, microbatches in flight).
        utilisation: 1 - bubble in % by (ranks, microbatches of a step), with one microbatch more in flight than ranks.
    """

    name: str
    shape: LlamaShape
    sequence_length: int
    mlp_linears: int
    memory_imbalance: Mapping[tuple[int, int], float]
    utilisation: Mapping[tuple[int, int], float]


def _shape(layers: int, hidden: int, kv: int, ffn: int, vocab: int, *, tied: bool = False) -> LlamaShape:
    return LlamaShape(
        vocab_size=vocab,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=hidden // 128,
        num_kv_heads=kv // 128,
        ffn_size=ffn,
        head_dim=128,
        tie_embeddings=tied,
    )


MODELS = (
    Published(
        "Llama-3-8B",
        _shape(32, 4096, 1024, 14336, 128256),
        4096,
        3,
        {(3, 3): 0.002, (3, 4): 0.002, (4, 4): 0.002, (4, 5): 0.003, (8, 8): 0.135, (8, 9): 0.646},
        {(3, 12): 97.6, (4, 16): 97.4, (8, 32): 95.0, (8, 40): 95.3},
    ),
    Published(
        "Qwen2.5-7B",
        _shape(28, 3584, 512, 18944, 152064),
        4096,
        3,
        {(3, 3): 0.002, (3, 4): 0.001, (4, 4): 0.003, (4, 5): 0.002, (8, 8): 0.004, (8, 9): 0.002},
        {(3, 12): 97.8, (4, 16): 97.0, (8, 32): 94.8, (8, 40): 95.1},
    ),
    Published(
        "GPT-3-13B",
        _shape(40, 5120, 5120, 20480, 50304, tied=True),
        2048,
        2,
        {(3, 3): 0.07, (3, 4): 0.15, (4, 4): 0.20, (4, 5): 0.29, (8, 8): 0.73, (8, 9): 0.81},
        {(3, 12): 97.5, (4, 16): 97.5, (8, 32): 96.4},
    ),
)


def unit_models(model: Published, *, head_w_deferred: bool) -> list[UnitModel]:
    """Every unit for one sequence: FLOPs without norms, saved bytes in bfloat16, logits once more in float32.

    Args:
        head_w_deferred: the head's weight gradient waits with the gradient of its logits; else it is a part of I.
    """
    shape, tokens = model.shape, model.sequence_length
    h, kv, f, v = shape.hidden_size, shape.kv_size, shape.ffn_size, shape.vocab_size
    q, mlp, core = 2 * h * h + 2 * h * kv, model.mlp_linears * h * f, 2 * tokens * h
    again = 2 * h * tokens

    def unit(name: str, forward: int, input_grad: int, weight_grad: int, parameters: int, parts: int = 1) -> UnitCost:
        flops = [tokens * one for one in (forward, input_grad, weight_grad)]
        return UnitCost(
            name=name,
            forward_flops=flops[0],
            input_grad_flops=flops[1],
            weight_grad_flops=flops[2],
            parameters=parameters,
            parts=parts,
        )

    units: list[UnitModel] = [(unit("embedding", 0, 0, 0, v * h), Kept(0, 0, 0))]
    for k in range(shape.num_layers):
        attention = unit(f"{k}.attn", 2 * q + core, 2 * q + 5 * core // 2, 2 * q, q)
        units.append((attention, Kept(2 * again, again, (4 * h + 4 * kv) * tokens)))
        gated = unit(f"{k}.mlp", 2 * mlp, 2 * mlp, 2 * mlp, mlp, f)
        units.append((gated, Kept(2 * again, again, 2 * model.mlp_linears * f * tokens)))
    own = 0 if shape.tie_embeddings else v * h
    linear = 2 * v * h
    kept = (6 * v + 4 * h) * tokens
    if head_w_deferred:
        units.append((unit("head", linear, linear, linear, own), Kept(0, 0, kept, Fraction(2 * v * tokens, kept))))
    else:
        units.append((unit("head", linear, 2 * linear, 0, own), Kept(0, 0, kept, Fraction(0))))
    return units


@dataclass(frozen=True)
class Reference:
    """A `StepModel` in FLOPs, for so many pipeline ranks."""

    model: Published
    pp_degree: int
    head_w_deferred: bool = False

    fingerprint: Mapping[str, str] = None  # type: ignore[assignment]
    notes: tuple[str, ...] = ()
    action_ns: int = 0
    step_ns: int = 0

    @property
    def overlap(self) -> Overlap:
        return Overlap()

    @property
    def source(self) -> Literal["analytic", "calibration", "records"]:
        return "analytic"

    @property
    def labels(self) -> Mapping[str, Label]:
        return LABELS["analytic"]

    @property
    def state(self) -> StateBytes:
        return MIXED

    def line(self, tp_degree: int, microbatch_size: int) -> Line:
        assert (tp_degree, microbatch_size) == (1, 1)
        carry = 2 * self.model.shape.hidden_size * self.model.sequence_length
        units = unit_models(self.model, head_w_deferred=self.head_w_deferred)
        return analytic_line(units, 1, carry, time_of=lambda flops: flops, granule=64)

    def collective_ns(self, kind: Collective, ranks: int, num_bytes: int, *, same_host: bool) -> int:
        return 0

    def hop(self, *, same_host: bool) -> Hop:
        return Hop(self.line(1, 1).total.forward // self.pp_degree // 100)

    def post_ns(self, num_bytes: int, *, same_host: bool) -> int:
        return 0

    def optimizer_ns(self, parameters: int) -> int:
        return 0

    def interval(self, p50_ns: int) -> TimeInterval:
        return TimeInterval(p10_ns=p50_ns, p50_ns=p50_ns, p90_ns=p50_ns)


def setting_of(model: Published, pp_degree: int, num_microbatches: int) -> Setting:
    """One replica on so many devices."""
    return Setting(
        model.name, "train", model.shape, num_microbatches, model.sequence_length, False, pp_degree, pp_degree
    )


def layout_of(model: Published, pp_degree: int, num_microbatches: int, in_flight: int) -> Layout:
    """V placement, fractional cuts, rows of an untied embedding on every rank."""
    return Layout(
        Mesh(pp_degree=pp_degree),
        1,
        num_microbatches,
        "auto",
        sharded=not model.shape.tie_embeddings,
        in_flight=in_flight,
    )


@dataclass(frozen=True)
class Balance:
    """Balance of a cut by its schedule's figures: every rank holds so many microbatches, the logits once."""

    staged: Staged
    rows: tuple[int, ...]
    held_bytes: tuple[int, ...]

    @property
    def compute_share_range_pp(self) -> float:
        loads = self.staged.loads
        return 100 * (max(loads) - min(loads)) / sum(loads)

    @property
    def compute_imbalance_percent(self) -> float:
        loads = self.staged.loads
        return 100 * (max(loads) * len(loads) / sum(loads) - 1)

    @property
    def memory_imbalance_percent(self) -> float:
        held = self.held_bytes
        return 100 * (max(held) * len(held) / sum(held) - 1)


def balance(model: Published, pp_degree: int, in_flight: int) -> Balance:
    """The cut, and what every rank then computes and holds."""
    layout = layout_of(model, pp_degree, 10 * pp_degree, in_flight)
    reference, setting = Reference(model, pp_degree), setting_of(model, pp_degree, 10 * pp_degree)
    staged = stage(layout, setting, reference)
    ranks = range(pp_degree)
    held = [weigh(staged.line, layout, reference.state, rank, staged.rank_work(rank), 0) for rank in ranks]
    rows: tuple[int, ...] = ()
    if layout.sharded:
        per_row = Fraction(MIXED.total * model.shape.hidden_size)
        rows = fill_rows(held, model.shape.vocab_size, per_row, 64)
        held = [here + int(count * per_row) for here, count in zip(held, rows)]
    return Balance(staged, rows, tuple(held))


def utilisation(model: Published, pp_degree: int, num_microbatches: int) -> Evaluated:
    """The best of the searches that the planner makes of such a layout; on 8 ranks the head's weight gradient waits."""
    setting = setting_of(model, pp_degree, num_microbatches)
    reference = Reference(model, pp_degree, head_w_deferred=pp_degree > 4)
    layout = layout_of(model, pp_degree, num_microbatches, pp_degree + 1)
    tried = []
    for one in searched_layouts(layout):
        tried.append(evaluate(one, setting, reference, searched(one, setting, reference, MOST_REPLAYED)))
    return max(tried, key=lambda one: (-one.step.bubble, -one.memory_share_range))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the models, prints the tables, and with --save keeps them. Returns 1 when a reference is missed."""
    parser = argparse.ArgumentParser(prog="scripts/bench plans", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="balance only, no schedule is searched")
    parser.add_argument("--save", action="store_true", help="keep the result under benchmarks/")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for --save")
    parser.add_argument("--only", choices=[model.name for model in MODELS], help="one model")
    options = parser.parse_args(arguments)
    chosen = [model for model in MODELS if options.only in (None, model.name)]
    result: dict[str, Any] = {
        "environment": environment(arguments_given(), "plans"),
        "balance": [_balance_case(model, *key) for model in chosen for key in model.memory_imbalance],
        "utilisation": [
            _utilisation_case(model, *key) for model in ([] if options.quick else chosen) for key in model.utilisation
        ],
    }
    table = table_of(result)
    print(table)
    if options.save:
        print(f"saved {save('plans', result, table, options.results).name}")
    return 0 if all(case["met"] for case in (*result["balance"], *result["utilisation"])) else 1


def _balance_case(model: Published, pp_degree: int, in_flight: int) -> dict[str, Any]:
    found = balance(model, pp_degree, in_flight)
    reference = model.memory_imbalance[pp_degree, in_flight]
    return {
        "model": model.name,
        "pp_degree": pp_degree,
        "in_flight": in_flight,
        "compute_imbalance_percent": found.compute_imbalance_percent,
        "compute_share_range_pp": found.compute_share_range_pp,
        "memory_imbalance_percent": found.memory_imbalance_percent,
        "reference_memory_imbalance_percent": reference,
        "rows_on_rank_0": found.rows[0] if found.rows else None,
        "gb_per_rank": sum(found.held_bytes) / len(found.held_bytes) / 1e9,
        "met": found.compute_share_range_pp <= 0.02 and abs(found.memory_imbalance_percent - reference) <= 0.1,
    }


def _utilisation_case(model: Published, pp_degree: int, num_microbatches: int) -> dict[str, Any]:
    start = time.perf_counter()
    found = utilisation(model, pp_degree, num_microbatches)
    search_s = time.perf_counter() - start
    reached = 100 * float(1 - found.step.bubble)
    busy = Fraction(sum(found.step.busy)) / pp_degree
    held = [memory.ledger_peak for memory in found.memory]
    return {
        "model": model.name,
        "pp_degree": pp_degree,
        "num_microbatches": num_microbatches,
        "utilisation_percent": reached,
        "bound_percent": 100 * float(busy / found.bound_ns),
        "reference_utilisation_percent": model.utilisation[pp_degree, num_microbatches],
        "memory_imbalance_percent": 100 * (max(held) * len(held) / sum(held) - 1),
        "gb_of_the_fullest": max(held) / 1e9,
        "search_s": search_s,
        "residuals": residuals(found),
        # the reference is rounded to a tenth
        "met": round(reached, 1) >= model.utilisation[pp_degree, num_microbatches] and search_s <= 120,
    }


def table_of(result: Mapping[str, Any]) -> str:
    """Two tables and the residuals in words."""
    balances = [
        [
            f"{case['model']} {case['pp_degree']}",
            str(case["in_flight"]),
            f"{case['compute_imbalance_percent']:.3f}",
            f"{case['compute_share_range_pp']:.4f}",
            f"{case['memory_imbalance_percent']:.3f}",
            f"{case['reference_memory_imbalance_percent']:.3f}",
            f"{case['rows_on_rank_0'] or '-'}",
            f"{case['gb_per_rank']:.1f}",
            "met" if case["met"] else "missed",
        ]
        for case in result["balance"]
    ]
    header = ["model, ranks", "in flight", "compute, max/mean - 1 %", "share range pp", "memory, max/mean - 1 %"]
    text = markdown_table([*header, "reference %", "rows on rank 0", "GB per rank", "goal"], balances)
    if not result["utilisation"]:
        return text
    utilisations = [
        [
            f"{case['model']} {case['pp_degree']}",
            str(case["num_microbatches"]),
            f"{case['utilisation_percent']:.2f}",
            f"{case['bound_percent']:.2f}",
            f"{case['reference_utilisation_percent']:.1f}",
            f"{case['memory_imbalance_percent']:.2f}",
            f"{case['gb_of_the_fullest']:.1f}",
            f"{case['search_s']:.1f}",
            "met" if case["met"] else "missed",
        ]
        for case in result["utilisation"]
    ]
    header = ["model, ranks", "microbatches", "utilisation %", "bound %", "reference %", "memory, max/mean - 1 %"]
    header += ["GB of the fullest", "s"]
    words = [
        f"* {case['model']}, {case['pp_degree']} ranks, {case['num_microbatches']} microbatches: {sentence}"
        for case in result["utilisation"]
        for sentence in case["residuals"]
    ]
    return "\n".join([text, "", markdown_table([*header, "goal"], utilisations), "", *words])


if __name__ == "__main__":
    raise SystemExit(main())
