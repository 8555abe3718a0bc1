"""Sends that are under way."""

from __future__ import annotations

import torch

from hybrid_runtime.comm.under_way import UnderWay


class Work:
    """As gloo's: it does not know that it is done before somebody has waited."""

    def __init__(self, waited: list[int], number: int) -> None:
        self._waited, self._number = waited, number

    def is_completed(self) -> bool:
        return self._number in self._waited

    def wait(self) -> None:
        self._waited.append(self._number)


def test_the_oldest_are_waited_for_until_few_enough_are_left() -> None:
    waited: list[int] = []
    sends = UnderWay(None)
    for number in range(5):
        sends.add(Work(waited, number), torch.empty(1))  # type: ignore[arg-type]
        sends.keep_at_most(3)
    assert waited == [0, 1]
    sends.finish()
    assert waited == [0, 1, 2, 3, 4]
