"""Which items `plan` will ask a serving deployment's calibration for: chunks of prompts, and decodes, by their sizes.

    prefill   one row of 1, 4, 16, ... tokens up to all prompts of a microbatch, at the begin of a prompt and behind one
    decode    1, 2, 4, ... rows up to a microbatch, of short sequences and of full ones

Between two sizes a time is on the straight line; the cores' part of attention grows with pairs of query and key.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.planner.asked import devices_of
from hybrid_runtime.planner.candidates import meshes
from hybrid_runtime.planner.request import setting_of, space_of
from hybrid_runtime.serving.load import traffic_of
from hybrid_runtime.serving.requests import ItemKind

MOST_TOKENS = 4096  # of a measured prefill; longer ones are taken as proportional


class AskedItem(NamedTuple):
    """An item of equal rows, of `length` tokens each behind `start` cached ones."""

    kind: ItemKind
    rows: int
    start: int
    length: int


def asked_items(deployment: Deployment) -> tuple[AskedItem, ...]:
    """Sizes that bracket whatever a plan of the deployment asks for."""
    batch = deployment.batch
    assert batch is not None
    capacity, rows_at_once = batch.sequence_length, asked_rows(deployment)[-1]
    longest = longest_prompt(deployment)
    most = min(MOST_TOKENS, max(2, longest * rows_at_once))
    return tuple(dict.fromkeys([*_prefills(most, longest, capacity), *_decodes(rows_at_once, capacity)]))


def asked_rows(deployment: Deployment) -> tuple[int, ...]:
    """The fewest rows of an item, and the most."""
    batch = deployment.batch
    assert batch is not None
    most = batch.global_batch_size if "microbatch_size" in deployment.search.vary else batch.microbatch_size
    return (1, most) if most > 1 else (1,)


def longest_prompt(deployment: Deployment) -> int:
    """Tokens of the load's longest prompt."""
    return max(len(request.prompt) for request in traffic_of(deployment).requests)


def _prefills(most: int, longest: int, capacity: int) -> Iterator[AskedItem]:
    for tokens in _growing(min(most, longest), 4):
        yield AskedItem("prefill", 1, 0, tokens)
        behind = capacity - 1 - tokens
        if behind > 0:
            yield AskedItem("prefill", 1, behind, tokens)
    if most > longest:  # several prompts in one item
        yield AskedItem("prefill", most // longest, 0, longest)


def _decodes(rows_at_once: int, capacity: int) -> Iterator[AskedItem]:
    for rows in _growing(rows_at_once, 2):
        yield AskedItem("decode", rows, min(7, capacity - 2), 1)
        yield AskedItem("decode", rows, capacity - 2, 1)


def _growing(most: int, factor: int) -> list[int]:
    """1, factor, factor^2, ..., and the most."""
    sizes = [1]
    while sizes[-1] * factor < most:
        sizes.append(sizes[-1] * factor)
    return sizes if most == 1 else [*sizes, most]


def asked_degrees(deployment: Deployment) -> tuple[int, ...]:
    """Tensor-parallel degrees that a plan may have, the file's own first."""
    space, setting = space_of(deployment), setting_of(deployment)
    found = (mesh.tp_degree for mesh in meshes(space, setting) if isinstance(mesh, Mesh))
    degrees = [deployment.mesh.tp_degree, *found]
    return tuple(degree for degree in dict.fromkeys(degrees) if degree <= devices_of(deployment))
