"""Peak rates: exact names only, dense rates, and every row with its source."""

from __future__ import annotations

import re

import pytest

from hybrid_runtime.peak_rates import BFLOAT16, FLOAT32, PEAKS, TF32, peak_rate

TERA = 10**12


@pytest.mark.parametrize(
    ("device", "numbers", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", BFLOAT16, 312),
        ("A100-SXM4-40GB", TF32, 156),
        ("NVIDIA A100 80GB PCIe", FLOAT32, 19.5),
        ("NVIDIA H100 80GB HBM3", BFLOAT16, 989.5),
        ("NVIDIA H100 PCIe", BFLOAT16, 756.5),
        ("NVIDIA H100 NVL", BFLOAT16, 835.5),
        ("NVIDIA H200", FLOAT32, 67),
        ("NVIDIA B200", BFLOAT16, 2250),
        ("NVIDIA L40S", BFLOAT16, 362.05),
        ("NVIDIA L40", BFLOAT16, 181.05),
        ("NVIDIA A10", BFLOAT16, 125),
        ("Tesla V100-SXM2-32GB", FLOAT32, 15.7),
        ("NVIDIA GeForce RTX 4090", BFLOAT16, 165.2),
        ("AMD Instinct MI300X", BFLOAT16, 1307.4),
    ],
)
def test_known_devices(device: str, numbers: str, tflops: float) -> None:
    rate = peak_rate(device, numbers)
    assert rate.flops_per_s == round(tflops * TERA)
    assert re.search(
        r"https://((www|images)\.(nvidia|amd)\.com|resources\.nvidia\.com|nvdam\.widen\.net)/", rate.source
    )


@pytest.mark.parametrize(
    "device",
    [
        "AMD EPYC 9654 96-Core Processor",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA A100-SXM-64GB",
        "NVIDIA A10G",
        "NVIDIA H20",
        "NVIDIA H200 NVL",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA L40S and more",
        "",
    ],
)
def test_what_is_not_known_is_not_guessed(device: str) -> None:
    rate = peak_rate(device, BFLOAT16)
    assert rate.flops_per_s is None
    assert rate.source.startswith(f"n/a: no peak rate is known for {device}")


def test_numbers_without_a_matrix_unit() -> None:
    assert peak_rate("Tesla V100-SXM2-16GB", BFLOAT16) == (
        None,
        "n/a: Tesla V100-SXM2-16GB has no matrix unit for bfloat16",
    )


def test_a_declared_peak_outdoes_the_table_and_says_so() -> None:
    for device in ("NVIDIA H100 80GB HBM3", "some CPU"):
        rate = peak_rate(device, FLOAT32, "1.5 TFLOP/s")
        assert (rate.flops_per_s, rate.source) == (1_500_000_000_000, "declared: [telemetry] peak_flops_per_device")


def test_rows_are_sane_and_no_name_has_two() -> None:
    for row in PEAKS:
        assert "https://" in row.source
        known = [rate for rate in (row.float32, row.tf32, row.bfloat16) if rate is not None]
        assert known == sorted(known)
    names = ["NVIDIA L4", "NVIDIA L40", "NVIDIA L40S", "NVIDIA H100 NVL", "NVIDIA H200"]
    assert all(sum(bool(re.fullmatch(row.devices, name)) for row in PEAKS) == 1 for name in names)
