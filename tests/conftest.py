"""Which tests run beside others (see tests/alone.py), and which not at all.

GPU tests are skipped with the reason where there are too few GPUs; their absence is shown, not hidden.
"""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.alone import MARKS, turn


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    with turn(alone=any(map(item.get_closest_marker, MARKS))):
        return (yield)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    wanted = [(item, marker) for item in items if (marker := item.get_closest_marker("gpu")) is not None]
    if not wanted:
        return
    import torch

    from tests.gpu import NAME

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for item, marker in wanted:
        needed = marker.args[0] if marker.args else 1
        if gpus < needed and not (NAME == "cpu" and marker.kwargs.get("or_cpu")):
            reason = f"needs {needed} CUDA GPU(s), torch sees {gpus}"
            item.add_marker(pytest.mark.skip(reason=reason))
