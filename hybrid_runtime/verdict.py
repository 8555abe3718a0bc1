"""`verdict.json`: the types of a judgement. The verifier fills them, the reports draw them, nothing else decides.

Numbers that were compared are stored without loss: `Fraction` text ("1/300") beside decimals for people.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import Field

from hybrid_runtime.errors import ExitCode, RecordsError
from hybrid_runtime.verdict_measured import Frozen, Measured
from hybrid_runtime.verdict_modelled import ModelledFigure, ModelledRun
from hybrid_runtime.verdict_prediction import JudgedPrediction
from hybrid_runtime.verdict_served import ServedSide

SCHEMA_VERSION = "1.3"
RULESET = "2026.5"


class Outcome(enum.StrEnum):
    """What a row says. A claim that could not be decided is INCONCLUSIVE with a reason, never a silent pass."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    NOT_APPLICABLE = "NOT_APPLICABLE"
    ERROR = "ERROR"


Reason = Literal[
    "not_measured",
    "not_given",
    "too_few_batches",
    "resolution",
    "interval_straddles_threshold",
    "repeat_differs",
    "no_steady_state",
    "aa_failed",
    "planted_failed",
    "instrument_disagreement",
    "oversubscribed",
    "contended",
    "hardware_mismatch",
    "foreign_process",
    "throttled",
    "clock_spread",
    "counters_unsupported",
    "baseline_infeasible",
    "loads_differ",
    "budget_spent",
    "declaration_not_plan",
]


class StaticCheck(Frozen):
    """One requirement judged from the file alone, before any process starts.

    Attributes:
        id: metric or rule, e.g. "world_size_product", "stage_cover".
        requirement: what was asked for, in the words of the file, e.g. "3 devices".
        detail: what was found, with the numbers; for a failure also what would be valid.
    """

    id: str
    requirement: str
    outcome: Outcome
    reason: Reason | None = None
    detail: str


class Claim(Frozen):
    """One promise and its judgement. `detail` says in words what set the figure, e.g. the pair of devices.

    Attributes:
        steps_needed: about how many more measured steps might decide it; None where it is decided or steps cannot help.
        modelled: what a replay says of a time claim that shared cores leave undecided; it decides nothing.
    """

    id: str
    text: str
    metric: str
    unit: str
    op: Literal["<=", ">="]
    threshold: str
    declared: str | None = None
    measured: Measured | None = None
    outcome: Outcome
    reason: Reason | None = None
    steps_needed: int | None = None
    detail: str
    modelled: ModelledFigure | None = None


class DeviceRow(Frozen):
    """One physical device (or one virtual one where ranks share cores). Shares and busy are decimal text in percent.

    Attributes:
        time_share_bounds: lower and upper end of the interval of `time_share`; None without spread or samples.
        time_parts: where the measured windows went, wall clock, ns summed over the device's ranks: compute,
            exposed_communication, host and bubble; together `window_ns` times the ranks.
    """

    device: str
    ranks: tuple[int, ...]
    stages: tuple[int, ...]
    compute_ns: int
    window_ns: int
    wait_ns: int
    time_parts: dict[str, int] = {}  # noqa: RUF012 - pydantic copies it
    time_share: str
    time_share_bounds: tuple[str, str] | None = None
    work_share: str
    busy: str
    memory_bytes: int | None
    memory_share: str | None
    memory_parts: dict[str, int]
    nvml: dict[str, str]


class Side(Frozen):
    """One measured side (candidate or baseline): what ran and its plain figures, medians as decimal text.

    Attributes:
        mfu: model FLOPs utilisation at `tokens_per_s`, in percent, or "n/a: why"; `mfu_peak` says against whose peak.
    """

    role: Literal["candidate", "baseline"]
    kind: str
    mesh: str
    schedule: str
    num_microbatches: int
    world_size: int
    hardware: Literal["cuda", "cpu", "cpu-oversubscribed"]
    steps_warmup: int
    steps_measured: int
    step_time_s: str
    tokens_per_s: str
    mfu: str = "n/a: not recorded"
    mfu_peak: str = ""
    first_loss: str | None
    last_loss: str | None


class SelfCheck(Frozen):
    """One test that the instrument made of itself, or of the comparison, in this very run.

    Attributes:
        id: "aa", "planted_0.5", "planted_1.5", "planted_2", "observer", "numerics" or "steady_state".
        text: what was done and what must come out.
        outcome: PASS if it came out so, FAIL if something else did, INCONCLUSIVE if the noise hides it.
        measured: the figure in `unit`, if there is one.
    """

    id: str
    text: str
    unit: str = ""
    outcome: Outcome
    reason: Reason | None = None
    measured: Measured | None = None
    detail: str


class Look(Frozen):
    """One look at the data while sampling went on: how much there was, and what was still undecided.

    Attributes:
        blocks: rounds of blocks done at this look; blocks that no undecided claim rests on were left out of later ones.
        undecided: ids of claims that more samples might decide.
    """

    blocks: int
    elapsed_s: str
    undecided: tuple[str, ...]


class Sampling(Frozen):
    """How long was measured, and why it stopped.

    Attributes:
        looks_allowed: looks that share the error budget, fixed before any data; each may spend `alpha_per_look`.
        stopped: "decided" (every claim), "budget" (time or looks gone), "single look", or "self-test only".
    """

    looks_allowed: Annotated[int, Field(ge=1, le=5)]
    alpha_per_look: str
    budget_s: Annotated[int, Field(ge=1)]
    looks: tuple[Look, ...]
    stopped: Literal["decided", "budget", "single look", "self-test only"]


