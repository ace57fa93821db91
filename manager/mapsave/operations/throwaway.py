"""A QEMU that is thrown away: started for one proof, gone with it, and with mapsave as well.

Its monitor is in a directory that it reaches by an inherited descriptor, so its user needs leave
for no other. mapsave may be killed: a shell that waits for the end of a pipe kills QEMU then. A
signal at the death of its parent (PR_SET_PDEATHSIG) would be lost where QEMU changes its user.
"""

import contextlib
import dataclasses
import os
import select
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

from mapsave import errors, shielded
from mapsave.image import descriptors
from mapsave.labels.selinuxfs import ATTRIBUTE
from mapsave.operations import destination, ending, instant, locks
from mapsave.operations.destination import Command, Destination
from mapsave.proof.confinement import Entry

_PART = "proofs"
_SOCKET = "qmp"
# $1: the pipe, $2: the directory, $3 and $4: the attribute that says in which context QEMU is to
# run, and that. "$$" is the shell that becomes QEMU, and leads a process group; that number is no
# other's as long as this one is in it. dash's kill takes no "--".
_WATCHED = """
(read -r _ <"/proc/self/fd/$1"; rm -rf -- "$2"; kill -KILL "-$$") &
if [ -n "$3" ]; then printf %s "$4" >"/proc/self/attr/$3" || exit; fi
shift 4
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
def place(state: Path, uid: int | None, label: str | None = None) -> Iterator[Place]:
    """Make a place for a QEMU that runs as the user ``uid``, and remove it at the end. Blocks.

    ``label``: of SELinux, where QEMU may use nothing else. Raises NotProvable.
    """
    directory = Path(tempfile.mkdtemp(dir=locks.state_directory(state, _PART)))
    try:
        opened = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        with descriptors.closing(opened), descriptors.inherited(opened) as fd:
            if label is not None:
                _label(directory, label)
            if uid is not None and uid != os.geteuid():
                os.chown(directory, uid, -1)
            yield Place(directory, fd)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _label(directory: Path, label: str) -> None:
    try:
        os.setxattr(directory, ATTRIBUTE, os.fsencode(label) + b"\0")
    except OSError as error:
        raise errors.NotProvable(
            f"the image cannot be proven: SELinux lets no directory be labelled {label} for "
            f"QEMU: {error.strerror}"
        ) from None


@contextlib.asynccontextmanager
async def running(
    command: Command, there: Place, inherited: Sequence[int], entry: Entry
) -> AsyncIterator[Destination]:
    """Start ``command`` and connect to it; it is gone at the end. Raises LaunchFailed.

    ``inherited`` are descriptors that it gets under their own numbers; ``entry`` is how it is
    confined.
    """
    # As the guest's own is found: by our PATH, which it need not have.
    program = shutil.which(command.argv[0]) or command.argv[0]
    async with _watch() as (watched, held):
        shell = ["/bin/sh", "-c", _WATCHED, "mapsave-proof", str(watched), str(there.directory)]
        shell += [entry.attribute, entry.value]
        started = dataclasses.replace(
            command,
            argv=[*shell, program, *command.argv[1:]],
            inherited=(there.fd, watched, held, *inherited),
        )
        async with destination.launched(started) as target:
            yield target


@contextlib.asynccontextmanager
async def _watch() -> AsyncIterator[tuple[int, int]]:
    """Yield the numbers of what is inherited: the end of a pipe that ends with us, and of another
    that ends with all who have inherited it, which is waited for."""
    async with contextlib.AsyncExitStack() as stack:
        watched, ours = os.pipe2(os.O_CLOEXEC)
        theirs, held = os.pipe2(os.O_CLOEXEC)
        stack.callback(os.close, theirs)
        stack.push_async_callback(shielded.in_time, _await_end, theirs)
        for fd in (watched, ours, held):
            stack.callback(os.close, fd)
        with descriptors.inherited(watched) as first, descriptors.inherited(held) as second:
            yield first, second


def _await_end(fd: int) -> None:
    """Wait until the pipe ``fd`` has ended, or for as long as a process gets to die. Blocks."""
    ended = select.poll()
    ended.register(fd)
    ended.poll(ending.KILL_TIMEOUT * 1000)
