"""Make a core of an image: load it into a throwaway QEMU, and have that dump its memory.

It has the memory and the registers of the processors as notes, in the form that gdb, drgn and crash
read (``dump-guest-memory`` in QEMU's qapi/dump.json). QEMU writes into a file that mapsave opens,
and that gets its name only once it is whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import AsyncIterator
from typing import Literal, TypedDict

from mapsave import blocking, errors, shielded
from mapsave.archive import ends
from mapsave.config import Config
from mapsave.migration import progress, stall
from mapsave.monitor import fdset
from mapsave.monitor.session import Events, Session
from mapsave.operations import prove

Form = Literal["elf", "kdump-zlib", "kdump-lzo", "kdump-snappy"]

_ENDED = "DUMP_COMPLETED"
_LOOK = 0.25  # seconds between two looks at how far it is


class Core(TypedDict):
    """What ``mapsave core --json`` prints: the file, and how large it is."""

    image: str
    guest: str
    core: str
    format: str
    virtual: bool
    ram_bytes: int
    file_bytes: int
    disk_bytes: int
    duration_s: float
    warnings: list[str]


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of it: the file, in which form; ``virtual``: with the virtual addresses of the
    guest's first processor, by which gdb finds its memory."""

    file: str
    form: Form = "elf"
    virtual: bool = True
    replace: bool = False


async def core(
    config: Config,
    path: str,
    request: Request,
    given: prove.Request,
    report: progress.Report = progress.silent,
) -> Core:
    """Write the core of the image at ``path``; ``given`` says by what QEMU it is loaded.

    Raises UsageError, NotPermitted, CoreFailed with no file left, and as ``prove.prove`` does.
    """
    phases = progress.Phases(report)
    async with (
        prove.chosen(config, path, given, phases) as subject,
        _written(request) as target,
        prove.loaded(config, subject, phases, target.fd) as (loaded, _),
    ):
        phases.enter("dump")
        await _dump(loaded.session, target.fd, request, phases)
        phases.enter("sync")
        await blocking.within(stall.limit(os.fstat(target.fd).st_size), os.fsync, target.fd)
        await shielded.in_time(target.commit)
        stats = os.fstat(target.fd)
        return Core(
            image=subject.opened.path,
            guest=subject.guest,
            core=os.path.abspath(request.file),
            format=request.form,
            virtual=request.virtual,
            ram_bytes=subject.contents.stream.ram_bytes,
            file_bytes=stats.st_size,
            disk_bytes=stats.st_blocks * 512,
            duration_s=round(phases.total, 6),
            warnings=loaded.warnings,
        )


@contextlib.asynccontextmanager
async def _written(request: Request) -> AsyncIterator[ends.Target]:
    """Begin the file; what it fails of becomes CoreFailed."""
    try:
        async with shielded.entered(ends.target(request.file, replace=request.replace)) as target:
            yield target
    except errors.ExportFailed as error:
        raise errors.CoreFailed(error.message, hint=error.hint) from None
    except OSError as error:
        raise errors.CoreFailed(f"cannot write {request.file!r}: {error.strerror}") from None


async def _dump(session: Session, fd: int, request: Request, phases: progress.Phases) -> None:
    # It is not taken back: QEMU closes its duplicate without noting that (10.0, dump/dump.c).
    number = fdset.free_id(await fdset.query(session))
    await session.pass_descriptor(fd, number, f"{fdset.OPAQUE}-core")
    arguments = {
        "paging": request.virtual,
        "protocol": f"file:/dev/fdset/{number}",
        "detach": True,
        # Raw: the other form is for a pipe.
        "format": request.form.replace("kdump-", "kdump-raw-"),
    }
    with session.events(_ENDED) as events:
        try:
            await session.execute("dump-guest-memory", arguments)
        except errors.CommandRefused as error:
            raise errors.CoreFailed(f"QEMU writes no core: {error.desc}") from None
        await _followed(session, events, request, phases)


async def _followed(
    session: Session, events: Events, request: Request, phases: progress.Phases
) -> None:
    """Wait for the end of the dump. Raises CoreFailed."""
    before, idle = -1, 0.0
    while (event := await events.next(_LOOK)) is None:
        found = await session.execute("query-dump")
        phases.progress(found["completed"], found["total"])
        idle = 0.0 if found["completed"] != before else idle + _LOOK
        before = found["completed"]
        if idle > stall.limit(found["total"]):
            raise errors.CoreFailed(f"QEMU writes nothing more to {request.file!r}")
    if (reason := event.data.get("error")) is not None:
        raise errors.CoreFailed(f"QEMU could not write {request.file!r}: {reason}")
