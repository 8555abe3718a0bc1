"""From a run folder to a verdict: files in, `Verdict` out, nothing of the model is run and nothing is remembered.

    RUN/deployment.json plan.json records/*  --load_side--> candidate --+
    RUN/baseline/...                         --load_side--> baseline  --+--> claims --+
    deployment alone                         --static_checks------------------------- +--> verdict.json
                                                          SHA-256 of every file read -+

The same function judges right after a run and years later (`verify --recheck`), so a verdict can be derived again by
anyone who has the folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import ValidationError

from hybrid_runtime.errors import RecordsError
from hybrid_runtime.records import TRACE
from hybrid_runtime.run_folder import RunFolder, write_whole
from hybrid_runtime.verdict import (
    SCHEMA_VERSION,
    Claim,
    Outcome,
    RawFile,
    StaticCheck,
    Verdict,
    count,
    overall,
)
from hybrid_runtime.verdict_modelled import ModelledRun
from hybrid_runtime.verifier.baselines import fairness_warnings, other_baselines, read_baseline
from hybrid_runtime.verifier.claims import promises
from hybrid_runtime.verifier.comparison import comparisons
from hybrid_runtime.verifier.differences import differences, outcomes_changed, same_judge
from hybrid_runtime.verifier.driver import driver_blocker, driver_rows, driver_warnings, read_driver
from hybrid_runtime.verifier.hardware import requirements
from hybrid_runtime.verifier.memory_witness import memory_warnings
from hybrid_runtime.verifier.metrics import Metrics, device_rows, measure
from hybrid_runtime.verifier.modelled import modelled_run
from hybrid_runtime.verifier.numerics import numerics_check
from hybrid_runtime.verifier.placement import placement_warnings
from hybrid_runtime.verifier.prediction import judge_prediction
from hybrid_runtime.verifier.provenance import launch_warnings, provenance
from hybrid_runtime.verifier.sampling_log import sampling_of
from hybrid_runtime.verifier.self_test import observer_warnings, self_tests
from hybrid_runtime.verifier.served import served_claims, served_side
from hybrid_runtime.verifier.side import load_side
from hybrid_runtime.verifier.side_rows import outlier_row, side_row
from hybrid_runtime.verifier.static import static_checks
from hybrid_runtime.verifier.statistics import ALPHA
from hybrid_runtime.verifier.terms import terms_of
from hybrid_runtime.verifier.tool import tool_version
from hybrid_runtime.verifier.trust import clock_warnings, contention_warnings, time_blocker
from hybrid_runtime.verifier.work_done import skip_warnings


def judge(run_folder: Path, *, finished: bool = True) -> Verdict:
    """Judges a run from its files.

    Args:
        finished: False for a look while sampling goes on: ranks have not come to their end yet.

    Raises:
        RecordsError: a file is missing, damaged or edited, a rank is missing, or the files do not belong together.
        PlanError: a plan.json is missing or not a plan.
    """
    run = RunFolder(run_folder)
    raw = hash_raw(run_folder)  # before reading: a file that changes meanwhile is caught by the next recheck
    side = load_side(run_folder, "candidate", finished=finished)
    deployment, metrics = side.deployment, measure(side)
    sampling = sampling_of(side)
    alpha = ALPHA / sampling.looks_allowed if sampling else ALPHA
    bare = metrics.bare
    kind = deployment.baseline.kind if deployment.baseline else None
    baseline = read_baseline(run.baseline, kind, finished=finished)
    sides = [bare] + ([baseline.metrics] if baseline.metrics else [])
    drivers = [read_driver(metrics), *map(read_driver, sides[1:])]
    checks = [*self_tests(metrics, alpha)]
    if baseline.metrics:
        checks.append(numerics_check(bare, baseline.metrics))
    blocker = driver_blocker([drivers[0], drivers[0].of(bare), *drivers[1:]], unseen=bool(baseline.infeasible))
    terms = terms_of(alpha, blocker, checks)
    others = other_baselines(run, deployment, bare, terms) if finished else []
    claims: tuple[Claim, ...] = (
        *requirements(deployment, metrics, drivers[0]),
        *promises(deployment, metrics, terms),
        *served_claims(deployment, metrics, bare, terms),
        *comparisons(deployment, bare, baseline, terms),
    )
    modelled: ModelledRun | None = None
    if finished:
        claims, modelled = modelled_run(claims, metrics, baseline)
    static = _of_the_file(static_checks(deployment, side.plan.units), claims)
    outcomes = [row.outcome for row in static] + [claim.outcome for claim in claims]
    if sampling and sampling.stopped == "self-test only":
        static, claims, outcomes = (), (), [check.outcome for check in checks]
    outcome, exit_code = overall(outcomes)
    return Verdict(
        tool_version=tool_version(),
        name=deployment.name,
        verdict=outcome,
        exit_code=exit_code,
        deployment_fingerprint=deployment.fingerprint,
        plan_fingerprint=side.ranks[0].header.plan_fingerprint,
        static_checks=static,
        claims=claims,
        counts=count(outcomes),
        devices=device_rows(metrics, driver_rows(drivers[0])),
        sides=tuple(side_row(one, kind) for one in sides),
        outliers=tuple(outlier_row(one) for one in sides if one.steps),
        self_test=tuple(checks),
        sampling=sampling,
        other_baselines=tuple(other.row for other in others),
        served=tuple(served_side(*one, terms.alpha) for one in _serving(metrics, sides)),
        prediction=judge_prediction(metrics, time_blocker(deployment, sides[:1], terms.driver)) if finished else None,
        modelled=modelled if claims else None,
        provenance=provenance(drivers),
        warnings=(
            *contention_warnings([metrics, *sides[1:]]),
            *clock_warnings(sides),
            *placement_warnings(metrics),
            *driver_warnings(drivers[0]),
            *memory_warnings(drivers[0]),
            *observer_warnings(checks),
            *fairness_warnings(deployment, bare, baseline, others, terms),
            *launch_warnings(side),
            *skip_warnings(side.ranks),
        ),
        raw=raw,
    )


def _serving(traced: Metrics, sides: Sequence[Metrics]) -> list[tuple[Metrics, Metrics]]:
    """(rounds with spans, judged rounds) of every side that serves and was measured; baselines record no spans."""
    pairs = [(traced, sides[0]), *((one.of(TRACE), one) for one in sides[1:])]
    return [pair for pair in pairs if pair[1].side.deployment.serves and pair[1].steps]


def recheck(run_folder: Path) -> Verdict:
    """Judges a run again from its raw records, after proving that they are the ones judged before.

    The new verdict is returned and written nowhere. A folder that was never judged is judged now.

    Raises:
        RecordsError: as `judge`; or a file was changed, removed or added since verdict.json was written, or
            verdict.json itself says something else than the records do. One of other rules or another version may: then
            a warning says in which rows.
    """
    path = RunFolder(run_folder).verdict
    if not path.exists():
        return judge(run_folder)
    before = read_verdict(path)
    _check_unchanged(run_folder, before)
    now = judge(run_folder)
    if same_judge(before, now):
        if places := differences(before, now):
            raise RecordsError(f"{path}: its {places[0]} is not what the records say; it was edited, judge again")
        return now
    rows = "; ".join(outcomes_changed(before, now)) or "all rows alike"
    note = f"verdict.json was written by rules {before.ruleset} of version {before.tool_version}: {rows}"
    return now.model_copy(update={"warnings": (*now.warnings, note)})


def write_verdict(verdict: Verdict, path: Path) -> None:
    """Writes verdict.json whole."""
    write_whole(path, verdict.model_dump_json(indent=1) + "\n")


def read_verdict(path: Path) -> Verdict:
    """Reads verdict.json.

    Raises:
        RecordsError: it is missing, not a verdict of this version, or names no raw files.
    """
    try:
        verdict = Verdict.model_validate_json(path.read_bytes())
    except OSError as problem:
        raise RecordsError(f"{path}: cannot be read ({problem.strerror}); judge the run first") from None
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise RecordsError(f"{path}: not a verdict: {where}: {first['msg']}; judge the run again") from None
    if verdict.schema_version != SCHEMA_VERSION:
        raise RecordsError(f"{path}: schema_version {verdict.schema_version} is not {SCHEMA_VERSION}; judge again")
    if verdict.claims and not verdict.raw:
        raise RecordsError(f"{path}: names no raw files, so nothing stands behind its figures; judge the run again")
    return verdict


def hash_raw(run_folder: Path) -> tuple[RawFile, ...]:
    """SHA-256 of every file that a verdict rests on, candidate first; paths are relative to the run folder."""
    paths = [path for side in RunFolder(run_folder).sides() for path in side.raw_files()]
    return tuple(RawFile(path=path.relative_to(run_folder).as_posix(), sha256=_sha256(path)) for path in paths)


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as problem:
        raise RecordsError(f"{path}: cannot be read ({problem.strerror}); check its permissions") from None


def _check_unchanged(run_folder: Path, before: Verdict) -> None:
    then = {file.path: file.sha256 for file in before.raw}
    now = {file.path: file.sha256 for file in hash_raw(run_folder)}
    for path in sorted(then.keys() | now.keys()):
        if path not in now:
            raise RecordsError(f"{run_folder / path}: is missing; it was there when the run was judged")
        if path not in then:
            raise RecordsError(f"{run_folder / path}: was added since the run was judged")
        if then[path] != now[path]:
            raise RecordsError(f"{run_folder / path}: was changed since it was judged; make the run again")


def _of_the_file(checks: Iterable[StaticCheck], claims: Sequence[Claim]) -> tuple[StaticCheck, ...]:
    """The static rows that say more than the claims: one requirement is one row, and a measurement outranks the file.

    What the file itself rules out (FAIL) stays.
    """
    judged = {name for claim in claims for name in (claim.id, claim.metric)}
    return tuple(row for row in checks if row.outcome is Outcome.FAIL or row.id not in judged)
