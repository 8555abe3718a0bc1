"""Deployments, lines and a synthetic calibration for the planner's tests."""

from __future__ import annotations

from typing import Any

from hybrid_runtime.calibration import Calibration, CollectiveTime, MessageTime, Spread, UnitTimes
from hybrid_runtime.deployment import Deployment, parse_deployment
from hybrid_runtime.plan import UnitCost
from hybrid_runtime.planner.analytic import Kept, analytic_line, kind_of
from hybrid_runtime.planner.request import model_of
from hybrid_runtime.planner.work import Line

# Thread CPU time of one microbatch of 64 tokens of the tiny model, tensor-parallel ranks together, as once measured.
UNIT_US = {"embedding": 580, "attn": 1635, "mlp": 1465, "head": 1370}
SHARES = {"F": 0.33, "I": 0.37, "W": 0.30}


def deployment(*, model: dict[str, Any] | None = None, **tables: Any) -> Deployment:
    """A tiny deployment of six ranks; tables replace whole tables."""
    values: dict[str, Any] = {
        "name": "planned",
        "model": {"preset": "tiny", "num_layers": 13, "vocab_size": 384} | (model or {}),
        "parallel": {"tp_degree": 2, "pp_degree": 3},
        "batch": {"global_batch_size": 6, "microbatch_size": 1, "sequence_length": 64},
        "search": {"vary": ["schedule", "cuts", "embedding"]},
    }
    return parse_deployment(values | tables, source="test")


def spread(us: float) -> Spread:
    ns = int(1000 * us)
    return Spread(p10_ns=ns * 95 // 100, p50_ns=ns, p90_ns=ns * 110 // 100, samples=20)


def calibration(of: Deployment, *, tp_degree: int = 2, sizes: tuple[int, ...] = (1, 2)) -> Calibration:
    """What `calibrate` would write: bytes by formula, times of UNIT_US, three widths of the MLP."""
    units = []
    for size in sizes:
        line = model_of(of, None).line(tp_degree, size)
        for unit in (*line.units[:3], line.units[-1]):
            kind, parts = kind_of(unit.cost.name), unit.cost.parts
            for width in (parts // 4, parts // 2, parts) if kind == "mlp" else (parts,):
                work = unit.piece(0, width)
                us = UNIT_US[kind] * size / tp_degree * (0.1 + 0.9 * width / parts)
                units.append(
                    UnitTimes(
                        unit=kind,
                        tp_degree=tp_degree,
                        microbatch_size=size,
                        sequence_length=64,
                        dtype="float32",
                        parts=width,
                        clock="thread_cpu",
                        forward=spread(us * SHARES["F"]),
                        backward=spread(us * (SHARES["I"] + SHARES["W"])),
                        input_grad=spread(us * SHARES["I"]),
                        weight_grad=spread(us * SHARES["W"]),
                        host={},
                        saved_bytes=work.saved,
                        until_w_bytes=work.until_w,
                        temporary_bytes=0,
                        output_bytes=line.carry_bytes,
                        parameters=work.parameters,
                    )
                )
    return Calibration(
        taken_utc="2026-01-01T00:00:00",
        fingerprint={"host": "somewhere"},
        model="",
        units=tuple(units),
        collectives=tuple(
            CollectiveTime(kind="all_reduce", ranks=2, num_bytes=size, time=spread(40 + size / 1000))
            for size in (1 << 10, 1 << 22)
        ),
        messages=tuple(
            MessageTime(num_bytes=size, one_way=spread(50 + size / 2000), both_ways=spread(60 + size / 2000))
            for size in (1 << 10, 1 << 20)
        ),
        action_ns=30_000,
        step_ns=500_000,
        optimizer_fixed_ns=300_000,
        optimizer_per_million_ns=3_000_000,
        optimizer_bytes_per_parameter=8,
        gradient_bytes_per_parameter=4,
        not_measured={"all_gather": "one host"},
    )


def line_of(costs: list[tuple[int, int, int]]) -> Line:
    """A line of units: (work, parts, saved bytes); those of many parts may be cut inside."""
    units = [
        UnitCost(
            name=f"{k}.{'mlp' if parts > 1 else 'attn'}",
            forward_flops=work,
            input_grad_flops=0,
            weight_grad_flops=0,
            parameters=work,
            parts=parts,
        )
        for k, (work, parts, _) in enumerate(costs)
    ]
    kept = [Kept(0, 0, saved) for _, _, saved in costs]
    return analytic_line(list(zip(units, kept)), 1, 8, time_of=lambda flops: flops, granule=1)
