"""From the deployment file's model table to unit specs, their costs, and the modules that a rank owns."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hybrid_runtime.deployment import Deployment
from hybrid_runtime.deployment_model import Model
from hybrid_runtime.errors import HybridRuntimeError, UsageError
from hybrid_runtime.models.compiled import refuse_without_compiler
from hybrid_runtime.models.hugging_face import load_hugging_face
from hybrid_runtime.models.llama import llama_units
from hybrid_runtime.models.measure import measured_costs
from hybrid_runtime.models.unit import BuildContext, UnitSpec
from hybrid_runtime.pieces import Piece, read_piece, unit_of
from hybrid_runtime.plan import UnitCost
from hybrid_runtime.planner.costs import unit_costs
from hybrid_runtime.shapes import LlamaShape
from hybrid_runtime.tensor_parallel.initialise import derived_seed


def model_units(model: Model | None, shape: LlamaShape | None) -> list[UnitSpec]:
    """The model's units: of the Llama family when there is a shape, else those of the user's `module:function`.

    Raises:
        UsageError: there is no model, or the user's function cannot be imported, raises, or returns something else.
    """
    if model is None:
        raise UsageError("the deployment has no [model] table; name a preset, hf_config or units")
    if shape is not None:
        return llama_units(shape)
    assert model.units is not None
    function = _import(model.units)
    try:
        specs = function(**_plain(model.options))
    except HybridRuntimeError:
        raise
    except Exception as problem:
        raise UsageError(
            f"model.units = {model.units!r} raised {type(problem).__name__}: {problem}; "
            f"mend the function or model.options"
        ) from problem
    return _checked(specs, model.units)


def build_units(
    specs: Sequence[UnitSpec], context: BuildContext, *, weights: str | Path | None = None
) -> dict[str, nn.Module]:
    """Builds the given units and pieces only, by name and in order; parameters are then named `<unit>.<parameter>`.

    Where both ends of a tie are among them, they share one Parameter; rows of the one look themselves up in the other.

    Args:
        specs: of one rank's units, in model order (`specs_of`).
        context: where and how to build; its `unit` is filled in here.
        weights: folder of safetensors files in Hugging Face names; None keeps the random weights.

    Raises:
        PlanError: a unit cannot be split over the tensor-parallel ranks.
        UsageError: a unit is no nn.Module, a tie names no parameter, or the weights do not fit.
        EnvironmentProblem: units are to be compiled, and this machine has no compiler.
    """
    if context.compiled:
        refuse_without_compiler(context.device)
    context = replace(context, draws=weights is None)
    units = {spec.name: _build(spec, replace(context, unit=unit_of(spec.name))) for spec in specs}
    for spec in specs:
        for own_name, (owner, owner_name) in spec.tied.items():
            own_module, own_leaf = _holder(units[spec.name], spec.name, own_name)
            rows = next((piece for piece in map(read_piece, units) if piece and piece.unit == owner), None)
            if rows is not None:
                _share_rows(units[str(rows)], rows, own_module, own_leaf, context.tp.size)
            elif owner in units:
                owner_module, owner_leaf = _holder(units[owner], owner, owner_name)
                setattr(own_module, own_leaf, getattr(owner_module, owner_leaf))
    if weights is not None:
        load_hugging_face(Path(weights), units)
    return units


def _build(spec: UnitSpec, context: BuildContext) -> nn.Module:
    """One unit on its device. Plain modules draw their weights from torch's default generator, so that is set per unit:
    the same weights on every mesh, whatever else a rank builds."""
    forked = [context.device] if context.device.type == "cuda" else []
    with torch.random.fork_rng(devices=forked), context.device:
        torch.manual_seed(derived_seed(context.seed, unit_of(spec.name)))
        unit = spec.build(context)
    if not isinstance(unit, nn.Module):
        raise UsageError(f"unit {spec.name!r} was built as a {type(unit).__name__}; build must return an nn.Module")
    unit = unit.to(device=context.device, dtype=context.dtype)
    for parameter in unit.parameters():
        _lay_out(parameter)
    return unit


def _lay_out(parameter: nn.Parameter) -> None:
    """Gives a parameter that is a view (a slice of a weight that was drawn whole) memory of its own, in order.

    torch's fused AdamW (2.13) writes past the rows of a strided parameter instead of into it, and what is left of the
    whole would be held as long as its slice.
    """
    if not parameter.is_contiguous() or parameter.untyped_storage().nbytes() > parameter.nbytes:
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)


def _share_rows(unit: nn.Module, rows: Piece, owner: nn.Module, leaf: str, tp_degree: int) -> None:
    share = getattr(unit, "share_rows", None)
    if not callable(share):
        raise UsageError(
            f"{str(rows)!r} lies on the rank of the tied weight and would be a second copy there; give its module a "
            "method share_rows(weight, spec, first), or that rank 0 rows in pipeline.embedding_rows"
        )
    share(getattr(owner, leaf), getattr(owner, "shards", {}).get(leaf), rows.start // tp_degree)


def model_costs(deployment: Deployment, specs: Sequence[UnitSpec]) -> tuple[UnitCost, ...]:
    """Cost of every unit: by formula for the Llama family, measured without data for a user's own units.

    Raises:
        UsageError: a user's unit cannot run on the meta device, or there is no batch table.
    """
    if deployment.model is None or deployment.batch is None:
        raise UsageError(f"{deployment.name}: costs need the tables [model] and [batch]; add them")
    batch, passes = deployment.batch, deployment.workload.passes
    if deployment.shape is not None:
        return unit_costs(
            deployment.shape,
            microbatch_size=batch.microbatch_size,
            sequence_length=batch.sequence_length,
            workload=passes,
        )
    return measured_costs(
        specs,
        microbatch_size=batch.microbatch_size,
        sequence_length=batch.sequence_length,
        dtype=getattr(torch, deployment.model.dtype),
        workload=passes,
    )


def _import(path: str) -> Any:
    """`module:function`, with the current folder importable as for `python -m`."""
    module_name, _, function_name = path.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as problem:
        raise UsageError(
            f"model.units = {path!r}: importing {module_name!r} failed ({type(problem).__name__}: {problem}); "
            f"start in the folder that holds it, or install it"
        ) from problem
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UsageError(
            f"model.units = {path!r}: module {module_name!r} has no function {function_name!r}; correct the name"
        )
    return function


def _checked(specs: object, path: str) -> list[UnitSpec]:
    if not isinstance(specs, list | tuple) or not specs or not all(isinstance(spec, UnitSpec) for spec in specs):
        raise UsageError(f"model.units = {path!r} returned {_words(specs)}; it must return a list of UnitSpec")
    names = [spec.name for spec in specs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(
            f"model.units = {path!r}: unit names must be unique, but {twice[0]!r} appears twice; rename it"
        )
    unreadable = next((name for name in names if not name or ".." in name or set(name) & set("[]")), None)
    if unreadable is not None:
        raise UsageError(
            f"model.units = {path!r}: a unit is named {unreadable!r}, but cuts are written with names, '..' and "
            "[first:end]; use a name without them"
        )
    return list(specs)


def _words(value: object) -> str:
    if not isinstance(value, list | tuple):
        return f"a {type(value).__name__}"
    return f"a list with a {next(type(v).__name__ for v in value if not isinstance(v, UnitSpec))}" if value else "[]"


def _plain(value: Any) -> Any:
    """Options as a function expects them: the file's exact decimals become floats."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list) else value


def _holder(unit: nn.Module, unit_name: str, parameter: str) -> tuple[nn.Module, str]:
    """The submodule that holds a parameter, and the parameter's name in it."""
    if parameter not in dict(unit.named_parameters(remove_duplicate=False)):
        raise UsageError(f"unit {unit_name!r} has no parameter {parameter!r} to tie; correct the name in UnitSpec.tied")
    path, _, leaf = parameter.rpartition(".")
    return unit.get_submodule(path), leaf
