"""Run whole processes, and tell what each took: wall-clock time and peak memory."""

import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

MAPSAVE = [sys.executable, "-m", "mapsave"]
# An installation has bytecode beside its modules, whatever the environment of this process says.
_BYTECODE = tempfile.TemporaryDirectory(prefix="mapsave-bytecode-")

LIMIT = 1800  # seconds, after which a command is killed

# Runs the command and writes its exit code, seconds, peak in KiB and seconds of the processor.
_PARENT = f"""
import os, select, sys, time
os.set_inheritable(int(sys.argv[1]), False)
started = time.perf_counter()
process = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
if not select.select([os.pidfd_open(process)], [], [], {LIMIT})[0]:
    os.kill(process, 9)
_, status, usage = os.wait4(process, 0)
seconds = time.perf_counter() - started
busy = usage.ru_utime + usage.ru_stime
figures = (os.waitstatus_to_exitcode(status), seconds, usage.ru_maxrss, busy)
os.write(int(sys.argv[1]), " ".join(map(str, figures)).encode())
"""


@dataclasses.dataclass(frozen=True)
class Run:
    """What one process took: seconds from its start to its end, and peak resident bytes.

    ``busy`` are the seconds of the processor, which other processes hardly change.
    """

    seconds: float
    peak: int
    output: str
    busy: float = 0.0


@dataclasses.dataclass(frozen=True)
class Series:
    """Several runs of the same."""

    runs: list[Run]

    @property
    def seconds(self) -> float:
        return statistics.median(run.seconds for run in self.runs)

    @property
    def busy(self) -> float:
        return statistics.median(run.busy for run in self.runs)

    @property
    def peak(self) -> int:
        """The highest peak, in bytes."""
        return max(run.peak for run in self.runs)


def run(command: list[str], root: Path) -> Run:
    """Run a command to its end. Raises RuntimeError with its output where it fails.

    The peak is ``ru_maxrss`` of wait4(2). Linux counts in it what the parent had when the command
    was executed (``exec_mmap`` of Linux's fs/exec.c): a test process may have more than the
    command ever takes. So its parent is a process of its own that holds some 10 MB.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile("w+") as figures:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(root / "manager"), str(root))),
            "PYTHONPYCACHEPREFIX": _BYTECODE.name,
        }
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        parent = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _PARENT, str(figures.fileno()), *command],
            check=False,
            env=environment,
            pass_fds=[figures.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        output.seek(0)
        said = output.read().decode(errors="replace")
        figures.seek(0)
        code, seconds, peak, busy = (figures.read() or f"{parent.returncode} 0 0 0").split()
    if code != "0":
        raise RuntimeError(f"{' '.join(command)}: exit code {code}: {said}")
    return Run(float(seconds), int(peak) * 1024, said, float(busy))


def alternating(
    rounds: int, first: Callable[[], Run], second: Callable[[], Run]
) -> tuple[Series, Series]:
    """Call both so many times, turn by turn, each of them first in every other round."""
    taken = in_turn(rounds, {"first": first, "second": second})
    return taken["first"], taken["second"]


def in_turn(
    rounds: int,
    functions: Mapping[str, Callable[[], Run]],
    failed: dict[str, str] | None = None,
) -> dict[str, Series]:
    """Call each so many times, turn by turn, another one first in each round.

    With ``failed`` a function that fails is put there with its error, and not called any more.
    """
    names = list(functions)
    runs: dict[str, list[Run]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            if name not in runs:
                continue
            try:
                runs[name].append(functions[name]())
            except (RuntimeError, AssertionError) as error:
                if failed is None:
                    raise
                failed[name] = str(error)
                del runs[name]
    return {name: Series(each) for name, each in runs.items()}


def repeated(rounds: int, function: Callable[[], Run]) -> Series:
    """Call it once to warm the caches, and then so many times."""
    function()
    return Series([function() for _ in range(rounds)])
