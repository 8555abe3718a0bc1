"""`sampling.json`, checked against the deployment and the records: what looks may spend was fixed before any data."""

from __future__ import annotations

from pydantic import ValidationError

from hybrid_runtime.errors import RecordsError
from hybrid_runtime.records import SPEED
from hybrid_runtime.run_folder import RunFolder
from hybrid_runtime.verdict import Sampling
from hybrid_runtime.verifier.side import Side


def sampling_of(side: Side) -> Sampling | None:
    """The log of looks beside a side's records; None where the run was a plain one.

    Raises:
        RecordsError: it is damaged, is missing although steps were sampled, or is not what the deployment allows.
    """
    files = RunFolder(side.folder)
    if not files.sampling.exists():
        if any(side.ranks[0].measured(SPEED)):
            raise RecordsError(
                f"{files.sampling}: is missing, but the records are of a sampled run; make the run again"
            )
        return None
    try:
        sampling = Sampling.model_validate_json(files.sampling.read_bytes())
    except (OSError, ValidationError) as problem:
        what = problem.errors()[0]["msg"] if isinstance(problem, ValidationError) else problem
        raise RecordsError(
            f"{files.sampling}: not a log of looks ({what}); the file was edited, make the run again"
        ) from None
    if contradiction := _contradiction(sampling, side):
        raise RecordsError(f"{files.sampling}: {contradiction}; the file was edited, make the run again")
    return sampling


def _contradiction(sampling: Sampling, side: Side) -> str | None:
    measurement = side.deployment.measurement
    if (sampling.looks_allowed, sampling.budget_s) != (measurement.looks, measurement.budget_s):
        return (
            f"{sampling.looks_allowed} looks and {sampling.budget_s} s, but the deployment allows {measurement.looks} "
            f"and {measurement.budget_s} s"
        )
    if len(sampling.looks) > sampling.looks_allowed:
        return f"{len(sampling.looks)} looks were made, {sampling.looks_allowed} are allowed"
    if sampling.stopped == "self-test only" and (sampling.looks or RunFolder(side.folder).baseline.path.exists()):
        return "only the instrument is said to have been tested, but claims were measured"
    return None
