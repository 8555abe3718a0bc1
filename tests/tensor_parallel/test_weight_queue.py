"""Weight gradients that wait: same bits as at once, in order, counted, and never read after they were overwritten."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import backward

from hybrid_runtime.comm.axis import Axis, axis_of
from hybrid_runtime.comm.collectives import Pending
from hybrid_runtime.errors import RunError
from hybrid_runtime.models.build import build_units
from hybrid_runtime.models.llama import llama_units
from hybrid_runtime.models.unit import BuildContext, Microbatch
from hybrid_runtime.pipeline.stage import Stage
from hybrid_runtime.shapes import LlamaShape
from hybrid_runtime.telemetry.ledger import ByteLedger
from hybrid_runtime.tensor_parallel.gradients import gradient_buffer, set_accumulate_in_place
from hybrid_runtime.tensor_parallel.linear import ColumnParallelLinear, RowParallelLinear
from hybrid_runtime.tensor_parallel.stopwatch import SAMPLES, LeastTimes, stopwatch_for
from hybrid_runtime.tensor_parallel.weight_queue import WeightQueue, set_weight_queue
from tests.ranks import run_ranks

SHAPE = LlamaShape(
    vocab_size=50, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, ffn_size=48, qkv_bias=True
)
SPLIT = "I0 I1 W0 I2 W1 W2 B3 I4 I5 I6 W4 W5 W6 I7 W7"
WHOLE = "B0 B1 B2 B3 B4 B5 B6 B7"


def microbatch(i: int, device: torch.device) -> Microbatch:
    ids = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(i)).to(device)
    return Microbatch(ids[:, :-1], ids[:, 1:])


def trained(actions: str, context: BuildContext, queue: WeightQueue, *, in_place: bool = True) -> dict[str, Tensor]:
    """Gradients of a Llama after these backward actions, all on one stage."""
    units = build_units(llama_units(SHAPE), context)
    for unit in units.values():
        set_accumulate_in_place(unit, in_place)
    stage = Stage(0, list(units.items()), training=True)
    stage.use_queue(queue)
    scale = (torch.tensor(0.1, device=context.device),)
    for action in actions.split():
        kind, i = action[0], int(action[1:])
        if kind == "W":
            stage.weight_gradient(i)
        else:
            stage.forward(i, (), microbatch(i, context.device))
            (stage.backward if kind == "B" else stage.input_gradient)(i, scale)
    named = ((f"{name}.{own}", p) for name, unit in units.items() for own, p in unit.named_parameters())
    return {name: parameter.grad for name, parameter in named if parameter.grad is not None}


@pytest.mark.parametrize("in_place", [True, False])
def test_gradients_are_bit_equal_to_those_of_the_whole_backward(in_place: bool) -> None:
    queue = WeightQueue()
    split = trained(SPLIT, BuildContext(seed=3), queue, in_place=in_place)
    whole = trained(WHOLE, BuildContext(seed=3), WeightQueue(), in_place=in_place)
    assert split.keys() == whole.keys()
    assert len(split) == 1 + 2 * (4 + 3) + 2
    for name in split:
        assert torch.equal(split[name], whole[name]), name
    assert not queue
    assert queue.waiting_bytes == 0
    assert queue.pushed_bytes == queue.popped_bytes > queue.peak_bytes > 0


def linear(queue: WeightQueue, inputs: int = 4, outputs: int = 3) -> ColumnParallelLinear:
    layer = ColumnParallelLinear(inputs, outputs, Axis())
    set_weight_queue(layer, queue)
    return layer


def test_tensors_wait_and_are_counted_until_their_w() -> None:
    ledger = ByteLedger(())
    queue = WeightQueue(keep=ledger.keep)
    one, two = linear(queue, 100, 50), linear(queue, 100, 50)
    with ledger.watching():
        x = torch.ones(10, 100, requires_grad=True) * 2
        y = torch.cat([one(x), two(x)], 1)
        assert ledger.in_use.activations == 4000, "X, saved by both"
        with queue.deferring(0, 0):
            backward(y, torch.ones(10, 100))
        del y
        assert len(queue) == 2
        assert queue.waiting_bytes == queue.peak_bytes == 4000 + 4000  # X once for both; dY: two views of one storage
        assert ledger.in_use.activations == 8000
        queue.run(0, 1)
        assert len(queue) == 2
        queue.run(0, 0)
        assert ledger.in_use.activations == 0
    assert (queue.waiting_bytes, queue.pushed_bytes, queue.popped_bytes) == (0, 8000, 8000)
    with queue.deferring(0, 0):
        backward(one(x.detach()), torch.ones(10, 50))
    assert ledger.in_use.activations == 0, "nobody watches"
    queue.run(0, 0)


def test_views_of_one_gradient_keep_what_they_were() -> None:
    """Three linears whose outputs are joined: each dY is a view of the joined gradient."""
    queue = WeightQueue()
    layers = [linear(queue) for _ in range(3)]
    x, dy = torch.randn(2, 5, 4), torch.randn(2, 5, 9)
    with queue.deferring(0, 0):
        backward(torch.cat([layer(x) for layer in layers], -1), dy)
    assert queue.holds([x[0]])
    queue.run(0, 0)
    assert not queue.holds([x])
    for layer, part in zip(layers, dy.chunk(3, -1)):
        torch.testing.assert_close(layer.weight.grad, part.flatten(0, 1).t() @ x.flatten(0, 1))


@pytest.mark.parametrize("which", ["input", "output gradient"])
def test_a_tensor_changed_too_early_is_an_error(which: str) -> None:
    queue = WeightQueue()
    x, dy = torch.randn(2, 4), torch.randn(2, 3)
    with queue.deferring(1, 2):
        backward(linear(queue)(x), dy)
    (x if which == "input" else dy)[0] += 1
    with pytest.raises(RunError, match=f"the {which} of a ColumnParallelLinear .* was changed in place after"):
        queue.run(1, 2)


def test_the_graph_does_not_live_on_with_what_waits() -> None:
    queue = WeightQueue()
    leaf = torch.randn(2, 4, requires_grad=True)
    freed = leaf.exp()
    alive = weakref.ref(freed)
    y = linear(queue)(freed + 1)
    with queue.deferring(0, 0):
        backward(y, torch.ones(2, 3))
    del freed, y
    gc.collect()
    assert alive() is None
    assert leaf.grad is not None
    gradient = weakref.ref(leaf.grad)
    leaf.grad = None
    assert gradient() is None
    queue.run(0, 0)


class Product:
    """Work that takes a known time."""

    def __init__(self, layer: str, done: list[str], name: str, clock: FakeClock, *, gathers: bool = False) -> None:
        self.layer, self.gathers = layer, gathers
        self.tensors: tuple[Tensor, ...] = ()
        self._done, self._name, self._clock = done, name, clock
        self._started = False

    def start(self) -> None:
        assert not self._started
        self._started = True

    def run(self) -> None:
        assert self._started
        self._done.append(self._name)
        self._clock.now_ns += {"small": 10, "large": 100}[self.layer]


class FakeClock:
    def __init__(self) -> None:
        self.now_ns = 0
        self.reached = True

    def mark(self) -> int:
        return self.now_ns

    def elapsed_ns(self, start: int, end: int) -> int | None:
        return end - start if self.reached else None


class Collective(Pending):
    """Takes 35 ns from when it is waited for."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(Axis(), "all_reduce", torch.ones(1))
        self._clock = clock

    def wait(self) -> Tensor:
        self._clock.now_ns += 35
        return super().wait()


