"""The engine of one rank: slots used again, memory that does not grow, and what it says when it cannot go on."""

from __future__ import annotations

import gc
import resource
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hybrid_runtime.deployment import Deployment, parse_deployment
from hybrid_runtime.errors import EnvironmentProblem, PlanError, RunError
from hybrid_runtime.inference.descriptor import SIGN_OF_LIFE
from hybrid_runtime.inference.descriptor import decode as decode_item
from hybrid_runtime.inference.engine import Engine, build_engine
from hybrid_runtime.inference.kv_cache import Slots, make_caches
from hybrid_runtime.inference.round import STOPPED_READING
from hybrid_runtime.models.build import model_costs, model_units
from hybrid_runtime.models.llama import AttentionUnit
from hybrid_runtime.models.unit import Microbatch
from hybrid_runtime.planner.make import make_plan
from hybrid_runtime.serving.batcher import batcher_of
from hybrid_runtime.serving.kv_bytes import kv_cache_bytes
from hybrid_runtime.serving.load import Listed
from hybrid_runtime.serving.requests import Answer, Item, Request, Row, Sampling
from hybrid_runtime.telemetry.recorder import NullRecorder
from tests.inference.served import CPU, Given, alone, engine_of

PROMPTS = ([3, 14, 15, 9, 26, 5, 35], [8, 9, 7], [9], [32, 38, 46, 26])


@pytest.fixture(autouse=True)
def one_rank() -> Iterator[None]:
    with alone():
        yield


def deployment(capacity: int = 24, slots: int = 2, **model: Any) -> Deployment:
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_size": 48}
    values = {
        "name": "one",
        "model": {"preset": "tiny", **sizes, **model},
        "batch": {"global_batch_size": slots, "microbatch_size": slots, "sequence_length": capacity},
        "workload": {"kind": "generate", "seed": 5},
        "load": {},
        "hardware": {"device": "cpu"},
    }
    return parse_deployment(values, source="test")


def asked(new_tokens: int = 8) -> list[Request]:
    return [Request(number, tuple(prompt), new_tokens) for number, prompt in enumerate(PROMPTS)]


def answers(engine: Engine, settings: Deployment, requests: list[Request], **more: Any) -> dict[int, tuple[int, ...]]:
    ended = engine.serve(Given(requests), batcher_of(settings), **more)
    return {answer.request.id: answer.tokens for answer in ended}


def attention_units(units: dict[str, nn.Module]) -> list[AttentionUnit]:
    return [unit for unit in units.values() if isinstance(unit, AttentionUnit)]


def test_a_slot_keeps_nothing_of_a_sequence_that_left_nan() -> None:
    """Request 2 has the slot of one of them next, beside a longer sequence: its masked keys are where the nan was."""
    settings = deployment()
    alone = {}
    for request in asked():
        alone |= answers(engine_of(settings)[0], settings, [request])
    engine, built, _ = engine_of(settings)

    class Poison:
        def token(self, request: Request, token: int) -> bool:
            return True

        def ended(self, answer: Answer) -> None:
            slot = answer.request.id
            if slot < 2:  # the first two requests have the slots of their numbers
                written = len(answer.request.prompt) + len(answer.tokens) - 1
                for unit in attention_units(built.units):
                    assert unit.cache is not None
                    assert bool(unit.cache.both[:, slot, :, :written].any(-1).all())
                    assert not bool(unit.cache.both[:, slot, :, written:].any())
                    unit.cache.both[:, slot, :, :written] = torch.nan

    short = [Request(0, PROMPTS[0], 8), Request(1, PROMPTS[1], 2), *asked()[2:]]  # type: ignore[arg-type]
    found = answers(engine, settings, short, listener=Poison())
    assert found == alone | {1: alone[1][:2]}


def test_what_was_in_a_slot_changes_no_bit() -> None:
    settings = deployment()
    engine, _, _ = engine_of(settings)
    assert answers(engine, settings, asked()) == answers(engine, settings, asked())


