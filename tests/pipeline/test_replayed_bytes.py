"""What a rank holds at its worst, by the byte ledger of a real step, is what the replay says.

The replay's bytes come from one microbatch on its own: what each of its actions keeps, frees and needs in between. A
Llama on three gloo ranks, of which the schedules make very different pipelines. Only the batch itself is not the sum
of its microbatches: it is one storage, which the ends of the pipeline hold whole. And where two stages of one rank are
cut inside a unit and compute again, what they hand on is counted in both for a moment.
"""

from __future__ import annotations

from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import pytest
import torch

from hybrid_runtime.comm.groups import Groups
from hybrid_runtime.job import run_step
from hybrid_runtime.job_orders import Order
from hybrid_runtime.job_parts import Built, Parts, assemble, build, join_mesh
from hybrid_runtime.models.build import model_costs, model_units
from hybrid_runtime.plan import Plan
from hybrid_runtime.planner.make import make_plan
from hybrid_runtime.schedule.actions import Kind, parse_action, parse_actions
from hybrid_runtime.schedule.replay import replay_step
from hybrid_runtime.schedule.step_costs import ActionBytes, StepCosts
from hybrid_runtime.telemetry.ledger import ByteLedger
from hybrid_runtime.telemetry.recorder import NullRecorder
from tests.parity import deployment, source
from tests.ranks import run_ranks

PP_DEGREE, NUM_LAYERS = 3, 6
# Cuts inside units, one of them between the two stages of one rank, which then share what they hand on.
PIECES = [
    "embedding..0.mlp[:64]", "0.mlp[64:]..1.mlp", "2.attn..2.mlp[:64]",
    "2.mlp[64:]..3.mlp", "4.attn[:1]", "4.attn[1:]..head",
]  # fmt: skip
CASES: tuple[tuple[str, str | list[str], str], ...] = (
    ("1f1b", "even", "none"), ("interleaved_1f1b", "even", "none"), ("zb_v", "even", "none"),
    ("v_half", "even", "none"), ("zb_v", PIECES, "none"), ("1f1b", "even", "full"), ("zb_v", PIECES, "selective"),
    ("v_half", "even", "full"),
)  # fmt: skip
CPU = torch.device("cpu")


class Scales(NullRecorder):
    """Weighs every action on its own: bytes kept, freed and needed in between, by its text."""

    def __init__(self, ledger: ByteLedger) -> None:
        super().__init__(CPU)
        self.found: dict[str, tuple[int, int, int]] = {}
        self._ledger = ledger
        self._watch = ExitStack()
        self._before = 0

    def begin_span(self, name: str) -> None:
        super().begin_span(name)
        self._before = self._ledger.in_use.activations
        self._watch.enter_context(self._ledger.watching())

    def end_span(self) -> None:
        self._watch.close()
        before, after, peak = self._before, self._ledger.in_use.activations, self._ledger.peaks.activations
        kept, freed = max(0, after - before), max(0, before - after)
        self.found[self.current] = kept, freed, peak - before - kept


def parts_of(
    schedule: str, cuts: str | list[str], recompute: str, num_microbatches: int, weigh: bool
) -> tuple[Parts, Built, Groups, Scales | None]:
    settings = deployment(
        model={"num_layers": NUM_LAYERS, "hidden_size": 128, "ffn_size": 192},
        parallel={"pp_degree": PP_DEGREE},
        pipeline={"schedule": schedule, "cuts": cuts, "recompute": recompute},
        batch={"global_batch_size": num_microbatches, "microbatch_size": 1, "sequence_length": 16},
    )
    specs = model_units(settings.model, settings.shape)
    plan = make_plan(settings, model_costs(settings, specs))
    groups = join_mesh(plan, specs, device=CPU, backend="gloo", timeout=timedelta(seconds=60))
    built = build(settings, plan, specs, groups)
    scales = Scales(built.ledger) if weigh else None
    return assemble(settings, plan, groups, built, source(), scales or NullRecorder(CPU)), built, groups, scales


def weighed(schedule: str, cuts: str | list[str], recompute: str) -> ActionBytes:
    """Bytes of all ranks' actions, from a step of one microbatch. The second step's: the first one makes buffers."""
    parts, _, groups, scales = parts_of(schedule, cuts, recompute, 1, weigh=True)
    assert scales is not None
    for step in range(2):
        run_step(parts, Order(step, step))
    kept, freed, temporary = dict[Any, int](), dict[Any, int](), dict[Any, int]()
    everyone: list[Any] = groups.gather_objects(scales.found)
    for name, figures in (item for found in everyone for item in found.items() if item[0][0].isdigit()):
        action = parse_action(name)
        key = action.stage, action.kind
        kept[key], freed[key], temporary[key] = figures
    return ActionBytes(kept, freed, temporary)


def executed_peaks(
    schedule: str, cuts: str | list[str], recompute: str, num_microbatches: int
) -> tuple[Plan, list[int]]:
    """Most bytes of activations that each rank held in a whole step."""
    parts, built, groups, _ = parts_of(schedule, cuts, recompute, num_microbatches, weigh=False)
    run_step(parts, Order(0, 0))
    with built.ledger.watching():
        run_step(parts, Order(1, 1))
    peaks: list[Any] = groups.gather_objects(built.ledger.peaks.activations)
    return parts.plan, peaks


def compare(rank: int) -> None:
    for schedule, cuts, recompute in CASES:
        action_bytes = weighed(schedule, cuts, recompute)
        plan, executed = executed_peaks(schedule, cuts, recompute, 2 * PP_DEGREE)
        lists = list(map(parse_actions, plan.actions))
        durations = {(stage, kind): 1 for stage in range(len(plan.stages)) for kind in (Kind.F, Kind.I, Kind.W, Kind.B)}
        step = replay_step(lists, plan.stage_to_rank, StepCosts(durations, action_bytes=action_bytes))
        replayed = [peak.num_bytes for peak in step.peaks]
        shared = recompute != "none" and cuts is PIECES
        assert executed == pytest.approx(replayed, rel=0.05 if shared else 0.01), (schedule, recompute)
        ends = {plan.stage_to_rank[0], plan.stage_to_rank[-1]}
        if shared:
            ends.add(2)
        inner = [rank for rank in range(PP_DEGREE) if rank not in ends]
        assert [executed[rank] for rank in inner] == [replayed[rank] for rank in inner], schedule


@pytest.mark.ranks
def test_executed_peak_is_the_replayed_one() -> None:
    run_ranks(PP_DEGREE, compare, timeout_s=120)
