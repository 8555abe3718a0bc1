"""What a training is made of, as named boxes: parameters, what AdamW remembers of each, buffers, random states.

    model.3.mlp.down.weight                    parameters and persistent buffers
    optimizer.exp_avg.3.mlp.down.weight        laid out as the parameter is, or a run of its elements
    optimizer.exp_avg_sq.3.mlp.down.weight
    optimizer.master.3.mlp.down.weight         its float32 copy, of a bfloat16 parameter
    random.dp0.pp1.tp0.shared0                 the generators of one rank; used again on the same mesh only

Where the data goes on needs no state: the sampler is a function of seed and step (data/sampler.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from torch import Tensor, nn

from hybrid_runtime.checkpoint.boxes import Box, HeldBox, flat_boxes, held_boxes, tied_names
from hybrid_runtime.checkpoint.rank_file import Item
from hybrid_runtime.mesh import Place
from hybrid_runtime.models.unit import UnitSpec
from hybrid_runtime.tensor_parallel.random_state import RandomStates, Snapshot
from hybrid_runtime.training.update import Update


class TrainingState:
    """One rank's part of a training.

    Args:
        units: the rank's units (or pieces of units) by name.
        specs: of all units of the model: they say which weights are tied.
        update: of the units; None where nothing is trained.
        random: the rank's random states.

    Attributes:
        skipped: steps whose update had been skipped when the training was resumed.
    """

    def __init__(
        self,
        units: Mapping[str, nn.Module],
        specs: Sequence[UnitSpec],
        update: Update | None,
        random: RandomStates,
        place: Place,
    ) -> None:
        self._units = units
        self._tied = tied_names(specs)
        self._optimizer = None if update is None else update.optimizer
        self._copies = set() if update is None else {parameter.data_ptr() for parameter in update.copies}
        self._random = random
        self._place = place
        self.skipped = 0

    @property
    def boxes(self) -> list[Box]:
        """The boxes that this rank could write. The optimizer's state must exist: `prepare` makes it.

        Of a tied weight's copy only the parameter itself: what is remembered of it, its other holder has too, perhaps
        in other runs of elements.
        """
        return list(self._writable())

    @property
    def optimizer_steps(self) -> int | None:
        """Updates that the optimizer has counted (for every parameter alike); None where it has nothing to train."""
        return None if self._optimizer is None else self._optimizer.steps

    def to_write(self, written: Collection[Box]) -> list[Item]:
        """The values as they are, views without a copy: of the given boxes, and this rank's random states."""
        chosen = [item for box, item in self._writable().items() if box in written]
        return chosen + list(self._random_items())

    def weights_to_restore(self) -> list[Item]:
        """Views to be filled, of the model alone: `prepare` must not have been called, for it looks at the weights."""
        return [self._model_item(held) for held in self._held()]

    def to_restore(self, *, random: bool) -> list[Item]:
        """Views to be filled, of everything that this rank holds; `prepare` must have been called.

        Args:
            random: with the random states, in copies which `go_on_random` then takes.
        """
        items = [item for held in self._held() for item in (self._model_item(held), *self._optimizer_items(held))]
        return items + (list(self._random_items()) if random else [])

    def prepare(self, optimizer_steps: int = 0) -> None:
        """Gives the optimizer the state that its first update would make, at a count of updates."""
        if self._optimizer is not None:
            self._optimizer.prepare(optimizer_steps)

    @property
    def random_names(self) -> set[str]:
        """Names of this rank's random states."""
        return {item.box.name for item in self._random_items()}

    def go_on_random(self, restored: Sequence[Item], step: int) -> None:
        """Random numbers go on from states among the restored items; without any, from new ones of this step."""
        kinds = {
            item.box.name.rpartition(".")[2]: item.values for item in restored if item.box.name in self.random_names
        }
        if not kinds:
            self._random.begin("resumed", step)
            return
        count = len(kinds) // 2
        shared, sharded = (tuple(kinds[f"{kind}{n}"] for n in range(count)) for kind in ("shared", "sharded"))
        self._random.restore(Snapshot(shared, sharded))

    def _held(self) -> list[HeldBox]:
        """Asked for anew every time: a module may put another tensor in a buffer's place."""
        return held_boxes(self._units, self._tied)

    def _writable(self) -> dict[Box, Item]:
        """By box, so that what a rank holds twice is written once."""
        found: dict[Box, Item] = {}
        for held in self._held():
            copy = held.tensor.data_ptr() in self._copies
            for item in (self._model_item(held), *(() if copy else self._optimizer_items(held))):
                found.setdefault(item.box, item)
        return found

    def _model_item(self, held: HeldBox) -> Item:
        return Item(held.box._replace(name=f"model.{held.box.name}"), held.view_of(held.tensor))

    def _optimizer_items(self, held: HeldBox) -> Iterator[Item]:
        for moment in () if self._optimizer is None else self._optimizer.moments_of(held.tensor):
            for box, values in flat_boxes(held, moment.values, moment.start):
                yield Item(box._replace(name=f"optimizer.{moment.name}.{box.name}"), values)

    def _random_items(self) -> Iterator[Item]:
        snapshot, place = self._random.snapshot(), self._place
        for kind, states in (("shared", snapshot.shared), ("sharded", snapshot.sharded)):
            for number, state in enumerate(states):
                name = f"random.dp{place.dp}.pp{place.pp}.tp{place.tp}.{kind}{number}"
                yield Item(_whole(name, state), state.clone())


def _whole(name: str, tensor: Tensor) -> Box:
    shape = tuple(tensor.shape)
    return Box(name, shape, (0,) * len(shape), shape)
