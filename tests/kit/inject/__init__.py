"""Make system calls of a real process fail: QEMU's on the image, or mapsave's on a directory.

    with qemu.running(env=inject.environment(inject.Rule("pwritev", "short", 4096))) as guest:
        ...

The library is compiled once a test run, and loaded by LD_PRELOAD. The kernel does the rest of
each call, so what the rules do not touch is real.
"""

import errno
import functools
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_SOURCE = Path(__file__).with_name("inject.c")
_END = (1 << 63) - 1

Call = Literal[
    "pwritev",
    "preadv",
    "pwrite",
    "pread",
    "writev",
    "readv",
    "write",
    "read",
    "fsync",
    "fdatasync",
    "ftruncate",
    "fallocate",
    "rename",
    "unlink",
    "open",
    "send",
    "recv",
]
Action = Literal["short", "errno", "delay", "hold", "hang", "kill"]


@dataclass(frozen=True)
class Rule:
    """What happens to a call on a file whose path contains ``path``.

    The path is the descriptor's, ``socket:[…]`` for ``send`` and ``recv``, or what a unix socket is
    connected to; that of ``rename`` (the
    old or the new one), ``unlink`` and ``open`` is what the call names, which may be relative.

    ``short``: at most ``argument`` bytes are done. ``errno``: it fails with that. ``delay``: it
    comes ``argument`` microseconds later, and what a further rule says of it comes after that.
    ``hold``: it comes once the file ``go`` of ``environment`` is there, else likewise: what is to
    happen amid a save or a load has all the time that it takes.
    ``hang``: it never returns. ``kill``: the process gets that signal. Only calls at offsets
    ``first`` to ``last`` count (for read and write: where the file stands); ``skip`` of them pass,
    the next ``count`` (-1: all) are hit.
    """

    call: Call
    action: Action
    argument: int = 0
    path: str = ".mapsave"
    first: int = 0
    last: int = _END
    skip: int = 0
    count: int = 1

    def __str__(self) -> str:
        """Return the rule as the library reads it."""
        numbers = (self.argument, self.first, self.last, self.skip, self.count)
        return ",".join((self.call, self.path, self.action, *map(str, numbers)))


# A disk that is full as soon as pages are written to it.
FULL = Rule("pwritev", "errno", errno.ENOSPC, path=".partial", count=-1)


def environment(*rules: Rule, met: Path | None = None, go: Path | None = None) -> dict[str, str]:
    """Return what to add to a process's environment for these rules to hold in it.

    The file ``met`` gets a line for each call that was hit; those that are held wait for ``go``.
    """
    return {
        "LD_PRELOAD": str(library()),
        "MAPSAVE_TEST_INJECT": ";".join(map(str, rules)),
        **({"MAPSAVE_TEST_MET": str(met)} if met is not None else {}),
        **({"MAPSAVE_TEST_GO": str(go)} if go is not None else {}),
    }


@functools.cache
def library() -> Path:
    # The directory lives as long as the test run, for QEMU may be started at any time.
    directory = _directory()
    Path(directory.name).chmod(0o755)  # for a QEMU of another user
    path = Path(directory.name) / "inject.so"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-o", path, _SOURCE, "-ldl"], check=True
    )
    return path


@functools.cache
def _directory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="mapsave-inject-", ignore_cleanup_errors=True)
