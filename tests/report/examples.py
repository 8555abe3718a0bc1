"""One full verdict for the report tests: every outcome, and names that try to break out of what is drawn."""

from __future__ import annotations

from hybrid_runtime.predicted import RankTime
from hybrid_runtime.prediction_history import Bias
from hybrid_runtime.verdict import (
    Claim,
    DeviceRow,
    Look,
    OtherBaseline,
    Outcome,
    Outliers,
    Provenance,
    RawFile,
    Reason,
    Sampling,
    SelfCheck,
    Side,
    StaticCheck,
    Verdict,
    count,
    overall,
)
from hybrid_runtime.verdict_measured import Evidence, Measured
from hybrid_runtime.verdict_modelled import ModelledFigure, ModelledRun, ModelledStep
from hybrid_runtime.verdict_prediction import (
    BudgetRow,
    JudgedPrediction,
    PredictionVerdict,
    Quantity,
    RankError,
)

NASTY = "[red]x</td>|`*\x1b[31m"
LONG_REASON = (
    "6 ranks share 2 cores, so a wait may be another rank's compute; run on a machine where every rank owns its core, "
    "or read the balance rows, which rest on thread CPU time and the byte ledger"
)


def measured(point: str, lower: str, upper: str, evidence: Evidence = "measured") -> Measured:
    return Measured(
        point=point,
        exact="21/5000",
        lower=lower,
        upper=upper,
        confidence="0.975",
        method="pairwise t over 12 batches of 10 steps, thread_cpu",
        samples=12,
        hardware="cpu-oversubscribed",
        evidence=evidence,
    )


def claim(
    id: str, text: str, unit: str, op: str, threshold: str, outcome: Outcome, detail: str, reason: Reason | None = None,
    figure: Measured | None = None, declared: str | None = None,
) -> Claim:  # fmt: skip
    return Claim.model_validate(
        {"id": id, "text": text, "metric": id, "unit": unit, "op": op, "threshold": threshold, "outcome": outcome,
         "detail": detail, "reason": reason, "measured": figure, "declared": declared}
    )  # fmt: skip


CLAIMS = (
    claim(
        "time_share_range", "compute balance: devices' shares of compute time differ by at most 1 pp", "pp", "<=", "1",
        Outcome.PASS, "devices 0 and 4 set the range", figure=measured("0.42", "0.12", "0.71"),
        declared="33%_computation, 33%_computation, 34%_computation",
    ),
    claim(
        "alloc_peak_share_range", "memory balance", "pp", "<=", "1",
        Outcome.FAIL, "stage 0 holds 3 microbatches in flight, stage 2 holds 1",
        figure=measured("7.9", "7.9", "7.9", evidence="deterministic"),
    ),
    claim(
        "latency_reduction", "latency reduction against the baseline", "%", ">=", "30",
        Outcome.INCONCLUSIVE, LONG_REASON, "oversubscribed", declared="40%",
    ),
    claim("throughput_gain", f"throughput {NASTY}", "%", ">=", "50", Outcome.INCONCLUSIVE, NASTY, "not_given"),
)  # fmt: skip

CHECKS = (
    StaticCheck(id="world_size_product", requirement="TP 2 x PP 3 = 6 ranks on 3 devices", outcome=Outcome.FAIL,
                detail="6 ranks need 6 devices, 3 are declared; nearest valid: tp 1 x pp 3 x dp 1, tp 3 x pp 1 x dp 1"),
    StaticCheck(id="compute_shares", requirement="compute balance <= 1 %", outcome=Outcome.PASS,
                detail="33 %, 33 %, 34 %: the range is exactly 1 pp, and the limit is inclusive"),
    StaticCheck(id="stage_cover", requirement=f"units {NASTY}", outcome=Outcome.INCONCLUSIVE, reason="not_given",
                detail="the file names no model, so nothing says which layers the 3 parts hold"),
    StaticCheck(id="devices_link", requirement="NVLink", outcome=Outcome.NOT_APPLICABLE, detail="no pair is named"),
)  # fmt: skip


