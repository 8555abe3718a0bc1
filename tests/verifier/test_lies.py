"""How a verifier is made to lie, by intent or by accident: one test per lie, which shows the catch working.

Lies of the self-tests (A/A, planted imbalance, observer), of looking until it passes and of the gradient norms have
their tests beside `self_test`, `sampling` and `numerics`; damaged and forged run folders are in `test_recheck.py`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hybrid_runtime.deployment import load_deployment, parse_deployment
from hybrid_runtime.errors import DeploymentError, RecordsError
from hybrid_runtime.plan import read_plan
from hybrid_runtime.records import Device, Host
from hybrid_runtime.verdict import Claim, Outcome, Verdict
from hybrid_runtime.verifier.judge import judge, recheck, write_verdict
from hybrid_runtime.verifier.static import static_checks
from tests.commands import ROOT, command
from tests.verifier.nvml_examples import write_nvml
from tests.verifier.synthetic import (
    MS,
    WARMUP,
    Synthetic,
    deployment,
    judged,
    noisy,
    planted,
    prediction,
    rewrite,
    steady,
    write_run,
)

PASS, FAIL, INCONCLUSIVE = Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE
BALANCE = {"targets": {"compute_balance_pp": 1}}
MEMORY = {"targets": {"memory_balance_pp": 1}}
UTILISATION = {"targets": {"utilisation_percent": 90}}
SPEED = {"latency_reduction_percent": 30, "throughput_gain_percent": 50}
GPUS = deployment(targets={"compute_balance_pp": 1, "utilisation_percent": 90}, hardware={"device": "cuda"})


def row(verdict: Verdict, name: str) -> Claim:
    return next(claim for claim in verdict.claims if claim.id == name)


def on_gpus(folder: Path, side: Synthetic, **seen: Any) -> Verdict:
    """A GPU run with what NVML saw of it."""
    run = write_run(folder, side, GPUS)
    write_nvml(run, **seen)
    return judge(run)


def against(folder: Path, candidate: Synthetic, baseline: Synthetic, **more: Any) -> list[Claim]:
    """The latency row, then the throughput row."""
    deployed = deployment(candidate.shape, targets=SPEED, baseline={"kind": "pp_only"})
    rows = judge(write_run(folder, candidate, deployed, baseline=baseline, **more)).claims
    return [claim for claim in rows if claim.id in ("latency_reduction", "throughput_gain")]


def seconds(window_ns: int, steps: int = 120, **more: Any) -> Synthetic:
    return steady([MS] * 3, steps, window_ns=[window_ns] * steps, **more)


# The figures are made up.


def test_results_are_typed_into_the_deployment(tmp_path: Path) -> None:
    """95 % utilisation and 40 % less latency are written down; nothing was measured, or something else was."""
    declared = {"utilisation": "95%", "latency_reduction": "40%"}
    targets = {"utilisation_percent": 90, "latency_reduction_percent": 30}
    unmeasured = static_checks(deployment(targets=targets, declared=declared))
    assert {check.reason for check in unmeasured if check.id == "latency_reduction"} == {"not_measured"}
    side = steady([500, 500, 500], window_ns=[1000] * 120)
    verdict = judge(write_run(tmp_path, side, deployment(targets=targets, declared=declared)))
    half, latency = row(verdict, "utilisation"), row(verdict, "latency_reduction")
    assert (half.outcome, half.declared, half.measured and half.measured.point) == (FAIL, "95%", "50")
    assert (latency.outcome, latency.reason, latency.measured) == (INCONCLUSIVE, "not_measured", None)


def test_results_are_typed_into_the_verdict(tmp_path: Path) -> None:
    """verdict.json was written by hand: it names no raw files, or such as are not there."""
    run = write_run(tmp_path, planted(0.5), deployment(**BALANCE))
    honest = judge(run)
    write_verdict(honest.model_copy(update={"raw": ()}), run / "verdict.json")
    with pytest.raises(RecordsError, match="names no raw files"):
        recheck(run)
    alone = tmp_path / "alone"
    alone.mkdir()
    write_verdict(honest, alone / "verdict.json")
    with pytest.raises(RecordsError, match=r"deployment.json: is missing"):
        recheck(alone)


def test_the_prediction_is_made_after_the_run(tmp_path: Path) -> None:
    """What was measured is written into plan.json as what had been predicted; the records carry the plan's hash."""
    side = steady([30 * MS] * 3, 20, memory_bytes=[1000] * 3, predicted=prediction(50 * MS, [40 * MS] * 3, [900] * 3))
    run = write_run(tmp_path, side)
    before = judge(run).prediction
    plan = read_plan(run / "plan.json")
    better = plan.model_copy(update={"predicted": prediction(30 * MS + 1000, [30 * MS] * 3, [1000] * 3)})
    (run / "plan.json").write_text(better.to_json())
    assert before is not None
    assert before.verdict == "OPTIMISTIC"
    with pytest.raises(RecordsError, match=r"plan\.json: is not the plan that the records were made with"):
        judge(run)


