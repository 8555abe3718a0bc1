"""Every file of tests/fixtures/deployments and configs, with the exit code and the deciding row that it must get."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybrid_runtime.deployment import load_deployment
from hybrid_runtime.errors import DeploymentError
from hybrid_runtime.verdict import StaticCheck, overall
from hybrid_runtime.verifier.static import static_checks

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures" / "deployments"

# file, exit code, deciding row, its outcome (and reason), words that its detail must hold
JUDGED = """
balance_exactly_1.toml             0 time_share_range       PASS  exactly 1 pp
balance_1.01.toml                  1 time_share_range       FAIL  1.01 pp
balance_1.05.toml                  1 time_share_range       FAIL  1.05 pp
balance_1.09.toml                  1 time_share_range       FAIL  1.09 pp
balance_1.10.toml                  1 time_share_range       FAIL  1.1 pp
balance_hair_over.toml             1 time_share_range       FAIL  1.0000001 pp
balance_integers.toml              1 time_share_range       FAIL  1.009899 pp
balance_memory_1.10.toml           1 alloc_peak_share_range FAIL  1.1 pp
balance_rel_spread.toml            1 time_rel_spread        FAIL  3 %
balance_no_share_for_a_device.toml 1 time_share_range       FAIL  2 shares are declared for 3 devices
requirement_free.toml              0 stage_cover            PASS  embedding..1.mlp | 2.attn..3.mlp | 4.attn..head
layers_missing.toml                1 stage_cover            FAIL  30.attn, 30.mlp, 31.attn, 31.mlp, head
unit_twice.toml                    1 stage_cover            FAIL  unit '8.attn' is held 2 times
stage_empty.toml                   1 stage_cover            FAIL  stage 1 is empty
unit_unknown.toml                  1 stage_cover            FAIL  no unit '32.mlp'
piece_missing.toml                 1 stage_cover            FAIL  parts 96 to 100 of unit '1.mlp' are on no stage
piece_not_divisible.toml           1 pieces_divisible       FAIL  cut at 96 or 98
pieces.toml                        0 pieces_divisible       PASS  1.mlp at 96, 4.attn at 2
cuts_too_few.toml                  1 stage_cover            FAIL  3 stages are given, but pp_degree asks for 4
more_stages_than_units.toml        1 stage_cover            FAIL  to 14 stages or less
parts_contradict.toml              1 stage_cover            FAIL  4 parts are declared
rows_missing.toml                  1 embedding_rows         FAIL  add up to 200, but 'embedding' has 252, 251 padded
rows_tied.toml                     0 embedding_rows         PASS  128/0/128 rows; tied: the head's rank holds the whole
heads_not_divisible.toml           1 heads_divisible        FAIL  valid tp degrees are 1, 2
kv_heads_not_divisible.toml        1 kv_heads_divisible     FAIL  valid tp degrees are 1, 2, 4, 12
kv_heads_copied.toml               0 kv_heads_divisible     PASS  each head on 2 ranks
ffn_not_divisible.toml             1 ffn_divisible          FAIL  257 does not divide by tp 2
head_dim_odd.toml                  1 model_shape            FAIL  head_dim 97 is odd
sequence_not_divisible.toml        1 sequence_divisible     FAIL  use 126 or 128
batch_not_divisible.toml           1 batch_divisible        FAIL  use global_batch_size 8 or 10
schedule_unknown.toml              1 schedule               FAIL  did you mean '1f1b'
too_few_devices.toml               1 device_count           FAIL  on 6 devices: tp 2 x pp 3 x dp 1
devices_left_idle.toml             1 world_size_product     FAIL  on 8 devices: tp 2 x pp 4 x dp 1
oversubscribed.toml                0 device_count           PASS  ranks may share devices
memory_too_small.toml              1 device_memory_bytes    FAIL  53.907 GB
links_missing.toml                 1 link_present           FAIL  (0, 2), (0, 3), (1, 3)
axes_not_named.toml                1 parallel_axes          FAIL  tensor has degree 2 and is not named
utilisation_unreachable.toml       1 compute_busy_min       FAIL  at least 38 microbatches
utilisation_reachable.toml         0 compute_busy_min       PASS  at most 95 %
utilisation_100.toml               1 compute_busy_min       FAIL  less than 100 %
no_baseline.toml                   3 latency_reduction      INCONCLUSIVE:not_given  Add [baseline]
baseline_infeasible.toml           3 baseline               INCONCLUSIVE:baseline_infeasible  8 heads do not divide
declaration_not_plan.toml          1 declared_computation   FAIL:declaration_not_plan  gpu_2 is declared as 33.34%
declaration_is_plan.toml           0 declared_computation   PASS  within the rounding
planned_work_unbalanced.toml       1 work_share_range       FAIL  3.1746 pp apart
own_units.toml                     3 stage_cover            INCONCLUSIVE:not_given  my_model:units
speed_incoherent.toml              1 coherence              FAIL  66.6667 % more throughput
speed_coherent.toml                3 coherence              PASS  1.002
counts_do_not_add.toml             1 claim_count            FAIL  10 + 2 = 12, not 13
counts_add.toml                    0 claim_count            PASS  these 2 requirements
"""
REFUSED = {
    "share_without_unit.toml": "declared.computation_distribution.gpu_2 = '34': needs a number and a % unit",
    "shares_sum_to_99.toml": "declared.computation_distribution = (a table): sums to 99 %",
}
ROWS = [line.split(maxsplit=4) for line in JUDGED.strip().splitlines()]


def outcome_text(check: StaticCheck) -> str:
    return f"{check.outcome}:{check.reason}" if check.reason else str(check.outcome)


@pytest.mark.parametrize(("file", "code", "name", "outcome", "words"), ROWS, ids=[row[0] for row in ROWS])
def test_fixture_is_judged(file: str, code: str, name: str, outcome: str, words: str) -> None:
    checks = static_checks(load_deployment(FIXTURES / file))
    assert overall(check.outcome for check in checks)[1] == int(code)
    (decisive,) = [check for check in checks if check.id == name]
    assert outcome_text(decisive) == outcome
    assert words in decisive.detail


@pytest.mark.parametrize("file", REFUSED)
def test_fixture_is_refused(file: str) -> None:
    with pytest.raises(DeploymentError) as refused:
        load_deployment(FIXTURES / file)
    assert refused.value.exit_code == 2
    assert REFUSED[file] in str(refused.value)


def test_every_fixture_is_in_the_table() -> None:
    assert {path.name for path in FIXTURES.glob("*.*ml")} == {row[0] for row in ROWS} | set(REFUSED)


def test_exactly_one_row_decides_a_bad_fixture() -> None:
    """A fixture shows one fault: apart from rows that follow from it, nothing else may fail."""
    follows = {
        "too_few_devices.toml": {"world_size_product"},
        "balance_no_share_for_a_device.toml": {"world_size_product"},
    }
    for file, _, name, outcome, _ in ROWS:
        checks = static_checks(load_deployment(FIXTURES / file))
        failed = {check.id for check in checks if check.outcome == "FAIL"} - follows.get(file, set())
        assert failed == ({name} if outcome.startswith("FAIL") else set()), file


@pytest.mark.parametrize("file", ["demo.toml", "two_cores.toml", "two_cores_pipeline.toml", "llama3_8b.toml"])
def test_example_configs_pass_every_static_check(file: str) -> None:
    checks = static_checks(load_deployment(ROOT / "configs" / file))
    assert overall(check.outcome for check in checks) == ("PASS", 0)
