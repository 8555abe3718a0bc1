"""What an item of served rows costs a unit: by formula, from declared rates. A labelled fallback of what is measured.

A unit takes as long as the slower of its products and its reading (the roofline of Williams et al. 2009), and what
launching it takes. n tokens, a pairs of query and key, k keys read, w rows wanted; H hidden, q and kv widths of all
query and key/value heads, f the MLP's width, V vocabulary, e bytes of an element:

    unit        FLOPs                            bytes read
    embedding   0                                n H e
    attn        2n (H (q + 2kv) + q H) + 4 q a   its weights, 2 k kv e
    mlp         2n 3Hf                           its weights
    head        2w H V                           its weights, where w > 0

Each is divided by tp_degree; keys and values are not divided further than by their heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, Protocol

from hybrid_runtime.mesh import Mesh
from hybrid_runtime.planner.analytic import HIGH, LOW, Rates
from hybrid_runtime.planner.serving_items import ItemSize
from hybrid_runtime.planner.state_bytes import ELEMENT_BYTES
from hybrid_runtime.planner.tp_calls import CallTime
from hybrid_runtime.predicted import LABELS, Label, Source, TimeInterval
from hybrid_runtime.serving.kv_bytes import kv_heads
from hybrid_runtime.shapes import LlamaShape

TOKEN_BYTES = 8  # of an id that returns to rank 0


class UnitTime(NamedTuple):
    """What a whole unit takes one tensor-parallel rank: a piece of it takes `fixed_ns` and its part of the rest."""

    fixed_ns: int
    divisible_ns: int


class Added(NamedTuple):
    """What the runtime adds to an item on every stage (serving/simulate.py: StageTime).

    Attributes:
        stage_ns: computed beside the units.
        before_ns, after_ns: on the first stage.
        next_ns, fetch_ns: on later ones, behind the span, and waiting for a carry that is there.
        late_ns: on every stage of several tensor-parallel ranks, until the last of them begins.
    """

    stage_ns: int = 0
    before_ns: int = 0
    after_ns: int = 0
    next_ns: int = 0
    fetch_ns: int = 0
    late_ns: int = 0


class ServingCosts(Protocol):
    """Costs of everything that serving consists of, in whole nanoseconds of one rank."""

    @property
    def source(self) -> Source:
        """Where the figures come from."""

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """The machine they hold for; empty if nothing was measured."""

    @property
    def labels(self) -> Mapping[str, Label]:
        """How each component of a prediction comes about."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know of them."""

    def unit(self, kind: str, tp_degree: int, size: ItemSize) -> UnitTime:
        """A unit ("embedding", "attn", "mlp", "head"), collectives not included.

        Raises:
            PlanError: nothing is known of this degree.
        """

    def all_reduce(self, tp_degree: int, num_bytes: int) -> CallTime:
        """The sum of so many bytes over tensor-parallel ranks."""

    def all_gather(self, tp_degree: int, num_bytes: int) -> CallTime:
        """A tensor of so many bytes, whole on every tensor-parallel rank afterwards."""

    def waits_ns(self, tp_degree: int, size: ItemSize, compute_ns: int) -> int | None:
        """What tensor-parallel ranks wait for each other in an item on a stage that computes so long; None where that
        is not known beyond the calls' own times."""

    def message_ns(self, num_bytes: int, *, same_host: bool) -> int:
        """From the end of a stage's span until the next stage's, which waits, begins."""

    def back_ns(self, rows: int, *, same_host: bool) -> int:
        """From the end of the last stage's span until rank 0, which waits, knows the tokens."""

    def added(self, mesh: Mesh, rows: int) -> Added:
        """What the runtime adds to an item."""

    @property
    def paces(self) -> tuple[int, ...]:
        """Equally likely times of an item, in millionths of the median; empty where it always takes that."""

    def interval(self, p50_ns: int) -> TimeInterval:
        """In which eight rounds of ten are expected, around a predicted time."""


