from __future__ import annotations

import pytest

from benchmarks.predicted_serving import CASES, deployment_of, devices_of, missed, table_of
from hybrid_runtime.deployment import parse_deployment
from hybrid_runtime.serving.load import traffic_of


@pytest.mark.parametrize("name", CASES)
def test_every_case_serves_on_as_many_ranks_as_it_has_devices(name: str) -> None:
    file = parse_deployment(deployment_of(name, 16), source=name)
    assert file.serves
    assert file.mesh.world_size == devices_of(name)
    assert len(traffic_of(file).requests) == 32


def test_the_median_of_both_runs_counts() -> None:
    cases = {
        "pp 2": {"errors": {"request": [-4.0, -9.0], "busy": [1.0, -1.0]}, "disturbed": ["", "others; more"]},
        "tp 2": {"errors": {"request": [-4.0, -7.0]}, "disturbed": ["", ""]},
    }
    assert missed(cases) == ["pp 2: request -6.5 %, goal 6 %"]
    table = table_of(cases)
    assert "-4.0 / -9.0 %" in table
    assert table.endswith("- pp 2, run 2: others; more")
