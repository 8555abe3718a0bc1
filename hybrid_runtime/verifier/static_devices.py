"""Static checks of what the deployment asks of the machine: devices, memory, links, axes, and who sits where.

ranks 0 1 | 2 3 | 4 5      tp 2 x pp 3 is six ranks in three pairs;
GPUs  0 1   2              three devices hold one pair and a half
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import combinations, pairwise

from hybrid_runtime.exact import decimal_text, parse_bytes
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.planner.state_bytes import state_bytes
from hybrid_runtime.verdict import Outcome, StaticCheck
from hybrid_runtime.verifier.static_rows import Facts, amount, nearest_plans, row, undecided

_AXIS_WORDS = {
    "tp": "tensor",
    "tensor": "tensor",
    "pp": "pipeline",
    "pipeline": "pipeline",
    "dp": "data",
    "data": "data",
}


def device_rows(facts: Facts) -> Iterator[StaticCheck]:
    """Everything about devices that the file says something about."""
    hardware, declared = facts.deployment.hardware, facts.deployment.declared
    if hardware.devices is not None:
        yield device_count(facts, hardware.devices)
    if hardware.memory_per_device is not None:
        yield device_memory(facts, hardware.memory_per_device)
    if hardware.interconnect is not None:
        yield link_present(facts)
    if declared.strategy is not None:
        yield parallel_axes(facts.deployment.mesh, declared.strategy)
    if hardware.devices is not None or facts.deployment.mesh.world_size > 1:
        yield world_size_product(facts)
    if declared.device_assignment is not None:
        yield rank_device_map(facts, declared.device_assignment)


def device_count(facts: Facts, devices: int) -> StaticCheck:
    """No rank without a device of its own, unless the file allows several ranks on one."""
    mesh, shared = facts.deployment.mesh, facts.deployment.hardware.oversubscribe
    short = mesh.world_size > devices and not shared
    ranks = amount(mesh.world_size, "rank")
    problems = [f"{mesh} is {ranks}; {nearest_plans(facts, devices)}"] if short else []
    detail = f"{mesh} is {ranks}" + (" (oversubscribe: ranks may share devices)" if shared else "")
    return row("device_count", f"{amount(devices, 'device')}, one for every rank", problems, detail)


def device_memory(facts: Facts, memory: str) -> StaticCheck:
    """The bytes that a plan needs at the very least fit on a device."""
    requirement = f"the states of the plan fit into {memory} per device"
    needed = least_device_bytes(facts)
    if needed is None:
        missing = (
            "the units' sizes are known only to their own function"
            if _own_units(facts)
            else "add [model] and valid cuts"
        )
        return undecided("device_memory_bytes", requirement, "not_given", f"no model size is given: {missing}")
    text = f"parameters, gradients and optimizer state alone need {decimal_text(Fraction(needed, 10**9), 3)} GB (10^9)"
    parallel = facts.deployment.parallel
    instead = " or set parallel.shard_optimizer" if parallel.dp_degree > 1 and not parallel.shard_optimizer else ""
    problems = [f"{text} on one device; raise tp_degree or pp_degree{instead}"] if needed > parse_bytes(memory) else []
    return row("device_memory_bytes", requirement, problems, f"{text}; a lower bound: activations come on top")


def least_device_bytes(facts: Facts) -> int | None:
    """Lower bound of the bytes on the fullest device: states of the largest rank's stages, or the mean of devices."""
    deployment, parameters = facts.deployment, facts.per_rank(facts.stage_parameters)
    if deployment.model is None or not parameters:
        return None
    master_weights = deployment.optimizer.master_weights
    held = state_bytes(deployment.model.dtype, deployment.workload.passes, master_weights=master_weights)
    mesh = deployment.mesh
    replicas = mesh.dp_degree if deployment.parallel.shard_optimizer else 1
    largest = max(parameters) // mesh.tp_degree
    mean = sum(parameters) * mesh.dp_degree // (deployment.hardware.devices or mesh.world_size)
    return held.shared_by(replicas).held(max(largest, mean))


def link_present(facts: Facts) -> StaticCheck:
    """Which pairs are linked, and how fast, is stated and covers the plan; whether it is true only a run shows."""
    hardware = facts.deployment.hardware
    requirement = f"{hardware.interconnect} between the devices"
    missing = [name for name in ("link_pairs", "min_link_bandwidth") if getattr(hardware, name) is None]
    problems = _unlinked(facts) if hardware.link_pairs is not None else []
    if problems:
        return row("link_present", requirement, problems, "")
    if missing:
        detail = f"only its presence is claimed; add hardware.{' and hardware.'.join(missing)}"
        return undecided("link_present", requirement, "not_given", detail)
    detail = "the stated pairs cover the plan; whether they are linked, and how fast, only a run can show"
    return undecided("link_present", requirement, "not_measured", detail)