def device(rank: int, *, id: str = "", nvml: str = "n/a: no NVIDIA driver") -> DeviceRow:
    return DeviceRow(
        device=id or f"laptop:rank{rank}",
        ranks=(rank,),
        stages=(rank // 2,),
        compute_ns=9_300_000_000 + 40_000_000 * rank,
        window_ns=60_000_000_000,
        wait_ns=31_000_000_000,
        time_share=f"{16.4 + rank / 10:.2f}",
        work_share="16.67",
        busy=f"{15.5 + rank / 10:.1f}",
        memory_bytes=12_595_200 - 1_500_000 * (rank // 2),
        memory_share=f"{17.9 - rank // 2:.2f}",
        memory_parts={
            "parameters": 3_000_000, "gradients": 3_000_000, "optimizer": 6_000_000,
            "activations_peak": 4_000_000 - 1_500_000 * (rank // 2), "buffers_peak": 98_304,
        },
        nvml={"utilisation": nvml},
    )  # fmt: skip


def side(role: str, kind: str, mesh: str, step_time_s: str, tokens_per_s: str) -> Side:
    return Side.model_validate(
        {"role": role, "kind": kind, "mesh": mesh, "schedule": "1f1b", "num_microbatches": 8, "world_size": 6,
         "hardware": "cpu-oversubscribed", "steps_warmup": 10, "steps_measured": 120, "step_time_s": step_time_s,
         "tokens_per_s": tokens_per_s, "first_loss": "5.5452", "last_loss": "2.8731"}
    )  # fmt: skip


DEVICES = tuple(device(rank) for rank in range(6))
SIDES = (
    side("candidate", "candidate", "tp 2 x pp 3 x dp 1", "0.3834", "5342.7"),
    side("baseline", "pp_only", "tp 1 x pp 6 x dp 1", "0.4417", "4636.1"),
)


SELF_TEST = (
    SelfCheck(id="aa", text="the same plan on both sides differs by nothing", unit="%", outcome=Outcome.PASS,
              measured=measured("0.1", "-0.4", "0.6"), detail="the interval holds 0"),
    SelfCheck(id="planted_0.5", text="0.5 pp planted must pass", unit="pp", outcome=Outcome.PASS,
              measured=measured("0.52", "0.41", "0.63"), detail="came out PASS"),
    SelfCheck(id="planted_2", text=f"2 pp planted must fail {NASTY}", unit="pp", outcome=Outcome.INCONCLUSIVE,
              reason="planted_failed", measured=measured("1.9", "0.9", "2.9"), detail=f"the noise hides it {NASTY}"),
    SelfCheck(id="numerics", text="both sides reach the same loss", outcome=Outcome.FAIL, detail="5.1 against 5.2"),
)  # fmt: skip
SAMPLING = Sampling(
    looks_allowed=5, alpha_per_look="0.01", budget_s=600, stopped="budget",
    looks=(Look(blocks=20, elapsed_s="61.2", undecided=("compute_balance",)),
           Look(blocks=40, elapsed_s="120.8", undecided=(NASTY,))),
)  # fmt: skip
OUTLIERS = (
    Outliers(role="candidate", steps=(31, 32, 47), median_step_s="0.3834", mean_step_s="0.391", mean_without_s="0.384"),
    Outliers(role="baseline", steps=(), median_step_s="0.44", mean_step_s="0.44", mean_without_s="0.44"),
)
OTHER_BASELINES = (
    OtherBaseline(kind="tp_only", mesh="tp 6 x pp 1 x dp 1", resource_matched=True,
                  latency=measured("13.2", "12.1", "14.4"), throughput=measured("15.1", "13.8", "16.9"), detail="ran"),
    OtherBaseline(kind="single", mesh="tp 1 x pp 1 x dp 1", resource_matched=False, latency=None, throughput=None,
                  detail=f"out of memory {NASTY}"),
)  # fmt: skip
PROVENANCE = Provenance(
    tool={"version": "0.1.0", "git": "abc"},
    run={"started": "2026-01-01T00:00:00+00:00", "command": f"verify {NASTY}"},
    versions={"torch": "2.13.0"},
    environment={"OMP_NUM_THREADS": "1", NASTY: NASTY},
    hosts={"laptop": {"cpu": "Example 9000", "cores": "2"}, NASTY: {"cpu": NASTY}},
    devices={},
    differing=(f"OMP_NUM_THREADS is 1 on rank 0 and 2 on rank 1 {NASTY}",),
)
MODELLED = ModelledFigure(
    point="91.2", exact="456/5", would="WOULD PASS", method="replay with this run's own costs", beside={NASTY: "55 %"}
)
MODELLED_RUN = ModelledRun(
    method=f"medians of this run {NASTY}",
    steps=(
        ModelledStep(kind="candidate", mesh="tp 2 x pp 3 x dp 1", schedule="zb_v", num_microbatches=8,
                     step_ns=200_000_000, utilisation="91.2"),
        ModelledStep(kind="declared baseline", mesh=NASTY, schedule=NASTY, num_microbatches=1, detail=f"stuck {NASTY}"),
    ),
    ranks=(RankTime(forward_ns=90_000_000, tensor_parallel_ns=30_000_000, idle_ns=80_000_000),),
)  # fmt: skip
PREDICTION = JudgedPrediction(
    verdict=PredictionVerdict.OPTIMISTIC,
    detail=f"time of a step -12.5 % {NASTY}",
    source="rehearsal",
    stale=(),
    quantities=(
        Quantity(id="step_time", text="time of a step", unit="ns", label="modelled", method=f"median {NASTY}",
                 predicted=175_000_000, measured=200_000_000, error="-12.5", exact="-1/8", median_error="-12.5",
                 interval=(170_000_000, 190_000_000), inside=False, limit="10", decides=True,
                 verdict=PredictionVerdict.OPTIMISTIC),
        Quantity(id="peak_memory", text="peak memory of a rank", unit="bytes", label="rehearsed", method="byte ledger",
                 predicted=1_048_576, measured=1_048_576, error="0", exact="0", median_error="0", worst_rank=1,
                 limit="5", decides=True, verdict=PredictionVerdict.PREDICTED,
                 ranks=(RankError(pp_rank=1, predicted=1_048_576, measured=1_048_576, error="0", exact="0"),)),
    ),
    budget_of="step_time",
    budget=(
        BudgetRow(component="forward", predicted_ns=90_000_000, measured_ns=100_000_000, error_ns=-10_000_000),
        BudgetRow(component="messages", predicted_ns=0, measured_ns=0, error_ns=0),
        BudgetRow(component="idle", predicted_ns=85_000_000, measured_ns=100_000_000, error_ns=-15_000_000),
    ),
)  # fmt: skip
HISTORY = (
    Bias(f"EPYC {NASTY}", "rehearsal", "step_time", 7, "-6", 7, 0, True),
    Bias("EPYC", "rehearsal", "term forward", 7, "0.5", 3, 4, False),
)
TIME_PARTS = {"compute": 40 * 10**9, "exposed_communication": 8 * 10**9, "host": 2 * 10**9, "bubble": 10 * 10**9}
METHOD = {
    "self_test": SELF_TEST, "sampling": SAMPLING, "outliers": OUTLIERS, "other_baselines": OTHER_BASELINES,
    "provenance": PROVENANCE,
}  # fmt: skip


def verdict(**changes: object) -> Verdict:
    """The example, with fields exchanged; outcome, counts and exit code follow from its rows."""
    rows = [row.outcome for row in (*CHECKS, *CLAIMS)]
    outcome, code = overall(rows)
    values = {
        "tool_version": "0.1.0", "name": "demo", "verdict": outcome, "exit_code": int(code),
        "deployment_fingerprint": "d" * 64, "plan_fingerprint": "p" * 64, "static_checks": CHECKS, "claims": CLAIMS,
        "counts": count(rows), "devices": DEVICES, "sides": SIDES,
        "warnings": ("NVML says nothing here (no NVIDIA driver)", f"unit {NASTY} has no weights"),
        "raw": (RawFile(path="records/rank0.jsonl", sha256="a" * 64), RawFile(path=NASTY, sha256="b" * 64)),
    }  # fmt: skip
    return Verdict.model_validate(values | changes)
