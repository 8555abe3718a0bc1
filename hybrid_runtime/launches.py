"""How often a deployment was launched into a folder: the best of many runs must not pass for the only one.

    runs/launches.jsonl      a line per launch, written by its rank 0 before the first step, never rewritten
    runs/demo-20260101-120000/
    runs/demo-20260101-121500/

A launch stays in the list when its run folder is deleted. Whoever deletes the list itself, or launches into another
folder, is not found out: this is a count kept by honest tools, not a seal.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from hybrid_runtime.run_folder import RunFolder

LIST = "launches.jsonl"


class Launches(NamedTuple):
    """What was launched into the same folder before, by run folder, oldest first.

    Attributes:
        same: launches of exactly this deployment.
        named: launches of a deployment of this name with other settings.
        unknown: why nothing is known; None if it is.
    """

    same: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    unknown: str | None = None


def note_launch(folder: RunFolder, name: str, fingerprint: str) -> Launches:
    """Adds this launch to the list beside its run folder, and says which were there before.

    A side of a run (`RUN/baseline`, `RUN/baselines/KIND`) is no launch of its own.
    """
    path = folder.path.resolve()
    if any(RunFolder(above).records.is_dir() for above in list(path.parents)[:2]):
        return Launches(unknown="a side of another run folder")
    file = path.parent / LIST
    line = {
        "run_folder": path.name,
        "name": name,
        "deployment_fingerprint": fingerprint,
        "started_utc": datetime.now(UTC).isoformat(),
    }
    try:
        before = _read(file)
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")
    except OSError as problem:
        return Launches(unknown=f"{LIST} cannot be written ({problem.strerror})")
    others = [launch for launch in before if launch.get("name") == name and launch.get("run_folder") != path.name]
    folders: dict[bool, list[str]] = {True: [], False: []}
    for launch in others:
        folders[launch.get("deployment_fingerprint") == fingerprint].append(str(launch.get("run_folder")))
    same, named = (tuple(dict.fromkeys(folders[which])) for which in (True, False))
    return Launches(same, tuple(name for name in named if name not in same))


def _read(file: Path) -> list[dict[str, object]]:
    """The launches noted so far. A damaged line still counts as a launch, of nobody knows what."""
    if not file.exists():
        return []
    return [_parsed(line) for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]


def _parsed(line: str) -> dict[str, object]:
    try:
        values = json.loads(line)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}