def test_fill_takes_the_oldest_that_fits() -> None:
    clock, done, spans = FakeClock(), list[str](), list[str]()
    queue = WeightQueue(fills=True, change_span=spans.append, stopwatch=clock)

    def push(stage: int, i: int, *layers: str, gathers: bool = False) -> None:
        with queue.deferring(stage, i):
            for k, layer in enumerate(layers):
                queue.push(Product(layer, done, f"{stage}.{i}.{k}", clock, gathers=gathers))

    def meet_collective() -> list[str]:
        done.clear()
        with queue.deferring(0, 9):
            assert queue.wait(Collective(clock), "column").item() == 1
        return list(done)

    for i in range(SAMPLES):
        push(0, i, "small", "large")
        assert meet_collective() == [], "nothing is known yet"
        queue.run(0, i)
    push(0, 5, "small", "small", "large", "small")
    push(1, 0, "small")
    push(0, 6, "small")
    # 35 ns: two small ones, then the large one stands in the way of stage 0, but not of stage 1
    assert meet_collective() == ["0.5.0", "0.5.1", "1.0.0"]
    assert spans == ["0W5", "1W0", "0I9"]
    assert meet_collective() == []
    assert spans == ["0W5", "1W0", "0I9"]
    done.clear()
    queue.run(0, 5)
    queue.run(1, 0)
    assert done == ["0.5.2", "0.5.3"]
    assert meet_collective() == ["0.6.0"]
    push(0, 7, "small", gathers=True)
    assert meet_collective() == [], "another rank might judge differently"
    queue.run(0, 7)
    push(0, 8, "small")
    with queue.deferring(0, 9):
        queue.push(Product("small", done, "own", clock))
        done.clear()
        queue.wait(Collective(clock), "column")
    assert done == ["0.8.0", "own"], "deeper layers of the same I may fill too"
    assert not queue


