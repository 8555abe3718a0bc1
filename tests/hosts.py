"""Several hosts on one machine, joined by a network with latency and a limited rate: for tests of several machines.

    host1 eth0 --tap--.          .--tap-- eth0 host3        each host: its own network, host name, /dev/shm,
                       Switch                               /etc/hosts and monotonic clock (namespaces);
    host2 eth0 --tap--'          '--tap-- eth0 host4        files, cores and users are the machine's

A host is a process that holds its namespaces open and ends when this process does; with it go the namespaces and all
their interfaces. Nothing gets a name outside them, so a test that is killed leaves nothing behind. The switch is a
thread that passes Ethernet frames on as late and as slowly as it is told. (tc's netem would do it too, but is a module
that small kernels lack.)

    with Hosts(2, delay_s=0.005, bytes_per_s=12.5e6) as hosts:
        process = hosts[0].start(["ip", "addr"])
        hosts[1].cut_off()                              # as if its cable was pulled: no end hears anything
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import os
import select
import shutil
import signal
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

MTU = 9000
_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
_NAMESPACES = ("--net", "--uts", "--mount", "--time")
_LONGEST_QUEUE_S = 0.05  # a host whose frames wait longer is not read from: its kernel queues, then drops
_SET_UP = """
set -e
hostname "$1"
mount --bind "$2" /etc/hosts
mount -t tmpfs tmpfs /dev/shm
[ -z "$3" ] || mount -t tmpfs tmpfs "$3"
ip link set lo up
echo $$
exec cat
"""


def missing() -> str | None:
    """Why this machine can have no such hosts; None where it can."""
    tools = [tool for tool in ("ip", "unshare", "nsenter") if shutil.which(tool) is None]
    if tools:
        return f"{', '.join(tools)} not found (Debian: iproute2, util-linux)"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "/dev/net/tun cannot be opened"
    tried = subprocess.run(["unshare", *_NAMESPACES, "--fork", "true"], capture_output=True, text=True, check=False)
    return (tried.stderr.strip() or f"unshare ends with {tried.returncode}") if tried.returncode else None


class Host:
    """One host: `name`, `address`, and what runs on it."""

    def __init__(self, number: int, table: Path, clock_offset_s: int, private: Path | None) -> None:
        self.name = f"host{number}"
        self.address = _address(number)
        self.clock_offset_s = clock_offset_s
        self.is_cut_off = False
        self._started: list[subprocess.Popen[str]] = []
        self._holder = subprocess.Popen(
            ["unshare", *_NAMESPACES, "--monotonic", str(clock_offset_s), "--kill-child",
             "sh", "-c", _SET_UP, "sh", self.name, str(table), str(private or "")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._holder.stdout is not None
        said = self._holder.stdout.readline()
        if not said:
            raise OSError(f"{self.name}: its namespaces could not be set up (exit code {self._holder.wait()})")
        self._pid = int(said)
        self.tap = _new_tap(self._pid)
        self.run(["ip", "link", "set", "eth0", "address", _mac(number).hex(":"), "mtu", str(MTU), "up"])
        self.run(["ip", "addr", "add", f"{self.address}/24", "dev", "eth0"])

    def command(self, arguments: Sequence[object], folder: Path) -> list[str]:
        """A command line that runs on this host, in `folder`."""
        inside = ["sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", str(folder), *map(str, arguments)]
        return ["nsenter", "--target", str(self._pid), *_NAMESPACES, *inside]

    def start(
        self, arguments: Sequence[object], *, folder: Path = Path("/"), env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Starts a program; its output can be read from it."""
        process = subprocess.Popen(
            self.command(arguments, folder), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._started.append(process)
        return process

    def run(self, arguments: Sequence[object]) -> str:
        """What a short program prints; it must succeed."""
        done = subprocess.run(self.command(arguments, Path("/")), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{self.name}: {arguments}: {done.stderr}"
        return done.stdout

    def cut_off(self) -> None:
        """From now on nothing passes to or from this host, and nobody is told so."""
        self.is_cut_off = True

    def close(self) -> None:
        """Ends everything that still runs here: the processes in this host's network."""
        network = os.readlink(f"/proc/{self._pid}/ns/net")
        for found in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if os.readlink(found / "ns/net") == network:
                    os.kill(int(found.name), signal.SIGKILL)
        for process in (*self._started, self._holder):
            process.communicate()
        os.close(self.tap)


class Hosts:
    """Hosts host1, host2, ..., counted from 0 here.

    Args:
        count: how many, up to 4.
        delay_s: of every frame, one way.
        bytes_per_s: what a host can send; None without a limit.
        clock_offsets_s: how far each host's monotonic clock is ahead of this machine's.
        private: a folder in which every host sees a disk of its own.
    """

    def __init__(
        self,
        count: int,
        *,
        delay_s: float = 0.0,
        bytes_per_s: float | None = None,
        clock_offsets_s: Sequence[int] = (),
        private: Path | None = None,
    ) -> None:
        assert 2 <= count <= 4
        offsets = [*clock_offsets_s, *[0] * count][:count]
        self._stack = contextlib.ExitStack()
        try:
            folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
            table = folder / "hosts"
            lines = [f"{_address(number)} host{number}" for number in range(1, count + 1)]
            table.write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
            self._hosts: list[Host] = []
            for number in range(1, count + 1):
                self._hosts.append(Host(number, table, offsets[number - 1], private))
                self._stack.callback(self._hosts[-1].close)
            switch = Switch(self._hosts, delay_s, bytes_per_s)
            self._stack.callback(switch.stop)
        except BaseException:
            self._stack.close()
            raise

    def __getitem__(self, index: int) -> Host:
        return self._hosts[index]

    def __len__(self) -> int:
        return len(self._hosts)

    def __enter__(self) -> Hosts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


class Switch:
    """Passes frames between the hosts' taps until `stop`: each waits for the ones before it on its host's line, takes
    its length over the rate to be sent, and arrives `delay_s` later."""

    def __init__(self, hosts: Sequence[Host], delay_s: float, bytes_per_s: float | None) -> None:
        self._hosts = hosts
        self._delay_s, self._bytes_per_s = delay_s, bytes_per_s
        self._free_s = [0.0] * len(hosts)  # when each host's line has sent all that was given to it
        self._under_way: list[tuple[float, int, int, int, bytes]] = []  # (arrival, serial, from, to, frame)
        self._serial = 0
        self._wake = os.pipe()
        self._thread = threading.Thread(target=self._run, name="switch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        os.write(self._wake[1], b".")
        self._thread.join()
        for end in self._wake:
            os.close(end)

    def _run(self) -> None:
        while True:
            now_s = time.monotonic()
            self._deliver(now_s)
            ready = {host.tap: k for k, host in enumerate(self._hosts) if self._free_s[k] - now_s < _LONGEST_QUEUE_S}
            due = [self._under_way[0][0]] if self._under_way else []
            due += [free_s - _LONGEST_QUEUE_S for free_s in self._free_s if free_s - now_s >= _LONGEST_QUEUE_S]
            wait_s = max(0.0, min(due) - now_s) if due else None
            found, _, _ = select.select([self._wake[0], *ready], [], [], wait_s)
            if self._wake[0] in found:
                return
            for tap in found:
                self._take(ready[tap], os.read(tap, MTU + 64))

    def _take(self, source: int, frame: bytes) -> None:
        now_s = time.monotonic()
        seconds = len(frame) / self._bytes_per_s if self._bytes_per_s else 0.0
        self._free_s[source] = max(now_s, self._free_s[source]) + seconds
        for target in self._targets(source, frame[:6]):
            self._serial += 1
            arrival_s = self._free_s[source] + self._delay_s
            heapq.heappush(self._under_way, (arrival_s, self._serial, source, target, frame))

    def _targets(self, source: int, mac: bytes) -> list[int]:
        others = [k for k in range(len(self._hosts)) if k != source]
        return others if mac[0] & 1 else [k for k in others if mac == _mac(k + 1)]

    def _deliver(self, now_s: float) -> None:
        while self._under_way and self._under_way[0][0] <= now_s:
            _, _, source, target, frame = heapq.heappop(self._under_way)
            if not (self._hosts[source].is_cut_off or self._hosts[target].is_cut_off):
                with contextlib.suppress(OSError):  # the interface is down: the frame is lost, as on any network
                    os.write(self._hosts[target].tap, frame)


def _address(number: int) -> str:
    return f"10.87.0.{number}"


def _mac(number: int) -> bytes:
    return bytes([2, 0, 0, 0, 0, number])


def _new_tap(pid: int) -> int:
    """A tap named eth0 in the network of a process; frames are read from and written to the descriptor."""
    made: list[int | OSError] = []

    def make() -> None:  # a thread of its own: the network namespace is a thread's
        try:
            made.append(_tap_in_this_thread(pid))
        except OSError as problem:
            made.append(problem)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]


def _tap_in_this_thread(pid: int) -> int:
    libc: Any = ctypes.CDLL(None, use_errno=True)
    with open(f"/proc/{pid}/ns/net") as network:
        if libc.setns(network.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    tap = os.open("/dev/net/tun", os.O_RDWR)
    try:
        fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", b"eth0", _IFF_TAP | _IFF_NO_PI))
    except OSError:
        os.close(tap)
        raise
    return tap