class Outliers(Frozen):
    """Steps far from the others (beyond three quartile ranges: Tukey's outer fences). Flagged, never dropped.

    Attributes:
        steps: their numbers.
        median_step_s, mean_step_s: of all measured steps; `mean_without_s` shows what leaving them out would change.
    """

    role: Literal["candidate", "baseline"]
    steps: tuple[int, ...]
    median_step_s: str
    mean_step_s: str
    mean_without_s: str


class OtherBaseline(Frozen):
    """A baseline that was run for comparison only; the declared one alone decides.

    Attributes:
        resource_matched: it used as many devices as the candidate.
        latency, throughput: the candidate's reduction and gain against it, in percent; None where it could not be run.
    """

    kind: str
    mesh: str
    resource_matched: bool
    latency: Measured | None
    throughput: Measured | None
    detail: str


class Provenance(Frozen):
    """Where the figures come from, as text by name. Sections that say the same for all ranks are stored once.

    Attributes:
        tool: version, git commit and ruleset of the verifier that judged, Python, platform.
        run: start and end (UTC), command lines.
        versions: packages that ran.
        environment: variables that matter to torch, NCCL, CUDA, OpenMP and gloo, as the ranks had them.
        hosts: per host name, its hardware and settings.
        devices: per device id, what it is and what the driver says of it.
        differing: what was not the same on all ranks, in words.
    """

    tool: dict[str, str]
    run: dict[str, str]
    versions: dict[str, str]
    environment: dict[str, str]
    hosts: dict[str, dict[str, str]]
    devices: dict[str, dict[str, str]]
    differing: tuple[str, ...] = ()


class RawFile(Frozen):
    """A record file the verdict rests on."""

    path: str
    sha256: str


class Verdict(Frozen):
    """The whole judgement of one deployment.

    Attributes:
        verdict: the worst row's outcome.
        exit_code: what the command returned: 0 all pass, 1 a claim fails, 3 inconclusive, 4 an error.
        deployment_fingerprint, plan_fingerprint: SHA-256 of the deployment's canonical form and of plan.json.
        static_checks: requirements judged from the file alone.
        counts: rows per outcome, and their total.
        served: of a deployment that serves, how each side answered.
        prediction: whether what the plan predicted came true; it never changes outcome or exit code. None for a look.
        modelled: the replay behind the claims' modelled figures; None where no claim needs one.
        overrides: options that changed the exit code, and nothing else, by name: {"inconclusive": "pass"}.
        raw: every file that the verdict rests on.
    """

    schema_version: str = SCHEMA_VERSION
    ruleset: str = RULESET
    tool_version: str
    name: str
    verdict: Outcome
    exit_code: int
    deployment_fingerprint: str
    plan_fingerprint: str | None
    static_checks: tuple[StaticCheck, ...]
    claims: tuple[Claim, ...]
    counts: dict[str, int]
    devices: tuple[DeviceRow, ...] = ()
    sides: tuple[Side, ...] = ()
    self_test: tuple[SelfCheck, ...] = ()
    sampling: Sampling | None = None
    outliers: tuple[Outliers, ...] = ()
    other_baselines: tuple[OtherBaseline, ...] = ()
    served: tuple[ServedSide, ...] = ()
    prediction: JudgedPrediction | None = None
    modelled: ModelledRun | None = None
    provenance: Provenance | None = None
    warnings: tuple[str, ...] = ()
    overrides: dict[str, str] = {}  # noqa: RUF012 - pydantic copies it
    raw: tuple[RawFile, ...] = ()


_EXIT_CODES = {  # the worst first
    Outcome.ERROR: ExitCode.ERROR,
    Outcome.FAIL: ExitCode.FAIL,
    Outcome.INCONCLUSIVE: ExitCode.INCONCLUSIVE,
    Outcome.PASS: ExitCode.PASS,
    Outcome.NOT_APPLICABLE: ExitCode.PASS,
}


def overall(outcomes: Iterable[Outcome]) -> tuple[Outcome, ExitCode]:
    """The verdict over all rows and its exit code.

    ERROR wins over FAIL, FAIL over INCONCLUSIVE, INCONCLUSIVE over PASS; no row at all is NOT_APPLICABLE with code 0.
    """
    found = set(outcomes)
    worst = next((outcome for outcome in _EXIT_CODES if outcome in found), Outcome.NOT_APPLICABLE)
    return worst, _EXIT_CODES[worst]


INCONCLUSIVE_CODES = {"pass": ExitCode.PASS, "fail": ExitCode.FAIL}


def overridden(verdict: Verdict, overrides: Mapping[str, str]) -> Verdict:
    """The verdict with its exit code as options want it, which is noted in it. Outcomes never change.

    Raises:
        RecordsError: an override that does not exist (read from a file that somebody edited).
    """
    code = int(_EXIT_CODES[verdict.verdict])
    for name, value in overrides.items():
        if name != "inconclusive" or value not in INCONCLUSIVE_CODES:
            raise RecordsError(f"overrides: there is no override {name} = {value!r}; verdict.json was edited")
        if verdict.verdict is Outcome.INCONCLUSIVE:
            code = int(INCONCLUSIVE_CODES[value])
    return verdict.model_copy(update={"exit_code": code, "overrides": dict(overrides)})


def count(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """Rows per outcome and their total: derived, never typed."""
    listed = list(outcomes)
    return {outcome.value: listed.count(outcome) for outcome in Outcome} | {"total": len(listed)}