@pytest.mark.parametrize(("last", "outcome"), [("34%", PASS), ("33.34%", FAIL)])
def test_the_claim_is_edited_until_it_passes(tmp_path: Path, last: str, outcome: Outcome) -> None:
    """33/33/34 is declared as 33.33/33.33/33.34, and no module is moved."""
    first = "33%" if last == "34%" else "33.33%"
    declared = {"computation_distribution": {"a": first, "b": first, "c": last}}
    side = steady([MS] * 3, flops=[33, 33, 34])
    found = judged(tmp_path, side, "declared_computation", declared=declared)
    assert (found.outcome, found.reason) == (outcome, None if outcome is PASS else "declaration_not_plan")


@pytest.mark.parametrize(("over", "outcome"), [(0, PASS), (1, FAIL), (5 * 10**7, FAIL), (10**8, FAIL)])
def test_the_limit_gets_a_tolerance(tmp_path: Path, over: int, outcome: Outcome) -> None:
    """`abs(d - 0.01) < 0.001` lets 1.05 and 1.10 points pass; exactly 1 passes, a billionth more does not."""
    memory = [33 * 10**9, 33 * 10**9, 34 * 10**9 + over]
    assert judged(tmp_path, steady([MS] * 3, memory_bytes=memory), "memory_balance", **MEMORY).outcome is outcome


# Averages and offsets hide what one device does.


def test_the_mean_over_devices_hides_the_idle_one(tmp_path: Path) -> None:
    """Two devices are 99 % busy and one 72 %: 90 % on average."""
    side = steady([990, 990, 720], window_ns=[1000] * 120)
    found = judged(tmp_path, side, "utilisation", **UTILISATION)
    assert (found.outcome, found.measured and found.measured.point) == (FAIL, "72")
    assert "least busy is host:2" in found.detail


def test_the_mean_of_the_steps_ranges_hides_the_balance(tmp_path: Path) -> None:
    """Every single step of a balanced system with 2 % noise is out of balance by more than 1 point, on average."""
    side = noisy([10 * MS] * 3, 0.02, 1, steps=400)
    ranges = [(max(step) - min(step)) / sum(step) for step in side.compute_ns]
    assert sum(ranges) / len(ranges) > 0.01
    assert judged(tmp_path, side, "compute_balance", **BALANCE).outcome is PASS


