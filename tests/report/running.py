"""A run under way, as its files show it: progress lines, headers of records, status files."""

from __future__ import annotations

from typing import Any

from hybrid_runtime.mesh import Mesh
from hybrid_runtime.records import Device, Header, Host, to_line
from hybrid_runtime.report.progress import ProgressLine, RankLoad
from hybrid_runtime.report.roster import Roster
from hybrid_runtime.run_folder import RunFolder
from hybrid_runtime.telemetry.status import StatusFile


def line(step: int, **changes: object) -> ProgressLine:
    values = {"step": step, "steps": 40, "phase": "measure", "loss": 2.5126, "tokens_per_s": 5342.7,
              "step_time_s": 0.3834, "busiest": (3, 91.2), "idlest": (0, 72.1)}  # fmt: skip
    return ProgressLine.model_validate(values | changes)


def load(rank: int, **changes: Any) -> RankLoad:
    return RankLoad(rank, 50.0 + rank, 20.0, 3_565_158, 890.5)._replace(**changes)


def write_members(folder: RunFolder, mesh: Mesh, *, host: str = "vm", device: str = "{host}:rank{rank}") -> Roster:
    """The header and status of every rank, each in the middle of a forward."""
    folder.create()
    for place in mesh.places():
        header = Header(
            plan_fingerprint="p", deployment_fingerprint="d", rank=place.rank, world_size=mesh.world_size,
            dp=place.dp, pp=place.pp, tp=place.tp, stages=(place.pp,),
            device=Device(kind="cpu", id=device.format(host=host, rank=place.rank), name="CPU", owned=False,
                          total_bytes=None),
            host=Host(name=host, affinity=(0,), available_cores=2, threads_per_rank=1,
                      local_world_size=mesh.world_size),
            backend="gloo", clock="wall", clock_offset_ns=0, clock_uncertainty_ns=0, flops_per_step=1,
            flops_by_kind={}, started_utc="", versions={}, environment={},
        )  # fmt: skip
        (folder.records / f"rank{place.rank}.jsonl").write_text(to_line(header))
        status = StatusFile(folder.status / f"rank{place.rank}", place.rank, header.stages)
        status.step(7)
        status.doing(f"{place.pp}F{place.rank}")
        status.close()
    return Roster(folder)
