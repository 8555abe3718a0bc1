"""What a run does when the loss or a gradient is not finite: name the first unit that made it so, then stop or skip.

    norm finite?     every rank has the same norm, to which a loss that is not finite has been added: all decide alike
    no: no update    parameters and optimizer stay as they were
        look         all ranks repeat the step's actions, with the same random numbers, and look at every unit
        stop | skip  [faults] non_finite

A step that is fine costs one look at the norm before the update.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from hybrid_runtime.deployment_faults import Faults
from hybrid_runtime.errors import NotFinite
from hybrid_runtime.job_orders import Order
from hybrid_runtime.job_parts import Built, Parts
from hybrid_runtime.job_progress import RankNumbers
from hybrid_runtime.pipeline.not_finite import Blame, Inspection
from hybrid_runtime.plan import Plan
from hybrid_runtime.run_folder import RunFolder
from hybrid_runtime.tensor_parallel.random_state import Snapshot


@dataclass(slots=True)
class NotFiniteGuard:
    """One rank's; every rank makes the same calls.

    Args:
        faults: stop or skip.
        folder: rank 0 writes down there what was skipped.
    """

    faults: Faults
    built: Built
    folder: RunFolder
    _before: Snapshot | None = None
    _skipped_in_a_row: int = 0

    def begin_step(self) -> None:
        """Remembers the random states, so that the step can be repeated."""
        self._before = self.built.random.snapshot()

    def after_step(self, parts: Parts, order: Order, loss: float | None, numbers: Sequence[RankNumbers]) -> bool:
        """Whether the step's numbers were finite; every rank calls this after every step, outside what is measured.

        Raises:
            NotFinite: they were not, and the policy is to stop (or the step trains nothing, or too many were skipped).
        """
        norms = [rank.grad_norm for rank in numbers if not rank.grad_norm < 0]
        if all(map(math.isfinite, norms)) and (loss is None or math.isfinite(loss)):
            self._skipped_in_a_row = 0
            return True
        words = self._words(parts, order, loss, norms)
        if self.faults.non_finite == "stop" or parts.update is None:
            raise NotFinite(
                f"{words}; stopped without an update, and no checkpoint has these numbers: mend the cause, or set "
                "faults.non_finite = 'skip'"
            )
        if self._skipped_in_a_row >= self.faults.most_skips_in_a_row:
            raise NotFinite(
                f"{words}; the {self._skipped_in_a_row} steps before were skipped already, and nothing is learned any "
                "more: stopped; mend the cause, or raise faults.most_skips_in_a_row"
            )
        self._skipped_in_a_row += 1
        parts.checkpoints.note_skipped()
        if parts.groups.place.rank == 0:
            self._write_down(order, words)
        return False

    def _words(self, parts: Parts, order: Order, loss: float | None, norms: Sequence[float]) -> str:
        """ "rank 1 (...), stage 1, step 7, 1F3, unit 2.mlp: its output is not finite, ...": the same on every rank."""
        what = f"loss {loss}" if loss is not None and not math.isfinite(loss) else f"gradient norm {norms[0]}"
        blamed, more = self._look(parts, order)
        if blamed is None:
            return f"step {order.step}: {what}, and no unit is to blame: {more}"
        place = parts.plan.mesh.place(blamed.rank)
        stage = blamed.action.rstrip("0123456789")[:-1]
        where = f"{place}, stage {stage}, step {order.step}, {blamed.action}, unit {blamed.unit}"
        return f"{where}: {blamed.what}, though what it was given is ({what}{more})"

    def _look(self, parts: Parts, order: Order) -> tuple[Blame | None, str]:
        """Repeats the step's actions; who is to blame, and who else, or why it seems that nobody is."""
        groups, update = parts.groups, parts.update
        assert self._before is not None
        if update is not None:
            update.buckets.zero()
        looks = Inspection(
            self.built.units, _unit_names(parts.plan), _stage_units(parts.plan, groups.place.pp), groups.place
        )
        with self.built.random.replaying(self._before), looks:
            batches, trained = parts.batches, order.trained
            scale = 1.0 / batches.num_targets(trained)
            parts.executor.run_step(batches.microbatches(trained), order.step, loss_scale=scale, watcher=looks)
            if update is not None:
                update.sum_gradients()  # some are under way already
        everyone = cast("list[Blame | None]", groups.gather_objects(min(looks.found, default=None)))
        found = sorted(blame for blame in everyone if blame is not None)
        if not found:
            return None, self._why_nobody(parts)
        first, *others = found
        same = [str(blame.rank) for blame in others if blame[:4] == first[:4]]
        return first, f"; the same on rank {', '.join(same)}" if same else ""

    def _why_nobody(self, parts: Parts) -> str:
        if parts.update is not None and not torch.isfinite(parts.update.gradient_norm()):
            return "gradients of every rank are finite, but not their sum"
        return "repeated, the step came out finite; a device that errs, or a unit that is not deterministic"

    def _write_down(self, order: Order, words: str) -> None:
        print(f"hybrid_runtime: step {order.step} skipped: {words}", file=sys.stderr, flush=True)
        line = json.dumps({"step": order.step, "trained": order.trained, "why": words})
        with self.folder.skipped.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


def is_finite(norm: Tensor) -> bool:
    """Waits for the norm: whether the update may be made has to be known before it is."""
    return bool(torch.isfinite(norm))


def _unit_names(plan: Plan) -> list[str]:
    pieces = [piece for piece in plan.embedding_pieces if piece]
    return [*pieces, *(unit for stage in plan.stages for unit in stage.units)]


def _stage_units(plan: Plan, pp_rank: int) -> dict[int, tuple[str, ...]]:
    return {stage.index: stage.units for stage in plan.stages_of(pp_rank)}