def test_constant_offsets_dilute_the_shares(tmp_path: Path) -> None:
    """20/20/28 MB of tensors look balanced inside processes of 273 MB, and so do caches that the allocator keeps."""
    tensors = [20 * 10**6, 20 * 10**6, 28 * 10**6]
    resident = [size + 273 * 10**6 for size in tensors]
    assert (max(resident) - min(resident)) * 100 < sum(resident)
    found = judged(tmp_path / "cpu", steady([MS] * 3, memory_bytes=tensors), "memory_balance", **MEMORY)
    assert (found.outcome, found.measured and found.measured.point) == (FAIL, "11.7647")
    cached = steady([10 * MS] * 3, kind="cuda", memory_bytes=[2**30] * 3, reserved_factor=2)
    verdict = on_gpus(tmp_path / "gpu", cached, used_bytes=(2**31, 2**31, 2**31 + 2**30))
    assert "GPU-0: the allocator reserves 2048 MiB for 1024 MiB in use" in " ".join(verdict.warnings)
    assert "GPU-2 uses 1024 MiB and GPU-0 0 MiB" in " ".join(verdict.warnings)


def test_a_spinning_collective_counts_as_utilisation(tmp_path: Path) -> None:
    """NVML says 99 %, because NCCL's kernels spin; the device computes 60 % of the time."""
    verdict = on_gpus(tmp_path, steady([6 * MS] * 3, window_ns=[10 * MS] * 120, kind="cuda"))
    found = row(verdict, "utilisation")
    assert (found.outcome, found.measured and found.measured.point) == (FAIL, "60")
    assert any("NVML says 99 % utilised, but it computed 60 %" in warning for warning in verdict.warnings)


def test_waits_for_tensor_parallel_peers_make_durations_equal(tmp_path: Path) -> None:
    """All actions take 10 ms because they end in an all-reduce; one rank computes 6 ms of them and waits."""
    side = steady([10 * MS, 10 * MS, 6 * MS], wait_ns=[0, 0, 4 * MS])
    found = judged(tmp_path, side, "compute_balance", **BALANCE)
    assert (found.outcome, "host:2 23.08 %" in found.detail) == (FAIL, True)


# The hardware is not what it is said to be.


def test_two_ranks_share_one_gpu(tmp_path: Path) -> None:
    """Three ranks on one GPU are shown as three balanced devices."""
    shared = Device(kind="cuda", id="GPU-0", name="gpu", owned=False, total_bytes=None)
    side = steady([MS] * 3, kind="cuda", header={"device": shared})
    tables = {"hardware": {"device": "cuda", "devices": 3, "oversubscribe": True}, **BALANCE}
    found = judged(tmp_path, side, "compute_balance", **tables)
    assert (found.outcome, found.detail) == (
        Outcome.NOT_APPLICABLE,
        "one device (GPU-0) has nothing to be balanced with",
    )
    verdict = judge(tmp_path)
    assert verdict.devices[0].compute_ns == 3 * 120 * MS
    assert row(verdict, "device_count").outcome is FAIL
    lie = steady([MS] * 3, kind="cuda", header={"device": shared.model_copy(update={"owned": True})})
    with pytest.raises(RecordsError, match="both say that they own device GPU-0"):
        judged(tmp_path / "owned", lie, "compute_balance", **BALANCE)


def test_another_gpu_is_sampled(tmp_path: Path) -> None:
    """The driver's index 0 is not torch's: NVML watched GPUs that no rank used, idle and cool."""
    verdict = on_gpus(tmp_path, steady([10 * MS] * 3, kind="cuda"), uuids=("GPU-7", "GPU-8", "GPU-9"))
    assert [device.nvml for device in verdict.devices] == [{"NVML": "n/a: no sample fell inside a measured block"}] * 3
    assert sum("NVML did not watch this device" in warning for warning in verdict.warnings) == 3


def test_more_ranks_than_cores(tmp_path: Path) -> None:
    """Eight ranks on two cores: wall-clock times are the scheduler's, and a speed-up means nothing."""
    eight = steady([MS] * 8, window_ns=[6 * MS] * 120, owned=False)
    other = steady([MS] * 8, window_ns=[12 * MS] * 120, owned=False)
    assert {claim.reason for claim in against(tmp_path, eight, other)} == {"oversubscribed"}


