"""Whether the ranks of all machines see one folder, before anything is trusted to it."""

from __future__ import annotations

import uuid
from pathlib import Path

from hybrid_runtime.comm.groups import Groups


def first_blind_rank(folder: Path, groups: Groups) -> int | None:
    """The first rank for which `folder` is not the folder that rank 0 sees under this name; None where all see it.

    Every rank calls it; rank 0 must be able to write there.
    """
    token = folder / f".shared-{groups.gather_objects(uuid.uuid4().hex)[0]}"
    if groups.place.rank == 0:
        token.write_text("")
    groups.barrier()
    seen = groups.gather_objects(token.exists())
    if groups.place.rank == 0:
        token.unlink()
    return seen.index(False) if False in seen else None
