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
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pydantic import ValidationError

from hybrid_runtime.deployment import BaselineKind
from hybrid_runtime.errors import RecordsError
from hybrid_runtime.exact import decimal_text
from hybrid_runtime.plan import Plan
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
from hybrid_runtime.verdict import Side as SideRow
from hybrid_runtime.verifier.claims import promises
from hybrid_runtime.verifier.comparison import Baseline, comparisons
from hybrid_runtime.verifier.differences import differences, outcomes_changed, same_judge
from hybrid_runtime.verifier.driver import driver_blocker, driver_rows, driver_warnings, read_driver
from hybrid_runtime.verifier.hardware import requirements
from hybrid_runtime.verifier.memory_witness import memory_warnings
from hybrid_runtime.verifier.metrics import Metrics, device_rows, measure
from hybrid_runtime.verifier.provenance import launch_warnings, provenance
from hybrid_runtime.verifier.side import load_side
from hybrid_runtime.verifier.static import static_checks
from hybrid_runtime.verifier.tool import tool_version
from hybrid_runtime.verifier.trust import clock_warnings, contention_warnings

_IS_KIND: dict[BaselineKind, Callable[[Plan], bool]] = {
    "single": lambda plan: plan.mesh.world_size == 1,
    "tp_only": lambda plan: plan.mesh.world_size == plan.tp_degree,
    "pp_only": lambda plan: plan.mesh.world_size == plan.pp_degree,
    "dp_only": lambda plan: plan.mesh.world_size == plan.dp_degree,
    "naive_pipeline": lambda plan: plan.num_microbatches == 1,
}


def judge(run_folder: Path) -> Verdict:
    """Judges a finished run from its files.

    Raises:
        RecordsError: a file is missing, damaged or edited, a rank is missing, or the files do not belong together.
        PlanError: a plan.json is missing or not a plan.
    """
    raw = hash_raw(run_folder)  # before reading: a file that changes meanwhile is caught by the next recheck
    side = load_side(run_folder, "candidate")
    metrics = measure(side)
    deployment = side.deployment
    kind = deployment.baseline.kind if deployment.baseline else None
    baseline = _baseline(run_folder, kind)
    sides = [metrics] + ([baseline.metrics] if baseline.metrics else [])
    drivers = [read_driver(one) for one in sides]
    blocker = driver_blocker(drivers)
    claims = (
        *requirements(deployment, metrics, drivers[0]),
        *promises(deployment, metrics, blocker),
        *comparisons(deployment, metrics, baseline, blocker),
    )
    checks = _of_the_file(static_checks(deployment, side.plan.units), claims)
    outcomes = [check.outcome for check in checks] + [claim.outcome for claim in claims]
    outcome, exit_code = overall(outcomes)
    return Verdict(
        tool_version=tool_version(),
        name=deployment.name,
        verdict=outcome,
        exit_code=exit_code,
        deployment_fingerprint=deployment.fingerprint,
        plan_fingerprint=side.ranks[0].header.plan_fingerprint,
        static_checks=checks,
        claims=claims,
        counts=count(outcomes),
        devices=device_rows(metrics, driver_rows(drivers[0])),
        sides=tuple(_side_row(one, kind) for one in sides),
        provenance=provenance(drivers),
        warnings=(
            *contention_warnings(sides),
            *clock_warnings(sides),
            *driver_warnings(drivers[0]),
            *memory_warnings(drivers[0]),
            *launch_warnings(side),
        ),
        raw=raw,
    )


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


def _baseline(run_folder: Path, kind: BaselineKind | None) -> Baseline:
    folder = RunFolder(run_folder).baseline
    if folder.infeasible.is_file():
        words = folder.infeasible.read_text(encoding="utf-8", errors="replace").strip()
        return Baseline(infeasible=words or "the baseline could not be run, and no reason was written down")
    if not folder.path.is_dir():
        return Baseline()
    side = load_side(folder.path, "baseline")
    if kind and not _IS_KIND[kind](side.plan):
        raise RecordsError(f"{folder.plan}: {side.plan.mesh} is not the {kind} baseline that the deployment names")
    return Baseline(metrics=measure(side))


def _of_the_file(checks: Iterable[StaticCheck], claims: Sequence[Claim]) -> tuple[StaticCheck, ...]:
    """The static rows that say more than the claims: one requirement is one row, and a measurement outranks the file.

    What the file itself rules out (FAIL) stays.
    """
    judged = {name for claim in claims for name in (claim.id, claim.metric)}
    return tuple(row for row in checks if row.outcome is Outcome.FAIL or row.id not in judged)


def _side_row(metrics: Metrics, kind: BaselineKind | None) -> SideRow:
    side, plan, losses = metrics.side, metrics.side.plan, [loss for loss in metrics.losses() if loss is not None]
    measured = len(metrics.steps)
    return SideRow(
        role=side.role,
        kind=kind if side.role == "baseline" and kind else side.role,
        mesh=str(plan.mesh),
        schedule=plan.schedule,
        num_microbatches=plan.num_microbatches,
        world_size=plan.mesh.world_size,
        hardware=metrics.hardware,
        steps_warmup=len(side.ranks[0].steps) - measured,
        steps_measured=measured,
        step_time_s=decimal_text(metrics.median_step_ns / 10**9, 9) if measured else "n/a",
        tokens_per_s=decimal_text(metrics.tokens_per_s, 3) if measured else "n/a",
        first_loss=losses[0] if losses else None,
        last_loss=losses[-1] if losses else None,
    )
