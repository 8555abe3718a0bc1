"""What transformers answers, and the runtime's ranks that must answer the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from hybrid_runtime.comm.axis import Axis
from hybrid_runtime.comm.collectives import all_gather_stack
from hybrid_runtime.comm.groups import Groups
from hybrid_runtime.deployment import Deployment, parse_deployment
from hybrid_runtime.inference.engine import Engine, build_engine
from hybrid_runtime.inference.sampling import sample
from hybrid_runtime.job_parts import Built, build, join_mesh
from hybrid_runtime.models.build import model_costs, model_units
from hybrid_runtime.planner.make import make_plan
from hybrid_runtime.serving.batcher import batcher_of
from hybrid_runtime.serving.kv_bytes import kv_cache_bytes
from hybrid_runtime.serving.requests import Answer, Request, Row, Sampling
from hybrid_runtime.telemetry.recorder import NullRecorder
from tests.models.hugging_face_models import SIZES, transformers_or_skip

CPU = torch.device("cpu")
CAPACITY = 32
LENGTHS = ((1, 6), (5, 9), (13, 4), (2, 12), (7, 1), (16, 5), (1, 3), (6, 7))  # of prompts and answers


class Case(NamedTuple):
    """One deployment of a model."""

    model: str
    tp: int
    pp: int
    chunk_tokens: int | None = None
    slots: int = 4
    microbatch_size: int = 2
    cuts: str | list[str] = "even"
    items_in_flight: int | None = None


@contextmanager
def one_thread() -> Iterator[None]:
    """Of torch, as every rank has; on a busy machine two wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def alone() -> Iterator[None]:
    """This process is the only rank."""
    with one_thread():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def requests() -> list[Request]:
    """More of them than any case has slots, of different lengths."""
    random = torch.Generator().manual_seed(3)
    prompts = [torch.randint(0, SIZES["vocab_size"], (length,), generator=random).tolist() for length, _ in LENGTHS]
    return [Request(number, tuple(prompt), new) for number, (prompt, (_, new)) in enumerate(zip(prompts, LENGTHS))]


class Given:
    """A source whose requests come one after another, or all at once, and with `clients` so many at a time."""

    def __init__(self, asked: Sequence[Request], *, clients: int | None = None, every_ns: int = 0) -> None:
        self._left = list(asked)
        self._to_end = len(asked)
        self._clients = clients or len(asked)
        self._every_ns = every_ns
        self._come = 0

    def due(self, now_ns: int) -> list[Request]:
        found = []
        while self._left and self._clients and now_ns >= self._come * self._every_ns:
            found.append(self._left.pop(0))
            self._clients -= 1
            self._come += 1
        return found

    @property
    def next_ns(self) -> int | None:
        return self._come * self._every_ns if self._every_ns and self._left else None

    @property
    def is_exhausted(self) -> bool:
        return self._to_end == 0

    def ended(self, answer: Answer, now_ns: int) -> None:
        self._to_end -= 1
        self._clients += 1


def expected(folder: Path) -> list[tuple[tuple[int, ...], Tensor]]:
    """By request: transformers' greedy answer, and the logits (answer, V) that it was taken from."""
    model = transformers_or_skip().AutoModelForCausalLM.from_pretrained(folder).eval()
    found = []
    for request in requests():
        prompt = torch.tensor([request.prompt])
        new = {"max_new_tokens": request.max_new_tokens, "min_new_tokens": request.max_new_tokens}
        answer = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, pad_token_id=0, eos_token_id=None, **new
        )
        with torch.no_grad():
            logits = model(answer).logits[0, len(request.prompt) - 1 : -1]
        found.append((tuple(answer[0, len(request.prompt) :].tolist()), logits))
    return found


def deployment(case: Case, root: Path, **tables: Any) -> Deployment:
    folder = root / case.model
    values: dict[str, Any] = {
        "name": "served",
        "model": {"hf_config": str(folder / "config.json"), "weights": str(folder)},
        "parallel": {"tp_degree": case.tp, "pp_degree": case.pp},
        "pipeline": {"cuts": case.cuts},
        "batch": {
            "global_batch_size": case.slots,
            "microbatch_size": case.microbatch_size,
            "sequence_length": CAPACITY,
            "prefill_chunk_tokens": case.chunk_tokens,
            "items_in_flight": case.items_in_flight,
        },
        "workload": {"kind": "generate"},
        "load": {},
        "hardware": {"device": "cpu", "oversubscribe": True},
    }
    values["batch"] = {name: value for name, value in values["batch"].items() if value is not None}
    return parse_deployment(values | tables, source="test")


def engine_of(settings: Deployment) -> tuple[Engine, Built, Groups]:
    """This rank's; every rank of the mesh calls it."""
    specs = model_units(settings.model, settings.shape)
    plan = make_plan(settings, model_costs(settings, specs))
    groups = join_mesh(plan, specs, device=CPU, backend="gloo", timeout=timedelta(seconds=1200))
    built = build(settings, plan, specs, groups)
    return build_engine(settings, plan, built.units, groups, NullRecorder(CPU), built.ledger), built, groups


class ComparedLogits:
    """A sampler that compares the logits it is given with those of transformers."""

    def __init__(self, logits: Sequence[Tensor]) -> None:
        self._logits = logits
        self.compared = 0

    def __call__(
        self, logits_Rv: Tensor, rows: Sequence[Row], samplings: Sequence[Sampling], vocab_size: int, axis: Axis
    ) -> list[int]:
        whole = all_gather_stack(logits_Rv, axis).transpose(0, 1).reshape(len(rows), -1)[:, :vocab_size]
        for row, logits_V in zip(rows, whole):
            torch.testing.assert_close(logits_V, self._logits[row.request][row.answer_index], rtol=0, atol=1e-4)
        self.compared += len(rows)
        return sample(logits_Rv, rows, samplings, vocab_size, axis)


def run_case(case: Case, root: Path) -> None:
    """Three rounds on the same caches; on every rank."""
    answers, logits = zip(*torch.load(root / f"{case.model}.answers.pt"))
    engine, built, groups = engine_of(deployment(case, root))
    assert built.ledger.memory(watched=False).kv_cache == cache_bytes(case, deployment(case, root), built)
    sampler = engine.sampler = ComparedLogits(logits)
    sources = (
        Given(requests(), clients=case.slots + 1),
        Given(requests()[::-1]),
        Given(requests(), every_ns=2_000_000),
    )
    for source in sources:
        engine.wire.longest_silence_s = 0.0005  # many signs of life in the last round
        if groups.place.rank > 0:
            engine.follow()
            continue
        ended = engine.serve(source, batcher_of(deployment(case, root)))
        assert {answer.request.id: answer.tokens for answer in ended} == dict(enumerate(answers)), case
        assert {answer.end for answer in ended} == {"length"}
    assert built.ledger.in_use.buffers <= carry_bytes(deployment(case, root)), "of the newest carry alone"
    is_last = groups.place.pp == case.pp - 1
    assert sampler.compared == (len(sources) * sum(map(len, answers)) if is_last else 0)


def carry_bytes(settings: Deployment) -> int:
    """Of an item of as many tokens as a cache has, handed on inside a unit (two tensors): no item here has more."""
    assert settings.shape is not None
    return 2 * CAPACITY * settings.shape.hidden_size * 4


def cache_bytes(case: Case, settings: Deployment, built: Built) -> int:
    """By the formula, of the units of a rank."""
    assert settings.shape is not None
    return kv_cache_bytes(
        built.units, settings.shape, num_slots=case.slots, capacity=CAPACITY, tp_degree=case.tp, element_bytes=4
    )
