"""What a source of costs must be able to say, whether it was measured or is computed from FLOPs and declared rates."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Literal, NamedTuple, Protocol

from hybrid_runtime.planner.state_bytes import StateBytes
from hybrid_runtime.planner.work import Line
from hybrid_runtime.predicted import Label, Source, TimeInterval
from hybrid_runtime.schedule.step_costs import Hop

Collective = Literal["all_reduce", "reduce_scatter", "all_gather"]


class Overlap(NamedTuple):
    """How many times as long compute, and a collective that is under way meanwhile, take beside each other."""

    compute: Fraction = Fraction(1)
    collective: Fraction = Fraction(1)


class StepModel(Protocol):
    """Costs of everything that a step consists of, in nanoseconds and bytes of one rank."""

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
        """What a reader must know: terms that were not measured, widths that were taken as proportional."""

    @property
    def state(self) -> StateBytes:
        """Bytes per parameter."""

    @property
    def action_ns(self) -> int:
        """What the executor adds to every action."""

    @property
    def step_ns(self) -> int:
        """What a step takes beside its actions and its update."""

    def line(self, tp_degree: int, microbatch_size: int) -> Line:
        """The model's units.

        Raises:
            PlanError: nothing is known of this degree or size.
        """

    def collective_ns(self, kind: Collective, ranks: int, num_bytes: int, *, same_host: bool) -> int:
        """Time of one collective.

        Raises:
            PlanError: nothing is known of this size.
        """

    def hop(self, *, same_host: bool) -> Hop:
        """A message between two neighbours."""

    def post_ns(self, num_bytes: int, *, same_host: bool) -> int:
        """What a message takes from each of its two ranks, beside the time that it is under way."""

    @property
    def overlap(self) -> Overlap:
        """Of gradients that are summed while the rank still computes."""

    def optimizer_ns(self, parameters: int) -> int:
        """Clearing, norm, clipping and update of so many parameters."""

    def interval(self, p50_ns: int) -> TimeInterval:
        """In which eight steps of ten are expected, around a predicted time."""
