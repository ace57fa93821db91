"""Export an image: as a sparse tar, compressed, encrypted if asked for, to a file or a pipe."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, TypedDict

from mapsave import blocking, errors
from mapsave.archive import coding, ends, sparse_tar, writing
from mapsave.archive.ends import STREAM, Output
from mapsave.image import descriptors, formats, image
from mapsave.migration import progress
from mapsave.migration.progress import Phases, Report
from mapsave.operations import digesting, moving

if TYPE_CHECKING:
    from mapsave.archive.coding import Coding
    from mapsave.image.image import Image
    from mapsave.operations.digesting import Watch


class Exported(TypedDict):
    """What ``mapsave export --json`` prints. ``data_bytes`` are those that are no holes.

    ``archive`` is a path, or ``-``; ``level`` that of zstd, null where it is not compressed.
    """

    image: str
    uuid: str
    archive: str
    image_bytes: int
    data_bytes: int
    archive_bytes: int
    level: int | None
    recipients: int
    phases_s: dict[str, float]
    duration_s: float
    warnings: list[str]


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of it: the ``path`` of the image, the ``archive``'s or ``-``, and how."""

    path: str
    archive: str
    coding: Coding
    replace: bool = False


async def export(request: Request, report: Report = progress.silent) -> Exported:
    """Export an image, which may be in use.

    Raises ImageNotFound, PartialImage, InvalidImage or one of its kin, DataDamaged where it is not
    what its digests say, Busy where it is changed meanwhile, NotPermitted, UsageError where the
    archive is there already, Unsupported, ExportFailed, NoRoom.
    """
    phases = Phases(report)
    phases.enter("validate")
    try:
        found = await moving.to_its_end(
            lambda watch: _export(request, phases, watch), phases, "nothing that has a name"
        )
    except blocking.Hangs as error:
        raise errors.ExportFailed(
            f"{request.path!r} was not exported: {error.strerror}, or what reads the archive waits",
            hint="check the disks of both (dmesg, findmnt), and the program that reads it",
        ) from None
    return {**found, "phases_s": phases.seconds(), "duration_s": round(phases.total, 6)}


def _export(request: Request, phases: Phases, watch: Watch) -> Exported:
    with image.opened(request.path) as opened:
        if request.archive == STREAM:
            with ends.stream(1, os.O_WRONLY) as fd:
                output = Output(fd, "standard output", watch.note)
                return _write(request, opened, output, phases, watch)
        with ends.target(request.archive, replace=request.replace) as target:
            output = Output(target.fd, repr(request.archive), watch.note)
            found = _write(request, opened, output, phases, watch)
            watch.note(0)
            target.commit()
            return found


def _check(opened: Image) -> None:
    """Read the structure. Raises PartialImage, InvalidImage or one of its kin, Unsupported."""
    opened.validate()
    if opened.size > sparse_tar.MOST_BYTES:
        raise errors.Unsupported(f"{opened.path!r} is too large to be exported: it has over 8 TiB")


def _write(
    request: Request, opened: Image, output: Output, phases: Phases, watch: Watch
) -> Exported:
    _check(opened)
    known = opened.taken_digests()
    size, stats = opened.size, os.fstat(opened.fd)

    def check() -> None:
        now = formats.read(opened.fd, opened.path, without_metadata=opened.without_metadata)
        if now[0] != opened.block or now[2] != opened.libvirt:
            raise writing.changed(opened.path)

    source = writing.Image(
        fd=opened.fd,
        name=os.path.basename(opened.path),
        size=size,
        modified=max(0, int(stats.st_mtime)),
        header=opened.block.stream_offset,
        known=known,
        check=check,
    )
    with descriptors.reading(opened.path):
        layout = sparse_tar.layout(opened.fd, size, watch.note)
    phases.enter("export")
    watch.begin(layout.data_bytes)
    with watch.counting():
        watch.limit = max(watch.limit, moving.PEER)
        with descriptors.reading(opened.path), coding.encoding(output, request.coding) as out:
            writing.write(source, layout, out, watch.note)
    phases.enter("sync")
    output.finish()
    return {
        "image": opened.path,
        "uuid": str(opened.block.uuid),
        "archive": request.archive,
        "image_bytes": size,
        "data_bytes": layout.data_bytes,
        "archive_bytes": output.count,
        "level": request.coding.level,
        "recipients": len(request.coding.recipients),
        "phases_s": {},
        "duration_s": 0.0,
        "warnings": digesting.not_verified(opened),
    }
