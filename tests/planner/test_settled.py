"""What is kept of a layout and its small steps: the best as its ranks run it, of those that fit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hybrid_runtime.planner import settled as module
from hybrid_runtime.planner.candidates import layouts
from hybrid_runtime.planner.evaluate import Evaluated, evaluate
from hybrid_runtime.planner.layout import Layout
from hybrid_runtime.planner.orders import known_rows
from hybrid_runtime.planner.request import model_of, setting_of, space_of
from hybrid_runtime.planner.settled import settled
from tests.planner.planning import deployment

FITS, TOO_MUCH = 0, 10**9


@pytest.mark.parametrize(
    ("as_runs", "kept"),
    [
        ({"found": (100, FITS), "better": (97, FITS)}, "better"),
        ({"found": (100, FITS), "better": (103, FITS)}, "found"),
        ({"found": (100, TOO_MUCH), "better": (103, FITS)}, "better"),
        ({"found": (100, FITS), "better": (97, TOO_MUCH)}, "found"),
        ({"found": (100, TOO_MUCH), "better": (97, TOO_MUCH), "begun": (110, FITS)}, "begun"),
        ({"found": (100, TOO_MUCH), "better": (97, TOO_MUCH), "begun": (110, TOO_MUCH)}, "found"),
    ],
)
def test_the_best_as_run_is_kept(
    as_runs: dict[str, tuple[int, int]], kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rough replay says that the small steps are faster; runs say what they say."""
    file = deployment(
        search={"vary": [], "top": 0}, pipeline={"schedule": "1f1b"}, hardware={"memory_per_device": "1 GB"}
    )
    setting, model = setting_of(file), model_of(file, None)
    (layout,) = [one for one in layouts(space_of(file), setting) if isinstance(one, Layout)]
    found = evaluate(layout, setting, model, known_rows(layout, setting))
    names = {"found": found, "better": replace(found), "begun": replace(found)}

    def as_run(one: Evaluated, *_: object) -> Evaluated:
        (name,) = [name for name, known in names.items() if known is one]
        step_ns, more = as_runs[name]
        memory = [rank.model_copy(update={"activations": rank.activations + more}) for rank in one.memory]
        return replace(one, step_ns=step_ns, memory=tuple(memory), as_run=True)

    monkeypatch.setattr(module, "as_run", as_run)
    monkeypatch.setattr(module, "_forgetting_more", lambda *_: names["begun"])
    monkeypatch.setattr(module, "_improved", lambda *_: names["better"])
    run, losers = settled(found, setting, model)
    assert (run.step_ns, losers) == (as_runs[kept][0], [])