def test_nothing_grows_over_two_thousand_decode_steps() -> None:
    settings = deployment(capacity=2100, slots=1, num_layers=1)
    engine, built, _ = engine_of(settings)
    (cache,) = [unit.cache for unit in attention_units(built.units)]
    assert cache is not None
    before = built.ledger.memory(watched=False).kv_cache, cache.both.data_ptr()
    found: dict[int, tuple[int, int]] = {}

    class Counting:
        steps = 0

        def token(self, request: Request, token: int) -> bool:
            self.steps += 1
            if self.steps in (100, 2000):
                gc.collect()
                found[self.steps] = len(gc.get_objects()), resident_bytes()
            return True

        def ended(self, answer: Answer) -> None:
            assert answer.end == "length"

    answers(engine, settings, [Request(0, (1,), 2001)], listener=Counting())
    assert found[2000][0] - found[100][0] < 20, "objects"
    assert found[2000][1] - found[100][1] < 4 * 2**20, "resident memory, of which other tests hold some"
    assert (built.ledger.memory(watched=False).kv_cache, cache.both.data_ptr()) == before


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("model", [{}, {"num_kv_heads": 1}, {"dtype": "bfloat16"}, {"head_dim": 6}])
def test_caches_have_the_bytes_of_the_formula(model: dict[str, Any]) -> None:
    settings = deployment(**model)
    _, built, _ = engine_of(settings)
    assert settings.shape is not None
    expected = kv_cache_bytes(
        built.units,
        settings.shape,
        num_slots=2,
        capacity=24,
        tp_degree=1,
        element_bytes=2 if "dtype" in model else 4,
    )
    assert built.ledger.memory(watched=False).kv_cache == expected > 0


def test_half_precision_answers() -> None:
    """Greedy answers of bfloat16 are those of a whole sequence at once, as far as it is sure of them."""
    settings = deployment(dtype="bfloat16")
    engine, built, _ = engine_of(settings)
    found = answers(engine, settings, asked())
    for request in asked():
        whole = torch.tensor([[*request.prompt, *found[request.id]]])
        carry: tuple[Tensor, ...] = ()
        with torch.no_grad():
            for unit in built.units.values():
                carry = unit(carry, Microbatch(whole))
        logits = carry[0][0, len(request.prompt) - 1 : -1].float()
        best, chosen = logits.amax(-1), logits.gather(1, torch.tensor(found[request.id]).unsqueeze(1)).squeeze(1)
        assert bool((best - chosen < 0.02).all())


def test_one_who_stops_reading_is_cancelled_and_the_others_are_not() -> None:
    settings = deployment()
    engine, _, _ = engine_of(settings)
    whole = answers(engine, settings, asked())

    class Leaves:
        def token(self, request: Request, token: int) -> bool:
            return request.id != 1

        def ended(self, answer: Answer) -> None:
            if answer.request.id == 1:
                assert (answer.end, answer.why, answer.tokens) == ("cancelled", STOPPED_READING, whole[1][:1])

    found = answers(engine, settings, asked(), listener=Leaves())
    assert found == whole | {1: whole[1][:1]}


def test_a_request_that_does_not_fit_is_refused_and_the_others_are_answered() -> None:
    settings = deployment()
    engine, _, _ = engine_of(settings)
    bad = [Request(7, (1,) * 20, 5), Request(8, (), 5), Request(9, (50,), 5)]
    ended = engine.serve(Given([*bad, *asked()]), batcher_of(settings))
    by_id = {answer.request.id: answer for answer in ended}
    assert [by_id[number].end for number in (7, 8, 9, 0, 1, 2, 3)] == ["refused"] * 3 + ["length"] * 4


def test_items_are_recorded_by_stage_kind_and_microbatch() -> None:
    settings = deployment()
    settings = settings.model_copy(update={"batch": settings.batch.model_copy(update={"microbatch_size": 1})})  # type: ignore[union-attr]
    engine, _, _ = engine_of(settings)
    names: list[str] = []

    class Noted(NullRecorder):
        def begin_span(self, name: str) -> None:
            names.append(name)

    engine._recorder = Noted(CPU)
    answers(engine, settings, [Request(0, (1, 2), 3), Request(1, (3,), 2)])
    assert names == ["0P0", "0P1", "0D0", "0D1", "0D0"]


def test_an_item_that_fails_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = deployment()
    engine, built, _ = engine_of(settings)

    def fail(carry: object, microbatch: object) -> None:
        raise ArithmeticError("no such number")

    monkeypatch.setattr(built.units["1.mlp"], "forward", fail)
    with pytest.raises(RunError, match=r"rank 0 .*, stage 0, 0P0, unit 1\.mlp: ArithmeticError: no such number"):
        answers(engine, settings, asked())


class SlowPipeline:
    """A wire to stages that answer every item after so long; how often rank 0 begins to wait for one."""

    is_first, is_last, longest_silence_s = True, False, 1.0

    def __init__(self, takes_s: float) -> None:
        self.takes_s = takes_s
        self.there_s: deque[float] = deque()
        self.waits = 0

    def announce(self, item: Item | None) -> None: ...
    def send_carry(self, carry: object) -> None: ...
    def give_sign(self) -> None: ...
    def finish(self) -> None: ...

    def take_carry(self, tokens: int, name: str) -> tuple[Tensor, ...]:
        return ()

    def expect_answer(self) -> None:
        self.there_s.append(time.monotonic() + self.takes_s)

    @contextmanager
    def waiting_for_answer(self) -> Iterator[None]:
        self.waits += 1
        yield

    @property
    def is_answer_there(self) -> bool:
        return time.monotonic() > self.there_s[0]

    def take_answer(self, wanted: int) -> list[int]:
        self.there_s.popleft()
        return [7] * wanted


