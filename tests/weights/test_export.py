"""Which folders a training that goes on may replace with a newer export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hybrid_runtime.errors import UsageError
from hybrid_runtime.weights.export import MARK, Exported, refuse_other_export
from hybrid_runtime.weights.layout import lay_out
from hybrid_runtime.weights.target import Target

TRAINING = {"model": "{}", "workload.seed": "1"}


def test_only_an_earlier_export_of_the_same_training(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    refuse_other_export(folder, Exported(TRAINING, 5))
    folder.mkdir()
    refuse_other_export(folder, Exported(TRAINING, 5))
    (folder / "config.json").touch()
    mark = folder / MARK
    for text in (None, "no JSON", "[]", "{}", '{"training": {}, "step": 1}', json.dumps({"training": TRAINING})):
        if text is not None:
            mark.write_text(text)
        with pytest.raises(UsageError, match=r"mine: already exists and is no earlier export of this training; name"):
            refuse_other_export(folder, Exported(TRAINING, 5))
    mark.write_text(json.dumps({"training": TRAINING, "step": 6}))
    refuse_other_export(folder, Exported(TRAINING, 6))
    refuse_other_export(folder, Exported(TRAINING | {"what newer versions say": "x"}, 6))
    with pytest.raises(UsageError, match="is of step 6, later than step 5, from where the training goes on"):
        refuse_other_export(folder, Exported(TRAINING, 5))
    with pytest.raises(UsageError, match="no earlier export of this training"):
        refuse_other_export(folder, Exported(TRAINING | {"workload.seed": "2"}, 7))


def test_what_was_there_goes_when_the_new_one_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "old").touch()
    target = Target(folder, lay_out({"a": ("F32", (2,))}), replaces=True)
    with pytest.raises(ZeroDivisionError), target.appearing({}, {}):
        raise ZeroDivisionError
    assert [path.name for path in folder.iterdir()] == ["old"]
    with target.appearing({}, {}):
        assert [path.name for path in folder.iterdir()] == ["old"]
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
