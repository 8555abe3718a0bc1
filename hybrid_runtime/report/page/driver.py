"""What NVML sampled while the run lasted: a line per GPU for clock, power, temperature and utilisation."""

from __future__ import annotations

from collections.abc import Sequence

from hybrid_runtime.nvml_records import NvmlSample
from hybrid_runtime.report.cells import printable, ranges_text
from hybrid_runtime.report.page.figure import Figure, Trace, View, thinned
from hybrid_runtime.report.run_data import Run, windows

# Lines of devices take hues in turn; what a hue means elsewhere on the page does not hold here.
_HUES = ("compute", "backward", "weight-gradient", "optimizer", "communication", "host", "forward", "baseline")
_ALL_POINTS, _FEWEST_POINTS = 6000, 60  # of a view's lines together, and of each
_READINGS = (  # field of the record, axis, factor
    ("sm_clock_mhz", "SM clock, MHz", 1.0),
    ("power_mw", "power, W", 1e-3),
    ("temperature_c", "temperature, °C", 1.0),
    ("utilisation_percent", "utilisation by the driver, %", 1.0),
)


def driver_series(run: Run) -> Figure | None:
    """Clocks, power and temperature over the run; None where NVML gave no sample of the run's devices."""
    devices = _devices(run)
    found = windows(run.ranks)
    if not devices or not found:
        return None
    base_ns = min(window.start_ns for window in found)
    views = [
        View(traces, _layout(axis), axis)
        for field, axis, factor in _READINGS
        if (traces := _lines(run, devices, field, factor, base_ns))
    ]
    notes = ["Sampled by the driver over the whole run, warm-up and the baseline's blocks included."]
    return Figure("driver", "Clocks, power and temperature", views, notes) if views else None


def _devices(run: Run) -> dict[str, tuple[str, int]]:
    """Per GPU its label and the offset of its host's clock, in ns."""
    ranks: dict[str, list[int]] = {}
    offsets: dict[str, int] = {}
    for rank in run.ranks:
        device = rank.header.device
        if device.kind == "cuda":
            ranks.setdefault(device.id, []).append(rank.header.rank)
            offsets[device.id] = rank.header.clock_offset_ns
    return {id: (f"GPU of rank {ranges_text(of)}", offsets[id]) for id, of in ranks.items()}


def _lines(run: Run, devices: dict[str, tuple[str, int]], field: str, factor: float, base_ns: int) -> list[Trace]:
    lines, most = [], max(_FEWEST_POINTS, _ALL_POINTS // len(devices))
    for number, (id, (label, offset_ns)) in enumerate(devices.items()):
        samples = [sample for file in run.driver for sample in file.samples if sample.uuid == id]
        known = [sample for sample in samples if isinstance(getattr(sample, field), int)]
        if known:
            hue = _HUES[number % len(_HUES)]
            lines.append(_line(label, thinned(known, most), field, factor, base_ns - offset_ns, hue))
    return lines


def _line(label: str, samples: Sequence[NvmlSample], field: str, factor: float, base_ns: int, hue: str) -> Trace:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": printable(label),
        "x": [round((sample.time_ns - base_ns) / 1e9, 3) for sample in samples],
        "y": [getattr(sample, field) * factor for sample in samples],
        "line": {"color": hue, "width": 1.5},
        "marker": {"color": hue, "size": 4},
        "hoverinfo": "x+y+name",
    }


def _layout(axis: str) -> dict[str, object]:
    return {
        "height": 280,
        "hovermode": "closest",
        "xaxis": {"title": {"text": "s after the first step"}},
        "yaxis": {"title": {"text": axis}},
    }