def test_pinning_is_configured_but_not_effective(tmp_path: Path) -> None:
    """Every rank says it owns its core, but the affinity read back is core 0 for all."""
    host = Host(name="host", affinity=(0,), available_cores=3, threads_per_rank=1, local_world_size=3)
    side = steady([MS] * 3, header={"host": host})
    found = judged(tmp_path, side, "utilisation", targets={"utilisation_percent": 1})
    assert (found.outcome, found.reason) == (INCONCLUSIVE, "oversubscribed")


def test_a_cpu_result_is_shown_for_a_gpu_deployment(tmp_path: Path) -> None:
    """The deployment is for GPUs, the run was on CPUs: only exact claims are decided."""
    hardware = {"device": "cuda", "devices": 3, "memory_per_device": "32 GB", "interconnect": "nvlink"}
    targets = {"compute_balance_pp": 1, "memory_balance_pp": 1, "utilisation_percent": 50}
    verdict = judge(write_run(tmp_path, steady([MS] * 3), deployment(targets=targets, hardware=hardware)))
    outcomes = {claim.id: (claim.outcome, claim.reason) for claim in verdict.claims}
    assert outcomes.pop("memory_balance") == (PASS, None)
    assert len(outcomes) == 5
    assert set(outcomes.values()) == {(INCONCLUSIVE, "hardware_mismatch")}


def test_another_process_uses_the_devices(tmp_path: Path) -> None:
    """Somebody else computes on the GPU, or on a rank's own core."""
    verdict = on_gpus(tmp_path / "gpu", planted(0, kind="cuda"), processes=2)
    assert row(verdict, "compute_balance").reason == "foreign_process"
    assert "GPU-0: 2 processes computed on it, 1 of them ranks" in row(verdict, "compute_balance").detail
    assert judged(tmp_path / "cpu", planted(0, foreign_percent=6), "compute_balance", **BALANCE).reason == "contended"


@pytest.mark.parametrize("seen", [{"mask": 0x40}, {"slowed_ns": 10**14}], ids=["seen in samples", "counted between"])
def test_a_device_is_throttled(tmp_path: Path, seen: dict[str, int]) -> None:
    """A hot GPU slows down, in bursts that a sample every 200 ms misses but the driver counts."""
    found = row(on_gpus(tmp_path, planted(0, kind="cuda"), **seen), "compute_balance")
    assert (found.outcome, found.reason) == (INCONCLUSIVE, "throttled")
    assert "hardware thermal" in found.detail


def test_the_devices_clocks_are_unequal(tmp_path: Path) -> None:
    """One GPU runs 4 % slower: the plan is not out of balance, the silicon is."""
    found = row(on_gpus(tmp_path, planted(0, kind="cuda"), clocks=(1980, 1980, 1900)), "compute_balance")
    assert (found.outcome, found.reason) == (INCONCLUSIVE, "clock_spread")


# What was measured is chosen afterwards.


def test_warm_up_is_counted(tmp_path: Path) -> None:
    """Slow first steps make a speed-up of later ones; here they are three times slower and marked as measured."""
    run = write_run(tmp_path, planted(0.5), deployment(**BALANCE))
    assert judge(run).sides[0].step_time_s == "0.010076"
    rewrite(run, lambda rank, record: record | {"phase": "measure"} if record["type"] == "step" else record)
    with pytest.raises(RecordsError, match=f"0 steps of warm-up, but the deployment says {WARMUP}"):
        judge(run)


@pytest.mark.parametrize(
    ("left_out", "says"),
    [
        (lambda step: step in (27, 28), "block 3 leaves out steps that must be judged"),
        (lambda step: 24 <= step < 34, "block 3 leaves out steps that must be judged"),
        (lambda step: 24 <= step < 27, "block 3 leaves out steps that must be judged"),
        (lambda step: step < 8, "block 1 leaves out steps that must be judged"),
    ],
    ids=["slow steps", "a slow block", "a slow start", "a longer warm-up"],
)
def test_the_window_is_cherry_picked(tmp_path: Path, left_out: Any, says: str) -> None:
    """Steps that spoil the figure are called warm-up afterwards, on all ranks alike."""
    run = write_run(tmp_path, planted(0.5), deployment(**BALANCE))

    def call_warm_up(rank: int, record: dict[str, Any]) -> dict[str, Any]:
        hidden = record["type"] == "step" and left_out(record["step"])
        return record | {"phase": "warmup"} if hidden else record

    rewrite(run, call_warm_up)
    with pytest.raises(RecordsError, match=says):
        judge(run)


