"""Run folders of deployments that serve: those of `synthetic`, their steps made rounds of a load."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hybrid_runtime.deployment import Deployment, load_deployment
from hybrid_runtime.mesh import Mesh
from hybrid_runtime.predicted import PredictedStep
from hybrid_runtime.records import read_rank
from hybrid_runtime.run_folder import RunFolder
from hybrid_runtime.serving.load import asked_of
from hybrid_runtime.serving.request_records import RequestRecord, digest_of, to_lines
from tests.verifier.synthetic import MS, Synthetic, deployment, rewrite, steady, write_run

REQUESTS, OUTPUT = 8, 5
Times = Callable[[int, int], tuple[int, int]]  # (step, request) -> (first token, ended) after its arrival, ns


def serving(mesh: Mesh = Mesh(pp_degree=2), **tables: Any) -> Deployment:  # noqa: B008 - frozen
    """A deployment whose requests all come at once."""
    load = {"requests": REQUESTS, "prompt_tokens": [4, 16], "output_tokens": OUTPUT, "concurrency": REQUESTS}
    batch = {"global_batch_size": 8, "microbatch_size": 4, "sequence_length": 32}
    given = {"workload": {"kind": "generate"}, "load": load, "batch": batch, "name": "serving"}
    return deployment(mesh, **{**given, **tables})


def alike(step: int, request: int) -> tuple[int, int]:
    """Every request gets its first token after 2 ms and the others, 1 ms apart."""
    return 2 * MS, (2 + OUTPUT - 1) * MS


def noisy_times(seed: int, mean_ns: int = 2 * MS) -> Times:
    """Exponential first-token times with this median; a token each millisecond after."""
    drawn = random.Random(seed)
    known: dict[tuple[int, int], int] = {}

    def times(step: int, request: int) -> tuple[int, int]:
        first = known.setdefault((step, request), 1 + round(drawn.expovariate(0.6931471805599453) * mean_ns))
        return first, first + (OUTPUT - 1) * MS

    return times


def rounds(ranks: int, steps: int) -> Synthetic:
    """Steps of 100 ms with the tokens of a round; warm-up steps are shorter."""
    return steady([30 * MS] * ranks, steps, tokens=REQUESTS * OUTPUT, window_ns=[100 * MS] * steps, loss=None,
                  grad_norm=None)  # fmt: skip


def write_served(
    folder: Path,
    deployed: Deployment | None = None,
    *,
    prefill_ns: Sequence[int] = (MS, MS),
    decode_ns: Sequence[int] = (MS, MS),
    times: Times = alike,
    steps: int = 120,
    baseline: Deployment | None = None,
    baseline_times: Times = alike,
    predicted: PredictedStep | None = None,
) -> Path:
    """Two ranks that do two prefills and eight decodes in every round, each of the given compute."""
    deployed = deployed or serving()
    ranks = deployed.mesh.world_size
    other = None if baseline is None else rounds(baseline.mesh.world_size, steps)
    own = replace(rounds(ranks, steps), predicted=predicted)
    write_run(folder, own, deployed, baseline=other, baseline_deployed=baseline)
    as_rounds(folder, prefill_ns, decode_ns, times)
    if baseline is not None:
        one = [MS] * baseline.mesh.world_size
        as_rounds(RunFolder(folder).baseline.path, one, one, baseline_times)
    return folder


def as_rounds(folder: Path, prefill_ns: Sequence[int], decode_ns: Sequence[int], times: Times) -> None:
    """Puts items into the steps of a side, and writes its requests."""

    def edit(rank: int, record: dict[str, Any]) -> dict[str, Any]:
        if record["type"] == "step":
            place = record_stage[rank]
            record["spans"] = _spans(place, record["start_ns"], prefill_ns[rank], decode_ns[rank])
            record["waits"] = []
        return record

    files = sorted((folder / "records").glob("rank*.jsonl"))
    record_stage = [read_rank(path).header.pp for path in files]
    rewrite(folder, edit)
    deployed = load_deployment(RunFolder(folder).deployment)
    steps = read_rank(files[0]).steps
    lines = to_lines(record for step in steps for record in requests_of(step.step, step.start_ns, deployed, times))
    RunFolder(folder).requests.write_text(lines)


def _spans(stage: int, start_ns: int, prefill_ns: int, decode_ns: int) -> list[list[Any]]:
    spans, now = [], start_ns + 1000
    items = [("P", 0), ("P", 1), *(("D", number % 2) for number in range(8))]
    for kind, microbatch in items:
        length = prefill_ns if kind == "P" else decode_ns
        spans.append([f"{stage}{kind}{microbatch}", now, now + length, length, 0])
        now += length + 1000
    return spans


def requests_of(step: int, start_ns: int, deployed: Deployment, times: Times) -> list[RequestRecord]:
    """Every request of a round that begins 100 ns after its step."""
    began = start_ns + 100
    return [
        RequestRecord(
            step=step,
            id=number,
            arrival_ns=began + asked.arrival_ns,
            admitted_ns=began + asked.arrival_ns,
            first_token_ns=began + asked.arrival_ns + times(step, number)[0],
            ended_ns=began + asked.arrival_ns + times(step, number)[1],
            prompt_tokens=asked.prompt_tokens or 0,
            output_tokens=OUTPUT,
            digest=digest_of([number]),
            first_token_id=number,
            end="length",
        )
        for number, asked in enumerate(asked_of(deployed))
    ]
