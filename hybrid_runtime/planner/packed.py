"""What a prediction leaves out where sequences are packed with documents: attention looks back no further than its own.

    whole   1 2 3 4 5 6     packed   1 2 3 | 1 2 3      each token attends to so many: 21 against 12

Units are measured, and their FLOPs counted, with one document per sequence. How long documents are is known to the
data, not to a plan; what it can say is the most that shorter ones take off: attention's core, forward and twice that
backward.
"""

from __future__ import annotations

from collections.abc import Iterator

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.planner.evaluate import Evaluated
from hybrid_runtime.planner.step_model import StepModel

_BACKWARD = 2  # gradients of both factors of each product


def packing(deployment: Deployment, chosen: Evaluated, model: StepModel) -> Iterator[str]:
    """One sentence, where documents are packed."""
    if not deployment.data.pack or deployment.workload.passes != "train":
        return
    layout = chosen.layout
    line = model.line(layout.mesh.tp_degree, layout.microbatch_size)
    core = 0
    for unit in line.units:
        if unit.cost.name.endswith(".attn"):
            again = unit.recomputing("selective").whole  # forgets attention's core, and makes it again
            core += again.backward - unit.whole.backward
    part = (1 + _BACKWARD) * core / max(1, line.total.fused_load)
    yield (
        "data.pack: predicted as if each sequence were one document; attention inside shorter ones takes less, by at "
        f"most {100 * min(1.0, part):.0f} % of all compute (attention's core)"
    )