def test_steps_are_cut_out(tmp_path: Path) -> None:
    """Steps that spoil the figure are removed on all ranks, and the others are numbered anew."""
    run = write_run(tmp_path, planted(0.5), deployment(**BALANCE))
    rewrite(run, lambda rank, record: None if record.get("step") in (27, 28) else record)
    with pytest.raises(RecordsError, match=r"blocks of \[8, 10\] judged steps"):
        judge(run)


def test_the_best_of_many_runs_is_shown(tmp_path: Path) -> None:
    """The deployment was launched three times, and the third passed. (How launches are counted: test_launches.py.)"""
    side = planted(0.5, header={"earlier_launches": ("demo-1", "demo-2"), "launch": {"command": "x"}})
    verdict = judge(write_run(tmp_path, side, deployment(**BALANCE)))
    assert verdict.warnings == (
        "launch 3 of exactly this deployment beside this folder: demo-1, demo-2 came before; judge them too, the best "
        "of several runs is no measurement",
    )
    assert verdict.provenance is not None
    assert verdict.provenance.run["candidate: earlier launches of exactly this deployment"] == "demo-1, demo-2"


# The comparison is unfair.


def test_the_baseline_is_weak(tmp_path: Path) -> None:
    """The baseline trains smaller batches, with another optimizer, or from another seed."""
    small = {"global_batch_size": 4, "microbatch_size": 2, "sequence_length": 128}
    for number, (tables, named) in enumerate(
        [
            ({"batch": small}, "batch.global_batch_size"),
            ({"optimizer": {"learning_rate": "0.01"}, "workload": {"seed": 1}}, "optimizer, workload.seed"),
            ({"model": {"preset": "tiny", "dtype": "bfloat16"}}, "model"),
        ]
    ):
        other = deployment(**tables)
        rows = against(tmp_path / str(number), seconds(6 * MS), seconds(10 * MS), baseline_deployed=other)
        assert {claim.reason for claim in rows} == {"loads_differ"}
        assert f"differ in {named}" in rows[0].detail


@pytest.mark.parametrize(
    ("less", "says"),
    [
        ({"tokens": 512}, "512 tokens against 1024"),
        ({"loss": 5.52}, "loss 5.52 against the baseline's 5.5"),
        ({"loss": None}, "recorded no loss"),
        ({"flops": [500, 500, 500]}, "the modules that ran do 1500 FLOPs a step, the model's units need 1680"),
    ],
)
def test_less_work_is_done(tmp_path: Path, less: dict[str, Any], says: str) -> None:
    """The candidate skips tokens, computes something else, or runs smaller modules."""
    for claim in against(tmp_path, seconds(6 * MS, **less), seconds(10 * MS)):
        assert (claim.outcome, claim.reason) == (INCONCLUSIVE, "loads_differ")
        assert says in claim.detail


def test_microbatches_are_skipped(tmp_path: Path) -> None:
    """A rank leaves out an action of its plan, or does one twice under another name."""
    run = write_run(tmp_path, planted(0.5), deployment(**BALANCE))

    def skip(rank: int, record: dict[str, Any]) -> dict[str, Any]:
        if (rank, record.get("step")) == (1, 50):
            record["spans"] = [span for span in record["spans"] if span[0] != "1B0"]
        return record

    rewrite(run, skip)
    with pytest.raises(RecordsError, match=r"rank1.jsonl: step 50 lacks 1B0, and the plan says otherwise"):
        judge(run)


