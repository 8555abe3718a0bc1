"""One process per host that asks NVML how its GPUs are: beside the ranks, not inside one (no shared lock, no CUDA).

    python -m hybrid_runtime.telemetry.nvml_sampler --uuid GPU-... --uuid GPU-... --out records/nvml-node1.jsonl

It stops when its standard input closes (so it cannot outlive who started it) or on SIGTERM, and writes whole lines.
The interval has a floor: fast polling holds a lock of the driver and would disturb what it measures. Torch-free.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import FrameType

from hybrid_runtime.errors import EnvironmentProblem, ExitCode
from hybrid_runtime.nvml_records import NvmlFooter, NvmlHeader, NvmlLine, Text, Unavailable, to_line
from hybrid_runtime.telemetry.nvml import Nvml, shadowing

MIN_INTERVAL_MS = 100
DEFAULT_INTERVAL_MS = 200
_STOP_TIMEOUT_S = 10


@contextmanager
def sampling(uuids: Sequence[str], out: Path, interval_ms: int = DEFAULT_INTERVAL_MS) -> Iterator[None]:
    """Samples the given GPUs of this host while the body runs; one rank per host does this."""
    command = [sys.executable, "-m", "hybrid_runtime.telemetry.nvml_sampler", "--out", str(out)]
    command += ["--interval-ms", str(interval_ms), *(word for uuid in uuids for word in ("--uuid", uuid))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert process.stdin is not None
    try:
        yield
    finally:
        process.stdin.close()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:  # it hangs in the driver; its whole lines remain
            process.kill()
            process.wait()


def sample_until(
    nvml: Nvml, uuids: Sequence[str], interval_ms: int, write: Callable[[NvmlLine], None], wait: Callable[[float], bool]
) -> None:
    """Header, inventory, samples, inventory, footer.

    Args:
        wait: sleeps up to the given seconds; True when it is time to stop. Without a driver nothing is sampled.
    """
    write(_header(nvml, uuids, interval_ms))
    write(nvml.inventory(uuids, "before"))
    samples = 0
    due_s = time.monotonic()
    while not wait(max(0.0, due_s - time.monotonic())):
        due_s = max(due_s + interval_ms / 1000, time.monotonic())  # late: go on from now, do not catch up in a burst
        for uuid in uuids if nvml.problem is None else ():
            write(nvml.sample(uuid))
            samples += 1
    write(nvml.inventory(uuids, "after"))
    write(NvmlFooter(samples=samples, finished_utc=datetime.now(UTC).isoformat()))


def _header(nvml: Nvml, uuids: Sequence[str], interval_ms: int) -> NvmlHeader:
    warning = shadowing()
    return NvmlHeader(
        host=socket.gethostname(),
        uuids=tuple(uuids),
        interval_ms=interval_ms,
        started_utc=datetime.now(UTC).isoformat(),
        driver=nvml.driver(),
        binding=_binding_version(),
        warnings=() if warning is None else (warning,),
        cuda_driver=nvml.cuda_driver(),
    )


def _binding_version() -> Text:
    try:
        return metadata.version("nvidia-ml-py")
    except metadata.PackageNotFoundError:
        return Unavailable(unavailable="not installed")


class _Stop:
    """Becomes true when standard input closes, or on SIGTERM or SIGINT."""

    def __init__(self) -> None:
        self._asked = False
        self._read_end, self._write_end = os.pipe()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        os.write(self._write_end, b"!")  # ends a select under way

    def wait(self, seconds: float) -> bool:
        deadline_s = time.monotonic() + seconds
        while not self._asked:
            ready, _, _ = select.select([0, self._read_end], [], [], max(0.0, deadline_s - time.monotonic()))
            if not ready:
                return False
            if 0 in ready and not os.read(0, 4096):
                self._asked = True
        return True


def _writer(descriptor: int, path: Path) -> Callable[[NvmlLine], None]:
    def write(record: NvmlLine) -> None:
        line = to_line(record).encode()
        try:
            written = os.write(descriptor, line)
        except OSError as problem:
            raise EnvironmentProblem(f"{path}: cannot be written ({problem.strerror}); free space there") from None
        if written != len(line):
            raise EnvironmentProblem(f"{path}: only {written} of {len(line)} bytes were taken; free space there")

    return write


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="nvml_sampler", description="Sample GPUs until standard input closes.")
    parser.add_argument("--uuid", action="append", default=[], help="a GPU of this host (repeat for several)")
    parser.add_argument("--out", type=Path, required=True, help="the JSON Lines file to write")
    parser.add_argument("--interval-ms", type=int, default=DEFAULT_INTERVAL_MS, help=f"at least {MIN_INTERVAL_MS}")
    arguments = parser.parse_args(words)
    if arguments.interval_ms < MIN_INTERVAL_MS:
        parser.error(f"--interval-ms must be at least {MIN_INTERVAL_MS}: faster polling disturbs the GPUs it measures")
    return arguments


def main(words: Sequence[str] | None = None) -> int:
    """Samples until asked to stop; returns the exit code."""
    arguments = _arguments(words)
    stop = _Stop()
    nvml = Nvml()
    try:
        descriptor = os.open(arguments.out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
        sample_until(nvml, arguments.uuid, arguments.interval_ms, _writer(descriptor, arguments.out), stop.wait)
        os.close(descriptor)
    except (OSError, EnvironmentProblem) as problem:
        print(f"nvml_sampler: {problem}", file=sys.stderr)
        return int(ExitCode.ERROR)
    finally:
        nvml.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