@dataclass(frozen=True)
class AnalyticServing:
    """`ServingCosts` of a Llama-family model by formula.

    Attributes:
        dtype: "float32" or "bfloat16".
        memory_bytes_per_s: at which a device reads its own memory.
        unit_ns: least time of a unit, however small: launching its kernels.
    """

    shape: LlamaShape
    dtype: str
    rates: Rates
    memory_bytes_per_s: int
    unit_ns: int

    @property
    def source(self) -> Source:
        return "analytic"

    @property
    def fingerprint(self) -> Mapping[str, str]:
        return {}

    @property
    def labels(self) -> Mapping[str, Label]:
        return LABELS["analytic"]

    @property
    def notes(self) -> tuple[str, ...]:
        r = self.rates
        return (
            f"analytic: declared are {r.flops_per_s / 1e12:g} TFLOP/s and {self.memory_bytes_per_s / 1e9:g} GB/s per "
            f"device, {r.link_bytes_per_s / 1e9:g} GB/s inside a node, {r.network_bytes_per_s / 1e9:g} GB/s between "
            f"nodes, {r.latency_ns / 1e3:g} us latency and {self.unit_ns / 1e3:g} us to launch a unit; the runtime's "
            "own time is not in it",
        )

    @property
    def paces(self) -> tuple[int, ...]:
        return ()

    def unit(self, kind: str, tp_degree: int, size: ItemSize) -> UnitTime:
        flops, num_bytes = unit_flops(self.shape, kind, size), self._bytes_read(kind, tp_degree, size)
        if kind == "head" and not size.wanted:
            return UnitTime(0, 0)
        products = flops // tp_degree * 10**9 // self.rates.flops_per_s
        return UnitTime(self.unit_ns, max(products, num_bytes * 10**9 // self.memory_bytes_per_s))

    def _bytes_read(self, kind: str, tp_degree: int, size: ItemSize) -> int:
        element = ELEMENT_BYTES[self.dtype]
        if kind == "embedding":
            return size.tokens * self.shape.hidden_size * element
        cached = 2 * size.keys * kv_heads(self.shape, tp_degree) * self.shape.head_dim if kind == "attn" else 0
        return (rank_weights(self.shape, kind, tp_degree) + cached) * element

    def all_reduce(self, tp_degree: int, num_bytes: int) -> CallTime:
        return CallTime(0, self.rates.collective_ns("all_reduce", tp_degree, num_bytes, same_host=True))

    def all_gather(self, tp_degree: int, num_bytes: int) -> CallTime:
        return CallTime(0, self.rates.collective_ns("all_gather", tp_degree, num_bytes, same_host=True))

    def waits_ns(self, tp_degree: int, size: ItemSize, compute_ns: int) -> int | None:
        return None

    def message_ns(self, num_bytes: int, *, same_host: bool) -> int:
        hop = self.rates.hop(same_host=same_host)
        return int(hop.latency + hop.transfer(num_bytes))

    def back_ns(self, rows: int, *, same_host: bool) -> int:
        return self.message_ns(rows * TOKEN_BYTES, same_host=same_host)

    def added(self, mesh: Mesh, rows: int) -> Added:
        return Added()

    def interval(self, p50_ns: int) -> TimeInterval:
        return TimeInterval(p10_ns=int(p50_ns * LOW), p50_ns=p50_ns, p90_ns=int(p50_ns * HIGH))


@cache
def rank_weights(shape: LlamaShape, kind: str, tp_degree: int) -> int:
    """Elements of the matrices and biases that one tensor-parallel rank holds of a unit; vocabularies are padded."""
    h, q = shape.hidden_size, shape.q_size // tp_degree
    match kind:
        case "attn":
            columns = q + 2 * kv_heads(shape, tp_degree) * shape.head_dim
            return (h + shape.qkv_bias) * columns + q * h
        case "mlp":
            return 3 * h * (shape.ffn_size // tp_degree)
    return h * -(-shape.vocab_size // tp_degree)


def norm_weights(shape: LlamaShape, kind: str) -> int:
    """Elements of a unit's norms, which every tensor-parallel rank holds."""
    heads = 2 * shape.head_dim if kind == "attn" and shape.qk_norm else 0
    return 0 if kind == "embedding" else shape.hidden_size + heads


def unit_flops(shape: LlamaShape, kind: str, size: ItemSize) -> int:
    """FLOPs of an item in a unit, all tensor-parallel ranks together."""
    if kind == "embedding":
        return 0
    passing = size.wanted if kind == "head" else size.tokens
    core = 4 * shape.q_size * size.pairs if kind == "attn" else 0
    biases = shape.qkv_bias * (shape.q_size + 2 * shape.kv_size) if kind == "attn" else 0
    return 2 * passing * (rank_weights(shape, kind, 1) - biases) + core