def test_a_drift_of_the_machine_is_sold_as_a_speed_up(tmp_path: Path) -> None:
    """The same plan on both sides and a machine that slows down: A...A B...B shows a gain, A B B A does not."""
    drift = [round(10 * MS * (1 + 0.02 * step / 240)) for step in range(240)]
    first, last = replace(seconds(0), window_ns=drift[:120]), replace(seconds(0), window_ns=drift[120:])
    order = [(side, block) for side in ("candidate", "baseline") for block in range(1, 13)]
    rows = against(tmp_path / "aabb", first, last, order=order)
    assert {claim.reason for claim in rows} == {"aa_failed"}
    assert "AAAAAAAAAAAABBBBBBBBBBBB" in rows[0].detail
    assert rows[0].measured is not None
    assert float(rows[0].measured.point) > 0.9
    blocks = [drift[start : start + 10] for start in range(0, 240, 10)]
    ours = [time for k in range(12) for time in blocks[2 * k + k % 2]]
    theirs = [time for k in range(12) for time in blocks[2 * k + 1 - k % 2]]
    rows = against(tmp_path / "abba", replace(first, window_ns=ours), replace(last, window_ns=theirs))
    assert rows[0].measured is not None
    assert abs(float(rows[0].measured.point)) < 0.01


def test_latency_and_throughput_are_of_different_loads(tmp_path: Path) -> None:
    """40 % less latency and 60 % more throughput cannot both be true of one load."""
    fixture = load_deployment(ROOT / "tests/fixtures/deployments/speed_incoherent.toml")
    assert {check.id: check.outcome for check in static_checks(fixture)}["coherence"] is FAIL
    rows = against(tmp_path, seconds(6 * MS), seconds(10 * MS))
    points = [float(claim.measured.point) / 100 for claim in rows if claim.measured]
    assert (1 - points[0]) * (1 + points[1]) == pytest.approx(1, abs=1e-5)


# Times are not what they seem.


def test_the_launch_is_timed_instead_of_the_execution(tmp_path: Path) -> None:
    """The window closes when the kernels are queued; the device is still at work when it ends."""
    run = write_run(tmp_path, planted(0.5), deployment(**BALANCE))
    rewrite(run, lambda rank, record: record | {"end_ns": record["start_ns"] + 1} if "spans" in record else record)
    with pytest.raises(RecordsError, match="has an impossible time"):
        judge(run)


def test_clock_skew_invents_bubbles(tmp_path: Path) -> None:
    """Two hosts' clocks differ by more than a step, or are tied together more loosely than a hundredth of one."""
    run = write_run(tmp_path / "skewed", planted(0.5), deployment(**BALANCE))
    late = 30 * MS

    def skew(rank: int, record: dict[str, Any]) -> dict[str, Any]:
        return record | {"clock_offset_ns": late} if (rank, record["type"]) == (2, "header") else record

    rewrite(run, skew)
    with pytest.raises(RecordsError, match=r"step 5 begins in rank0.jsonl before step 4 ends in rank2.jsonl"):
        judge(run)

    def on_another_host(rank: int, record: dict[str, Any]) -> dict[str, Any]:
        if (rank, record["type"]) == (2, "header"):
            record["host"]["name"] = "other"
        return record

    rewrite(run, on_another_host)
    assert judge(run).sides[0].step_time_s == "0.040076", "hosts' clocks may drift: the window is longer, never shorter"
    loose = planted(0.5, header={"clock_uncertainty_ns": 100_000})
    (warning,) = judge(write_run(tmp_path / "loose", loose, deployment(**BALANCE))).warnings
    assert "the hosts' clocks agree to 200 µs only, 2 % of a step" in warning


def test_only_rank_0_reports(tmp_path: Path) -> None:
    """One rank's figures stand for all."""
    run = write_run(tmp_path, planted(0.5), deployment(**BALANCE))
    for rank in (1, 2):
        (run / f"records/rank{rank}.jsonl").unlink()
    with pytest.raises(RecordsError, match=r"records of ranks \[0\], but 3 ranks ran; missing \[1, 2\]"):
        judge(run)


