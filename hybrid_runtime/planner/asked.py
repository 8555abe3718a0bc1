"""What `plan` will ask a calibration for: units at which tensor-parallel degrees and microbatch sizes.

the file's own microbatch size, at every degree     first: without it there is no plan of the file itself
baselines: all of a replica's batch at once, m = p  what a plan is compared with
every other size of the search, small ones first

and at the file's own microbatch size, what of their activations units may forget and compute again.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.deployment_fields import RecomputeKind
from hybrid_runtime.errors import PlanError
from hybrid_runtime.mesh import Mesh, divisors
from hybrid_runtime.planner.candidates import Space, layouts, meshes
from hybrid_runtime.planner.layout import Layout, Setting
from hybrid_runtime.planner.request import forgotten_kinds, setting_of, space_of

Asked = tuple[int, int]  # tp_degree, microbatch_size


def devices_of(deployment: Deployment) -> int:
    """Devices that are planned for."""
    return deployment.search.devices or deployment.hardware.devices or deployment.mesh.world_size


def asked_of(deployment: Deployment) -> tuple[Asked, ...]:
    """Every pair that is asked for, the most important first: the file's own; only those of what is not searched."""
    batch, mesh = deployment.batch, deployment.mesh
    assert batch is not None
    own = (mesh.tp_degree, batch.microbatch_size)
    try:
        space, setting = space_of(deployment), setting_of(deployment)
    except PlanError:  # a user's own units, or lists from a file: nothing is searched
        sizes = (batch.microbatch_size, *_of_baselines(mesh, batch.global_batch_size))
        return tuple(dict.fromkeys([own, *((tp, size) for size in sizes for tp in {mesh.tp_degree, 1})]))
    possible = [found for found in meshes(space, setting) if isinstance(found, Mesh)]
    degrees = list(dict.fromkeys([mesh.tp_degree, *(one.tp_degree for one in possible), 1]))
    baselines = ((one.tp_degree, size) for one in possible for size in _of_baselines(one, batch.global_batch_size))
    searched = sorted(_searched(space, setting), key=lambda pair: (pair[1], pair[0]))
    only_replicas = sorted((1, size) for size in _divisors_of_share(batch.global_batch_size, setting.num_devices))
    every_degree = ((tp, batch.microbatch_size) for tp in degrees)
    return tuple(dict.fromkeys(chain([own], every_degree, baselines, searched, only_replicas)))


def forgetting_asked_of(deployment: Deployment) -> tuple[RecomputeKind, ...]:
    """What units may forget; nothing where nobody plans with it: a user's own units."""
    return tuple(kind for kind in forgotten_kinds(deployment) if kind != "none" and deployment.shape is not None)


def sharing_asked(deployment: Deployment) -> bool:
    """Whether replicas share the optimizer's state, or may be made to."""
    search, parallel = deployment.search, deployment.parallel
    replicas = parallel.dp_degree > 1 or "dp_degree" in search.vary
    return replicas and (parallel.shard_optimizer or "shard_optimizer" in search.vary)


def _of_baselines(mesh: Mesh, global_batch_size: int) -> Iterator[int]:
    """Microbatch sizes of "m = p" and of the naive pipeline (compared.py)."""
    for count in (mesh.pp_degree, 1):
        size, rest = divmod(global_batch_size, mesh.dp_degree * count)
        if size and not rest:
            yield size


def _searched(space: Space, setting: Setting) -> set[Asked]:
    found = (layout for layout in layouts(space, setting) if isinstance(layout, Layout))
    return {(layout.mesh.tp_degree, layout.microbatch_size) for layout in found}


def _divisors_of_share(global_batch_size: int, replicas: int) -> list[int]:
    share, rest = divmod(global_batch_size, replicas)
    return [] if rest or not share else divisors(share)