@pytest.mark.gpu(1)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")
def test_on_a_gpu_too() -> None:
    """There autograd runs the backward on a thread of its own; the embedding adds atomically, in any order."""
    device = torch.device("cuda", 0)
    context = BuildContext(seed=3, device=device)
    queue = WeightQueue(fills=True, stopwatch=stopwatch_for(device))
    split, whole = trained(SPLIT, context, queue), trained(WHOLE, context, WeightQueue())
    for name in whole:
        if name == "embedding.tokens.weight":
            torch.testing.assert_close(split[name], whole[name])
        else:
            assert torch.equal(split[name], whole[name]), name
    torch.cuda.synchronize()
    assert queue.waiting_bytes == 0


def test_nothing_is_waited_for_to_learn_a_time() -> None:
    clock = FakeClock()
    times = LeastTimes(clock)
    clock.reached = False
    for length in (7, 5, 9, 8, 6, 1):
        start = times.start("x")
        clock.now_ns += length
        times.stop("x", start)
        assert times.known_ns("x") is None
    clock.reached = True
    assert times.known_ns("x") == 1
    assert times.start("x") is None


def test_many_threads_push_and_pop() -> None:
    queue = WeightQueue()
    layer = linear(queue)
    x, dy = torch.ones(2, 4), torch.ones(2, 3)
    with queue.deferring(0, 0):

        def one(_: int) -> None:
            backward(layer(x), dy)

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(one, range(200)))
    assert len(queue) == 200
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: queue.run(0, 0), range(8)))
    assert not queue
    assert queue.waiting_bytes == 0
    assert torch.equal(gradient_buffer(layer.weight), torch.full((3, 4), 400.0))


def test_a_frozen_weight_leaves_nothing_and_a_bias_waits_for_nothing() -> None:
    queue = WeightQueue()
    layer = RowParallelLinear(4, 3, Axis(), bias=True)
    set_weight_queue(layer, queue)
    layer.weight.requires_grad_(False)
    x = torch.ones(2, 4, requires_grad=True)
    with queue.deferring(0, 0):
        backward(layer(x), torch.ones(2, 3))
    assert not queue
    assert layer.bias is not None
    assert layer.bias.grad is not None
    assert layer.bias.grad.tolist() == [2, 2, 2]
    assert layer.weight.grad is None
    assert x.grad is not None


def _two_ranks(rank: int) -> None:
    axis = axis_of(dist.group.WORLD)
    timed = " ".join(f"I{i} W{i}" for i in range(SAMPLES))
    split_actions = f"{timed} I5 I6 I7 W5 I8 W6 W7 W8"
    whole_actions = " ".join(f"B{i}" for i in range(9))
    for sequence_parallel in (False, True):
        context = BuildContext(tp=axis, sequence_parallel=sequence_parallel, seed=3)
        spans: list[str] = []
        queue = WeightQueue(fills=True, change_span=spans.append, stopwatch=FakeClock())  # nothing takes time: all fits
        split = trained(split_actions, context, queue)
        whole = trained(whole_actions, context, WeightQueue())
        assert not queue
        assert queue.waiting_bytes == 0
        for name in whole:
            torch.testing.assert_close(split[name], whole[name], rtol=1e-6, atol=1e-6, msg=name)
        assert {span[:2] for span in spans} == (set() if sequence_parallel else {"0W", "0I"}), spans


@pytest.mark.ranks
def test_two_tensor_parallel_ranks() -> None:
    """Older work fills the waits of an I, except where it would have to gather."""
    run_ranks(2, _two_ranks)
