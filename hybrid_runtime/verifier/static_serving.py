"""Static checks of a deployment that serves: requests that fit their slots, caches that fit the device, and what
latencies can be judged by so many requests.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.exact import decimal_text, parse_bytes
from hybrid_runtime.planner.state_bytes import ELEMENT_BYTES
from hybrid_runtime.serving.kv_bytes import kv_cache_bytes
from hybrid_runtime.serving.latencies import QUANTILES
from hybrid_runtime.serving.load import asked_of, clients_of
from hybrid_runtime.verdict import StaticCheck
from hybrid_runtime.verifier.decide_quantile import requests_needed
from hybrid_runtime.verifier.static_devices import least_device_bytes
from hybrid_runtime.verifier.static_rows import Facts, amount, row, undecided


def serving_rows(facts: Facts) -> Iterator[StaticCheck]:
    """Rows about requests and caches; nothing where no requests are served or [batch] is not given."""
    deployment = facts.deployment
    if not deployment.serves or deployment.batch is None:
        return
    yield requests_fit(deployment)
    yield kv_cache(facts)
    if deployment.targets.latency_limits:
        yield enough_requests(deployment)


def requests_fit(deployment: Deployment) -> StaticCheck:
    """Every prompt and its answer fit one slot of the cache."""
    load, batch = deployment.load, deployment.batch
    assert load is not None
    assert batch is not None
    clients = clients_of(deployment)
    asked = f"{clients} clients" if clients else f"{load.rate_per_s:f} requests/s, Poisson"
    requirement = f"{amount(load.requests, 'request')} a round ({asked}) fit slots of {batch.sequence_length} tokens"
    known = [
        (one.prompt_tokens, one.most_tokens)
        for one in asked_of(deployment)
        if one.prompt_tokens is not None and one.most_tokens is not None
    ]
    if not known:
        detail = "prompts stand in a file; each is measured when a run reads them, before any rank starts"
        return undecided("requests_fit", requirement, "not_given", detail)
    prompt, answer = max(known, key=sum)
    longest = prompt + answer
    problems = []
    if longest > batch.sequence_length:
        problems.append(
            f"{prompt} tokens of prompt and {answer} of answer are {longest}; set sequence_length to {longest}, or "
            "ask for less"
        )
    return row("requests_fit", requirement, problems, f"the longest has {prompt} + {answer} = {longest} tokens")


def kv_cache(facts: Facts) -> StaticCheck:
    """Keys and values of all slots, beside the parameters, fit on the device where that is stated."""
    batch, memory = facts.deployment.batch, facts.deployment.hardware.memory_per_device
    assert batch is not None
    requirement = f"keys and values of {batch.global_batch_size} sequences of {batch.sequence_length} tokens"
    held = rank_cache_bytes(facts)
    if not held:
        return undecided("kv_cache", requirement, "not_given", "needs [model] and valid cuts")
    shown = "/".join(_megabytes(size) for size in held[:8]) + ("/..." if len(held) > 8 else "")
    detail = f"{shown} MB (10^6) per rank of each stage"
    states = least_device_bytes(facts)
    if memory is None or states is None:
        return row("kv_cache", requirement, [], detail)
    needed, there = max(held) + states, parse_bytes(memory)
    problems = []
    if needed > there:
        problems.append(
            f"{detail} and at most {_megabytes(states)} MB of parameters are {_megabytes(needed)} MB, and a device has "
            f"{memory}; lower global_batch_size or sequence_length, or raise tp_degree or pp_degree"
        )
    return row("kv_cache", requirement, problems, f"{detail}, beside the parameters within {memory}")


def rank_cache_bytes(facts: Facts) -> tuple[int, ...]:
    """Bytes of the cache on a tensor-parallel rank of each pipeline rank; empty where stages are not known."""
    deployment, shape = facts.deployment, facts.shape
    if shape is None or deployment.batch is None or deployment.model is None or facts.stages is None:
        return ()
    of_stages = [
        kv_cache_bytes(
            stage,
            shape,
            num_slots=deployment.batch.global_batch_size,
            capacity=deployment.batch.sequence_length,
            tp_degree=deployment.mesh.tp_degree,
            element_bytes=ELEMENT_BYTES[deployment.model.dtype],
        )
        for stage in facts.stages
    ]
    return facts.per_rank(of_stages)


def enough_requests(deployment: Deployment) -> StaticCheck:
    """The measurement that the file asks for has as many requests as its quantiles need."""
    load, measurement = deployment.load, deployment.measurement
    assert load is not None
    names = {name for limits in deployment.targets.latency_limits.values() for name, _ in limits.given()}
    needed = max(requests_needed(QUANTILES[name]) for name in names)
    most = load.requests * measurement.block_steps * measurement.blocks * 2 ** (measurement.looks - 1)
    requirement = f"{', '.join(name for name in QUANTILES if name in names)} of latencies, from {needed} requests on"
    problems = []
    if most < needed:
        problems.append(
            f"{measurement.blocks} blocks of {measurement.block_steps} rounds of {load.requests} requests give at most "
            f"{most} in {amount(measurement.looks, 'look')}; raise measurement.blocks or load.requests"
        )
    return row("enough_requests", requirement, problems, f"at most {most} in {amount(measurement.looks, 'look')}")


def _megabytes(size: int) -> str:
    return decimal_text(Fraction(size, 10**6), 1)