def _unlinked(facts: Facts) -> list[str]:
    deployment = facts.deployment
    pairs, devices = deployment.hardware.link_pairs or [], deployment.hardware.devices
    problems = [f"pair {pair} names one device twice" for pair in pairs if pair[0] == pair[1]]
    if devices is not None:
        problems += [f"pair {pair}: there are devices 0 to {devices - 1}" for pair in pairs if max(pair) >= devices]
    linked = {frozenset(pair) for pair in pairs}
    mesh = deployment.mesh
    if not problems and not deployment.hardware.oversubscribe and mesh.world_size <= 1024:
        unlinked = [pair for pair in _used_pairs(mesh, facts.stage_to_rank) if frozenset(pair) not in linked]
        if unlinked:
            shown = ", ".join(map(str, unlinked[:4])) + (", ..." if len(unlinked) > 4 else "")
            problems.append(f"{mesh} talks over {len(unlinked)} pairs that link_pairs lacks: {shown}")
    return problems


def _used_pairs(mesh: Mesh, stage_to_rank: Sequence[int]) -> list[tuple[int, int]]:
    """Devices that talk: every two of a tensor group or of a rank's replicas, and ranks with stages that follow."""
    inside = [pair for group in (*mesh.tp_groups(), *mesh.dp_groups()) for pair in combinations(group, 2)]
    hops = [(min(pair), max(pair)) for pair in pairwise(stage_to_rank) if pair[0] != pair[1]]
    edges = [(column[one], column[other]) for column in mesh.pp_columns() for one, other in hops]
    return sorted({*inside, *edges})


def parallel_axes(mesh: Mesh, strategy: str) -> StaticCheck:
    """The axes that the strategy names are the axes with a degree above 1."""
    requirement = f"strategy {strategy!r}"
    named = {_AXIS_WORDS[word] for word in re.findall(r"[a-z]+", strategy.lower()) if word in _AXIS_WORDS}
    degrees = {"tensor": mesh.tp_degree, "pipeline": mesh.pp_degree, "data": mesh.dp_degree}
    real = {axis for axis, degree in degrees.items() if degree > 1}
    if not named:
        return undecided("parallel_axes", requirement, "not_given", "names none of the axes tensor, pipeline and data")
    problems = [f"{axis} is named, but its degree is 1" for axis in degrees if axis in named - real]
    problems += [f"{axis} has degree {degrees[axis]} and is not named" for axis in degrees if axis in real - named]
    return row("parallel_axes", requirement, problems, f"the named axes are those of {mesh}; a run shows their traffic")


def world_size_product(facts: Facts) -> StaticCheck:
    """The product of the degrees is the number of devices; with shared devices, no device is left without a rank."""
    mesh, hardware = facts.deployment.mesh, facts.deployment.hardware
    requirement, devices = f"degrees {mesh}", hardware.devices
    product = f"{mesh.tp_degree} * {mesh.pp_degree} * {mesh.dp_degree} = {mesh.world_size}"
    if devices is None:
        detail = f"{product}; the file names no number of devices"
        outcome = Outcome.NOT_APPLICABLE
        return StaticCheck(id="world_size_product", requirement=requirement, outcome=outcome, detail=detail)
    fits = mesh.world_size == devices or (hardware.oversubscribe and mesh.world_size > devices)
    problems = [] if fits else [f"{product}, not {devices}; {nearest_plans(facts, devices)}"]
    return row("world_size_product", requirement, problems, f"{product}, and {amount(devices, 'device')} are there")


def rank_device_map(facts: Facts, assignment: dict[str, list[str]]) -> StaticCheck:
    """Tensor groups tile the devices, each on distinct ones, and every part is on as many devices as share it."""
    deployment, mesh = facts.deployment, facts.deployment.mesh
    count, wanted = len(assignment), deployment.hardware.devices
    copies = mesh.tp_degree * mesh.dp_degree
    holders = Counter(part for parts in assignment.values() for part in set(parts))
    problems = []
    if wanted is not None and count != wanted:
        problems.append(f"{count} devices are assigned, but the deployment is for {wanted}")
    if count % mesh.tp_degree:
        rest = count % mesh.tp_degree
        problems.append(
            f"tensor groups of {mesh.tp_degree} do not tile {count} devices ({count} mod {mesh.tp_degree} = {rest}); "
            f"{nearest_plans(facts, max(count, 1))}"
        )
    wrong = [f"{part} on {found}" for part, found in holders.items() if found != copies]
    if wrong and not deployment.hardware.oversubscribe:
        problems.append(
            f"{mesh} puts every part on {amount(copies, 'device')}, but the assignment has {', '.join(wrong[:4])}"
        )
    problems += [f"{device} holds nothing" for device, parts in assignment.items() if not parts]
    return row(
        "rank_device_map",
        f"assignment to {amount(count, 'device')}",
        problems,
        f"tensor groups of {mesh.tp_degree} tile them",
    )


def _own_units(facts: Facts) -> bool:
    return facts.deployment.model is not None and facts.deployment.model.units is not None
