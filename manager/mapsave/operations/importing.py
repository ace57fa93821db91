"""Import an image that was exported: partial until all of it is there, and proven to be whole."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypedDict

from mapsave import blocking, errors
from mapsave.archive import coding, ends, reading, sparse_tar
from mapsave.archive.ends import Input
from mapsave.image import formats, image, store
from mapsave.image.image import Image, Partial
from mapsave.migration import progress
from mapsave.migration.progress import Phases, Report
from mapsave.operations import moving

if TYPE_CHECKING:
    from mapsave.archive.coding import Source
    from mapsave.archive.keys import Identity
    from mapsave.config import Config
    from mapsave.operations.digesting import Watch


class Imported(TypedDict):
    """What ``mapsave import --json`` prints."""

    image: str
    uuid: str
    guest: str | None
    state: str
    format: str
    archive: str
    image_bytes: int
    data_bytes: int
    phases_s: dict[str, float]
    duration_s: float
    warnings: list[str]


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of it. ``image`` is a path, or a name in the image directory; without one it is
    named as it was.
    """

    archive: str
    image: str | None = None
    identities: tuple[Identity, ...] = ()


async def import_(config: Config, request: Request, report: Report = progress.silent) -> Imported:
    """Import an image. What was there before is not replaced.

    Raises BadArchive, NotDecrypted, UsageError, ImageExists, Busy where its partial image is there,
    BadDirectory, NoRoom, NotPermitted, Unsupported, ImportFailed, InvalidImage or one of its kin
    where the image in the archive is not valid.
    """
    phases = Phases(report)
    phases.enter("receive")
    try:
        found = await moving.to_its_end(
            lambda watch: _import(config, request, phases, watch), phases, "a partial image"
        )
    except blocking.Hangs as error:
        raise errors.ImportFailed(
            f"{request.archive!r} was not imported: {error.strerror}, or what writes it waits",
            hint="'mapsave recover' removes the partial image once its disk works",
        ) from None
    return {**found, "phases_s": phases.seconds(), "duration_s": round(phases.total, 6)}


def _import(config: Config, request: Request, phases: Phases, watch: Watch) -> Imported:
    watch.limit = max(watch.limit, moving.PEER)
    shown = "standard input" if request.archive == ends.STREAM else repr(request.archive)
    with contextlib.ExitStack() as stack:
        raw = Input(stack.enter_context(ends.source(request.archive)), shown, watch.note)
        source = stack.enter_context(coding.decoding(raw, request.identities))
        head = sparse_tar.read_head(source.exactly)
        directory, name = os.path.split(request.image) if request.image else ("", head.name)
        _check_name(name, request)
        held = stack.enter_context(
            store.directory(directory or config.images, create=not directory)
        )
        path = os.path.join(held.path, name)
        if held.exists(name):
            raise _exists(path)
        with (
            _storing(path),
            image.creating(held.fd, name, {}, stream_offset=reading.HELD_BACK) as partial,
        ):
            found = _receive(source, head, partial, path, phases, watch)
            return {**found, "archive": request.archive}


def _check_name(name: str, request: Request) -> None:
    """Raise UsageError, or BadArchive where the archive itself names its image so."""
    try:
        store.check_name(name)
    except errors.UsageError as error:
        if request.image is not None:
            raise
        raise errors.BadArchive(
            f"the archive's image cannot be named as there: {error.message}",
            hint="name it otherwise by -o NAME",
        ) from None


def _exists(path: str) -> errors.ImageExists:
    return errors.ImageExists(
        f"{path!r} exists", hint="import it under another name, by -o NAME, or discard that one"
    )


@contextlib.contextmanager
def _storing(path: str) -> Iterator[None]:
    """Turn what the image's file system refuses into NoRoom or ImportFailed."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        kind = errors.NoRoom if full else errors.ImportFailed
        raise errors.of_os_error(
            error,
            f"cannot write {path!r}: {error.strerror}; it was not imported",
            os.path.dirname(path),
            os.W_OK | os.X_OK,
            otherwise=kind,
            hint="free some space there" if full else "check its disk or server (dmesg, findmnt)",
        ) from None


def _receive(
    source: Source,
    head: sparse_tar.Head,
    partial: Partial,
    path: str,
    phases: Phases,
    watch: Watch,
) -> Imported:
    watch.begin(head.stored)
    watch.limit = max(watch.limit, moving.PEER)
    received = reading.receive(source, head, partial.fd, partial.directory, watch.note)
    phases.enter("sync")
    partial.sync()
    received.complete()
    os.utime(partial.fd, (head.modified, head.modified))
    partial.sync()
    phases.enter("validate")
    found = _validated(partial, path)
    phases.enter("commit")
    watch.note(0)  # the last moment at which it can be stopped
    try:
        partial.give_name(replace=False)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        if not partial.has_its_name:
            raise
        raise errors.ImportFailed(
            f"{path!r} was imported, but the rename may not have reached stable storage: "
            f"{error.strerror}",
            hint=f"'mapsave verify {path}' once its disk works",
        ) from None
    return {
        "image": path,
        "uuid": str(found.block.uuid),
        "guest": found.metadata.get("guest", {}).get("name"),
        "state": found.block.state.word,
        "format": found.format,
        "archive": "",
        "image_bytes": received.size,
        "data_bytes": received.data_bytes,
        "phases_s": {},
        "duration_s": 0.0,
        "warnings": found.warnings,
    }


def _validated(partial: Partial, path: str) -> Image:
    """Return the image, which is whole but for its name. Raises InvalidImage or one of its kin."""
    block, metadata, header = formats.read(partial.fd, path)
    found = Image(path, partial.fd, block, metadata, header)
    found.validate()
    partial.block, partial.libvirt = block, header
    return found
