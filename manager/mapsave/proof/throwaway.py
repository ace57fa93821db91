"""A QEMU that is thrown away: started for one proof, gone with it, and with mapsave as well.

Its monitor is in a directory that it reaches by an inherited descriptor, so its user needs leave
for no other. mapsave may be killed: a shell that waits for the end of a pipe kills QEMU then. A
signal at the death of its parent (PR_SET_PDEATHSIG) would be lost where QEMU changes its user.
"""

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

from mapsave.image import descriptors
from mapsave.operations import destination, instant, locks
from mapsave.operations.destination import Command, Destination

_PART = "proofs"
_SOCKET = "qmp"
# $1: the pipe, $2: the directory. "$$" is the shell that becomes QEMU, and leads a process group;
# that number is no other's as long as this one is in it. dash's kill takes no "--".
_WATCHED = """
(read -r _ <"/proc/self/fd/$1"; rm -rf -- "$2"; kill -KILL "-$$") &
shift 2
exec "$@"
"""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a throwaway QEMU is: ``directory`` has its log, ``fd`` is that by its own number."""

    directory: Path
    fd: int

    @property
    def socket(self) -> str:
        """The path of its monitor, in our sight and in QEMU's."""
        return f"{instant.PATH}{self.fd}/{_SOCKET}"

    @property
    def log(self) -> Path:
        """The file that it prints to."""
        return self.directory / "log"


@contextlib.contextmanager
def place(state: Path, uid: int | None) -> Iterator[Place]:
    """Make a place for a QEMU that runs as the user ``uid``, and remove it at the end. Blocks."""
    directory = Path(tempfile.mkdtemp(dir=locks.state_directory(state, _PART)))
    try:
        opened = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        with descriptors.closing(opened), instant.inherited(opened) as fd:
            if uid is not None and uid != os.geteuid():
                os.chown(directory, uid, -1)
            yield Place(directory, fd)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.asynccontextmanager
async def running(
    command: Command, there: Place, inherited: Sequence[int]
) -> AsyncIterator[Destination]:
    """Start ``command`` and connect to it; it is gone at the end. Raises LaunchFailed.

    ``inherited`` are descriptors that it gets under their own numbers.
    """
    with _pipe() as its:
        # As the guest's own is found: by our PATH, which it need not have.
        program = shutil.which(command.argv[0]) or command.argv[0]
        watched = ["/bin/sh", "-c", _WATCHED, "mapsave-proof", str(its), str(there.directory)]
        started = dataclasses.replace(
            command,
            argv=[*watched, program, *command.argv[1:]],
            inherited=(there.fd, its, *inherited),
        )
        async with destination.launched(started) as target:
            yield target


@contextlib.contextmanager
def _pipe() -> Iterator[int]:
    """Yield a number by which QEMU inherits the reading end of a pipe that ends with us."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    with (
        descriptors.closing(writing),
        descriptors.closing(reading),
        instant.inherited(reading) as its,
    ):
        yield its
