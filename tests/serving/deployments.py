"""Small serving deployments."""

from __future__ import annotations

from typing import Any

from hybrid_runtime.deployment import Deployment, parse_deployment


def serving(tp: int = 1, pp: int = 1, **tables: dict[str, Any]) -> Deployment:
    """The tiny preset that generates; `tables` are merged into the deployment's, table by table."""
    values: dict[str, Any] = {
        "name": "serving",
        "model": {"preset": "tiny"},
        "parallel": {"tp_degree": tp, "pp_degree": pp},
        "batch": {"global_batch_size": 4, "microbatch_size": 2, "sequence_length": 64},
        "workload": {"kind": "generate"},
        "load": {"requests": 6, "prompt_tokens": 8, "output_tokens": 4},
    }
    if "prompts" in tables.get("load", {}):
        del values["load"]["prompt_tokens"]
    for name, table in tables.items():
        values[name] = values.get(name, {}) | table
    return parse_deployment(values, source="test")
