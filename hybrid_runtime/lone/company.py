"""Company for whoever is measured on a CPU: processes that work as its peers would, and whose times nobody reads.

    this process   core 0   | measured, measured, measured, ...           |
    companions     core 1   | a peer's steps, one after another, for as long as this process measures |

Cores of a CPU share caches and memory, hyperthreads a core's units, ranks without a core of their own everything: a
rank alone on an idle machine is faster than the same rank among its peers. So it is measured among some that are as
busy, placed as the ranks of the real run would be. A GPU's rank needs none: it shares its device with nobody.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.multiprocessing as mp

from hybrid_runtime.company import Company
from hybrid_runtime.errors import EnvironmentProblem, HybridRuntimeError, RunError
from hybrid_runtime.stop_signals import stops_held
from hybrid_runtime.telemetry.host import pin_to, settle

RANKS_PER_CORE = 4  # more of them do not make a core's life harder, only the rehearsal longer

# Opened in the companion's own process (so it must be picklable); what it gives is called again and again.
Work = Callable[[], AbstractContextManager[Callable[[], object]]]


def company_for(world_size: int, available_cores: int, *, oversubscribe: bool) -> Company:
    """How many companions make this machine as full as a run of `world_size` ranks would."""
    if world_size <= available_cores:
        return Company(processes=world_size - 1, why=f"the other {world_size - 1} of {world_size} ranks")
    if not oversubscribe:
        others = available_cores - 1
        return Company(processes=others, why=f"one on each other core; {world_size} ranks run on more cores than here")
    most = min(world_size, RANKS_PER_CORE * available_cores)
    words = f"the other {world_size - 1} of {world_size} ranks" if most == world_size else f"{most - 1} of the others"
    return Company(processes=most - 1, why=f"{words}: {world_size} ranks share {available_cores} cores")


class Companions:
    """`with Companions(works):` - inside, this process and one process per work are placed as so many ranks.

    All of them are at work before the body begins; afterwards they are gone and this process has its cores back.

    Args:
        works: what each companion does; none leaves this process alone on a core of its own.

    Attributes:
        started: their processes.

    Raises:
        EnvironmentProblem: a companion could not begin.
        RunError: a companion ended before the body did: what was measured had less company than it seems.
    """

    def __init__(self, works: Sequence[Work]) -> None:
        self._works = works
        self.started: list[Any] = []
        self._pipes: list[Any] = []
        self._cores: set[int] = set()

    def __enter__(self) -> Companions:
        self._cores = os.sched_getaffinity(0)
        context, ranks = mp.get_context("spawn"), 1 + len(self._works)
        try:
            for number, work in enumerate(self._works, start=1):
                ours, theirs = context.Pipe()
                process = context.Process(target=_accompany, args=(work, number, ranks, theirs), daemon=True)
                with stops_held():
                    process.start()
                    self.started.append(process)
                    self._pipes.append(ours)
                theirs.close()
            for ours in self._pipes:
                _await_start(ours)
        except BaseException:
            self._end()
            raise
        settle(0, ranks, 1)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        left = [process.exitcode for process in self.started if not process.is_alive()]
        self._end()
        pin_to(sorted(self._cores))
        if left and kind is None:
            raise RunError(
                f"a companion process ended early (exit code {left[0]}), so the last figures were taken in too little "
                "company; free memory and measure again, or measure without company (--alone)"
            )

    def _end(self) -> None:
        for process, ours in zip(self.started, self._pipes, strict=True):
            process.kill()
            process.join()
            ours.close()
        self.started, self._pipes = [], []


def _await_start(pipe: Any) -> None:
    try:
        said = pipe.recv()  # however long it takes to begin; if it dies, the pipe ends
    except EOFError:
        said = "it was ended by the system"
    if said:
        raise EnvironmentProblem(f"a companion process could not begin: {said}; measure without company (--alone)")


def _accompany(work: Work, number: int, ranks: int, pipe: Any) -> None:
    """A companion: begins, says so, and works until it is killed or whoever it accompanies is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one it accompanies hears it too, and ends it
    settle(number, ranks, 1)
    torch.set_num_threads(1)
    try:
        with work() as act:
            act()
            pipe.send("")
            while not pipe.poll():  # a closed pipe has something to read: its end
                act()
    except HybridRuntimeError as problem:
        pipe.send(str(problem))
    except (BrokenPipeError, ConnectionResetError):
        return  # nobody is left to keep company
