"""One step of the self-test: every rank does work of known size, one of them a little more (`planted` draws it)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from hybrid_runtime.comm.groups import Groups
from hybrid_runtime.job_orders import Order
from hybrid_runtime.job_progress import RankNumbers, rank_numbers
from hybrid_runtime.planted import BASE_UNITS, part_name, part_units
from hybrid_runtime.records import PLANTED
from hybrid_runtime.telemetry.known_work import KnownWork
from hybrid_runtime.telemetry.recorder import NullRecorder


def with_work(orders: Iterable[Order], device: torch.device) -> Iterator[tuple[Order, KnownWork | None]]:
    """Each order, and for a planted step its work, whose matrices must not be in memory while the model is measured."""
    work = None
    for order in orders:
        work = (work or KnownWork(device)) if order.purpose == PLANTED else None
        yield order, work


def run_planted_step(
    groups: Groups, recorder: NullRecorder, work: KnownWork, order: Order
) -> tuple[None, list[RankNumbers]]:
    """The planted counterpart of `job.run_step`: no loss, and every rank's numbers."""
    ranks = groups.mesh.world_size
    groups.barrier()
    order.begin(recorder)
    with recorder.span(part_name(0)):
        work.run(BASE_UNITS)
    if order.step % ranks == groups.place.rank:  # another rank in every step
        for part, units in enumerate(part_units(ranks), start=1):
            with recorder.span(part_name(part)):
                work.run(units)
    everyone = groups.gather_numbers(rank_numbers(recorder.close_window(), recorder.memory_bytes, None))
    recorder.end_step(tokens=0)
    return None, [RankNumbers(*row) for row in everyone]