def test_requests_that_come_while_nothing_can_be_sent_end_no_wait() -> None:
    """Rank 0 waits for the one answer, and says so, although requests arrive meanwhile: else no hang would be found."""
    settings = deployment(slots=1)
    engine, _, _ = engine_of(settings)
    engine.wire = wire = SlowPipeline(0.03)  # type: ignore[assignment]
    coming = [Request(number, (number + 1,), 1, arrival_ns=2_000_000 * number) for number in range(8)]
    ended = engine.serve(Listed(coming), batcher_of(settings))
    assert [answer.request.id for answer in ended] == list(range(8))
    assert wire.waits == 1, "the others come before the first answer, and then no time is known"


def test_a_request_that_can_be_sent_does_not_wait_for_an_answer() -> None:
    settings = deployment(slots=2)
    settings = settings.model_copy(update={"batch": settings.batch.model_copy(update={"items_in_flight": 2})})  # type: ignore[union-attr]
    engine, _, _ = engine_of(settings)
    engine.wire = SlowPipeline(0.3)  # type: ignore[assignment]
    coming = [Request(0, (1,), 1), Request(1, (2,), 1, arrival_ns=5 * 10**7), Request(2, (3,), 1, arrival_ns=4 * 10**8)]
    first, second, _ = engine.serve(Listed(coming), batcher_of(settings))
    assert second.ended_ns - first.ended_ns < 2 * 10**8, "50 ms later, not 300"


class Told:
    """A link to a rank that is to hear what comes; the first number of every message."""

    def __init__(self) -> None:
        self.kinds: list[int] = []

    def send(self, numbers: Sequence[int], at_most: int) -> None:
        self.kinds.append(numbers[0])

    def finish(self) -> None: ...


def test_while_nobody_asks_the_others_hear_that_they_are_to_wait() -> None:
    """Else what they wait for runs out of time; so seldom that it costs nothing."""
    settings = deployment()
    engine, _, _ = engine_of(settings)
    told = Told()
    engine.wire._onward, engine.wire.longest_silence_s = [told], 0.05  # type: ignore[list-item]
    engine.serve(Listed([Request(0, (1,), 1, arrival_ns=3 * 10**8)]), batcher_of(settings))
    *signs, prefill, end = told.kinds
    assert 1 <= len(signs) <= 6
    assert {*signs} == {SIGN_OF_LIFE[0]}
    assert (decode_item([prefill, 0, 0, 0]), decode_item([end, 0, 0, 0])) == (Item("prefill", 0, (), (), ()), None)


def test_caches_that_do_not_fit() -> None:
    class Greedy(nn.Module):
        def make_cache(self, num_slots: int, capacity: int) -> Tensor:
            return torch.empty(num_slots, capacity, 2**40)

    with pytest.raises(EnvironmentProblem, match=r"no memory for the cache of unit '0\.attn': 8 sequences of 4096 tok"):
        make_caches({"0.attn": Greedy()}, 8, 4096)


def test_several_stages_on_a_rank_are_refused() -> None:
    settings = deployment()
    _, built, groups = engine_of(settings)
    plan = make_plan(settings, model_costs(settings, model_units(settings.model, settings.shape)))
    recorder = NullRecorder(CPU)
    two = plan.model_copy(update={"stages": (plan.stages[0], plan.stages[0])})
    with pytest.raises(PlanError, match="one stage on each rank"):
        build_engine(settings, two, built.units, groups, recorder, built.ledger)


def test_slots_know_what_a_new_sequence_finds() -> None:
    slots = Slots(4, CPU)

    def enter(*rows: Row) -> tuple[tuple[int, int], ...]:
        return slots.enter(Item("prefill", 0, rows, (), (Sampling(),) * len(rows))).stale

    assert enter(Row(1, 0, 5, 0, -1), Row(2, 0, 1, 1, 0)) == ()
    assert enter(Row(1, 5, 2, 0, 0)) == ()
    assert enter(Row(1, 0, 1, 3, 0), Row(3, 0, 2, 4, 0)) == ((1, 7),)
    assert enter(Row(1, 0, 4, 5, 0)) == ((1, 1),)