def test_samples_without_noise_are_made_up(tmp_path: Path) -> None:
    """Real times scatter; a hundred equal ones are pointed out."""
    assert "no spread at all between noisy samples: suspicious" in judged(
        tmp_path, planted(0.5), "compute_balance", **BALANCE
    ).detail  # fmt: skip


def test_units_are_mixed(tmp_path: Path) -> None:
    """GB for GiB, a share without %, and figures whose unit nobody can tell."""
    side = steady([MS] * 3, kind="cuda", device_bytes=32 * 10**9)
    for size, outcome in (("32 GB", PASS), ("32 GiB", FAIL)):
        hardware = {"device": "cuda", "memory_per_device": size}
        assert judged(tmp_path / size, side, "device_memory", hardware=hardware).outcome is outcome
    with pytest.raises(DeploymentError, match="needs a number and a % unit"):
        parse_deployment({"name": "x", "declared": {"utilisation": "95"}}, source="x")
    with pytest.raises(DeploymentError, match="memory_per_device"):
        parse_deployment({"name": "x", "hardware": {"memory_per_device": "32"}}, source="x")
    assert all(claim.unit for claim in judge(tmp_path / "32 GB").claims)


# The verifier cannot fail: what must come out of known-bad deployments and runs, by exit code and deciding row.

BAD_FILES = """
configs/original_three_gpu.json                          1
tests/fixtures/deployments/balance_hair_over.toml        1
tests/fixtures/deployments/balance_integers.toml         1
tests/fixtures/deployments/balance_1.05.toml             1
tests/fixtures/deployments/balance_1.09.toml             1
tests/fixtures/deployments/balance_1.10.toml             1
tests/fixtures/deployments/share_without_unit.toml       2
tests/fixtures/deployments/shares_sum_to_99.toml         2
tests/fixtures/deployments/declaration_not_plan.toml     1
tests/fixtures/deployments/layers_missing.toml           1
tests/fixtures/deployments/stage_empty.toml              1
tests/fixtures/deployments/utilisation_unreachable.toml  1
tests/fixtures/deployments/speed_incoherent.toml         1
tests/fixtures/deployments/counts_do_not_add.toml        1
"""
BAD_RUNS = {
    "planted 1.5 pp": (planted(1.5, cv=0.003, seed=4), BALANCE, 1),
    "planted 2 pp": (planted(2.0, cv=0.003, seed=5), BALANCE, 1),
    "planted 0.5 pp, which is good": (planted(0.5, cv=0.003, seed=1), BALANCE, 0),
    "bytes differ between repeats": (
        steady([MS] * 3, memory_bytes=[[100, 100, 100], [100, 100, 110], [100, 100, 100]]), MEMORY, 3,
    ),
    "too few samples": (planted(0.5, cv=0.003, seed=1, steps=1), BALANCE, 3),
    "8 ranks on 2 cores": (steady([MS] * 8, owned=False), {"targets": {"utilisation_percent": 1}}, 3),
    "20, 20 and 28 MB": (steady([MS] * 3, memory_bytes=[20, 20, 28]), MEMORY, 1),
}  # fmt: skip


@pytest.mark.parametrize(("file", "code"), [line.split() for line in BAD_FILES.split("\n") if line])
def test_the_verifier_cannot_fail_a_file(file: str, code: str) -> None:
    """`check` of a bad file ends as documented."""
    done = command("check", ROOT / file)
    assert done.code == int(code), done


@pytest.mark.parametrize("name", BAD_RUNS)
def test_the_verifier_cannot_fail_a_run(name: str, tmp_path: Path) -> None:
    """Judging a bad run ends as documented."""
    side, tables, code = BAD_RUNS[name]
    write_run(tmp_path / "run", side, deployment(side.shape, **tables))
    done = command("verify", "--recheck", tmp_path / "run")
    assert done.code == code, done
