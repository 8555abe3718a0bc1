"""How many FLOP/s a device's matrix units can do at most, by the device's name and the numbers that are multiplied.

Dense rates with float32 sums, as the maker's data sheet gives them, in TFLOP/s (10^12 FLOPs per second; a multiply-add
is two). NVIDIA's newer sheets print rates "with sparsity", which are twice the dense ones: these are halved here, and
`source` says so. Of each row at least the bfloat16 rate, or float32 where there is none, was found again where others
print from that sheet (November 2026); rows of which it was not (GH200, H200 NVL) were taken out. A name must match as a
whole: a slice of a GPU (MIG), a relative, or a CPU is not in the table, and what is not in it is n/a, never a guess. A
deployment may state its own ([telemetry] peak_flops_per_device).

A row is added with its maker's sheet as source, and with what the driver really calls the device.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from hybrid_runtime.exact import parse_flops_per_s

FLOAT32, TF32, BFLOAT16 = "float32", "tf32", "bfloat16"


class Peak(NamedTuple):
    """One kind of device.

    Attributes:
        devices: a regular expression for the whole name, as torch and the driver give it.
        float32, tf32, bfloat16: TFLOP/s of products of float32 numbers, of float32 numbers rounded to TF32, and of
            bfloat16 numbers; None where the device has no unit for them.
    """

    devices: str
    float32: float
    tf32: float | None
    bfloat16: float | None
    source: str


_SHEETS = "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center"
_SPARSE = "(rates with sparsity, halved)"
_BLACKWELL = "NVIDIA Blackwell data sheet"
_BLACKWELL_SHEET = "https://nvdam.widen.net/s/wwnsxrhm2w/blackwell-datasheet-3384703"
PEAKS = (
    Peak(
        r"(NVIDIA )?A100-(SXM|SXM4|PCIE)-[48]0GB|NVIDIA A100 80GB PCIe",
        19.5, 156, 312, f"NVIDIA A100 data sheet, {_SHEETS}/a100/pdf/nvidia-a100-datasheet-nvidia-us-2188504-web.pdf",
    ),
    Peak(
        r"NVIDIA H100 80GB HBM3",
        67, 494.5, 989.5, f"NVIDIA H100 data sheet, H100 SXM {_SPARSE}, https://www.nvidia.com/en-us/data-center/h100/",
    ),
    Peak(
        r"NVIDIA H100 PCIe",
        51, 378, 756.5,
        f"NVIDIA H100 data sheet of 2022, H100 PCIe {_SPARSE}, "
        "https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet",
    ),
    Peak(
        r"NVIDIA H100 NVL",
        60, 417.5, 835.5,
        f"NVIDIA H100 data sheet, H100 NVL {_SPARSE}, https://www.nvidia.com/en-us/data-center/h100/",
    ),
    Peak(
        r"NVIDIA H200",
        67, 494.5, 989.5, f"NVIDIA H200 data sheet, H200 SXM {_SPARSE}, https://www.nvidia.com/en-us/data-center/h200/",
    ),
    Peak(
        r"NVIDIA B200",
        75, 1100, 2250, f"{_BLACKWELL}, one GPU of HGX B200 {_SPARSE}, {_BLACKWELL_SHEET}",
    ),
    Peak(
        r"NVIDIA GB200",
        80, 1250, 2500, f"{_BLACKWELL}, one GPU of GB200 NVL72 {_SPARSE}, {_BLACKWELL_SHEET}",
    ),
    Peak(r"NVIDIA L40S", 91.6, 183, 362.05, "NVIDIA L40S data sheet, https://www.nvidia.com/en-us/data-center/l40s/"),
    Peak(r"NVIDIA L40", 90.5, 90.5, 181.05, "NVIDIA L40 data sheet, https://www.nvidia.com/en-us/data-center/l40/"),
    Peak(
        r"NVIDIA L4",
        30.3, 60, 121, f"NVIDIA L4 data sheet {_SPARSE}, https://www.nvidia.com/en-us/data-center/l4/",
    ),
    Peak(r"NVIDIA A10", 31.2, 62.5, 125, f"NVIDIA A10 data sheet, {_SHEETS}/a10/pdf/a10-datasheet.pdf"),
    Peak(
        r"NVIDIA A30", 10.3, 82, 165, f"NVIDIA A30 data sheet, {_SHEETS}/products/a30-gpu/pdf/a30-datasheet.pdf",
    ),
    Peak(r"NVIDIA A40", 37.4, 74.8, 149.7, f"NVIDIA A40 data sheet, {_SHEETS}/a40/nvidia-a40-datasheet.pdf"),
    Peak(
        r"NVIDIA RTX A6000",
        38.7, 77.4, 154.8, "NVIDIA Ampere GA102 architecture white paper, appendix, RTX A6000, "
        "https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf",
    ),
    Peak(
        r"(NVIDIA )?Tesla V100-SXM2-(16|32)GB",
        15.7, None, None,
        "NVIDIA V100 data sheet, V100 SXM2; its tensor cores take float16 only, "
        "https://images.nvidia.com/content/technologies/volta/pdf/volta-v100-datasheet-update-us-1165301-r5.pdf",
    ),
    Peak(
        r"(NVIDIA )?Tesla V100-PCIE-(16|32)GB",
        14, None, None,
        "NVIDIA V100 data sheet, V100 PCIe; its tensor cores take float16 only, "
        "https://images.nvidia.com/content/technologies/volta/pdf/volta-v100-datasheet-update-us-1165301-r5.pdf",
    ),
    Peak(
        r"(NVIDIA )?(Tesla )?T4",
        8.1, None, None, "NVIDIA T4 data sheet; its tensor cores take float16 only, "
        "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/tesla-t4/t4-tensor-core-datasheet-951643.pdf",
    ),
    Peak(
        r"NVIDIA GeForce RTX 4090",
        82.6, 82.6, 165.2, "NVIDIA Ada GPU architecture white paper, appendix A, RTX 4090, float32 sums, "
        "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf",
    ),
    Peak(
        r"NVIDIA GeForce RTX 3090",
        35.6, 35.6, 71, "NVIDIA Ampere GA102 architecture white paper, table 3, RTX 3090, float32 sums, "
        "https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf",
    ),
    Peak(
        r"AMD Instinct MI300X( OAM| VF)?",
        163.4, 653.7, 1307.4, "AMD Instinct MI300X data sheet, "
        "https://www.amd.com/en/products/accelerators/instinct/mi300/mi300x.html",
    ),
    Peak(
        r"AMD Instinct MI325X( OAM| VF)?",
        163.4, 653.7, 1307.4, "AMD Instinct MI325X data sheet, "
        "https://www.amd.com/en/products/accelerators/instinct/mi300/mi325x.html",
    ),
)  # fmt: skip


class Rate(NamedTuple):
    """A device's peak.

    Attributes:
        flops_per_s: None where it is not known; then `source` says why.
        source: where it is from, in words.
    """

    flops_per_s: int | None
    source: str


def peak_rate(device: str, numbers: str, declared: str | None = None) -> Rate:
    """The peak of one device for products of these numbers.

    Args:
        device: its name; a CPU's is in no table.
        numbers: FLOAT32, TF32 or BFLOAT16.
        declared: the deployment's own, for example "200 TFLOP/s"; it outdoes the table.
    """
    if declared is not None:
        return Rate(int(parse_flops_per_s(declared)), "declared: [telemetry] peak_flops_per_device")
    row = next((row for row in PEAKS if re.fullmatch(row.devices, device)), None)
    if row is None:
        return Rate(None, f"n/a: no peak rate is known for {device or 'a device without a name'}")
    rate = {FLOAT32: row.float32, TF32: row.tf32, BFLOAT16: row.bfloat16}[numbers]
    if rate is None:
        return Rate(None, f"n/a: {device} has no matrix unit for {numbers}")
    return Rate(round(rate * 10**12), row.source)
