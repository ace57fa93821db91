"""What recovery finds of the image of an interrupted save: partial, committed, or gone.

Once it has its name, the guest must not run beside it: what cannot be determined is reported,
and left as it is until the next try.
"""

import contextlib
import os
from collections.abc import AsyncIterator, Iterator

from mapsave import errors, shielded
from mapsave.image import descriptors, global_state, image, partial_names, store
from mapsave.image.superblock import State
from mapsave.migration import run_states
from mapsave.operations import answering, managed_save, restored_notes, whereabouts
from mapsave.operations.begun import SaveBegun
from mapsave.operations.interrupted import Interrupted
from mapsave.operations.journal import Orphan
from mapsave.operations.steps import Step

_PAUSED = "until then the guest is left as it is"


@contextlib.contextmanager
def adopting(begun: SaveBegun, held: store.Directory) -> Iterator[image.Partial]:
    """Open what has the partial image's name. Raises OSError (with path), Busy, InvalidImage."""
    with contextlib.ExitStack() as stack:
        try:
            partial = stack.enter_context(image.adopting(held.fd, begun.name))
        except OSError as error:
            error.filename = os.path.join(held.path, partial_names.partial_name(begun.name))
            raise
        yield partial


@contextlib.contextmanager
def adopted(begun: SaveBegun, held: store.Directory) -> Iterator[image.Partial]:
    """Open the partial image of this save. Raises OSError, Busy, InvalidImage."""
    with adopting(begun, held) as partial:
        if str(partial.block.uuid) != begun.uuid:
            raise errors.InvalidImage(f"{partial.partial!r} belongs to another save")
        yield partial


@contextlib.contextmanager
def has_its_name(begun: SaveBegun) -> Iterator[None]:
    """Turn an OSError into CommitFailed: the image has its name, so nothing is rolled back."""
    try:
        yield
    except OSError as error:
        raise errors.CommitFailed(
            f"{begun.image!r} was written, but the rename may not have reached stable storage: "
            f"{error.strerror}",
            hint=f"run 'mapsave recover' again once the disk works; {_PAUSED}",
            image=begun.image,
        ) from None


def is_committed(begun: SaveBegun, held: store.Directory) -> bool:
    """Return whether the image under its final name is the one of this save.

    Raises CommitFailed, or NotPermitted, where it cannot be read, and no partial image is there any
    more.
    """
    name = begun.name
    try:
        os.stat(name, dir_fd=held.fd, follow_symlinks=False)
        with image.opened(os.path.join(held.path, name)) as found:
            ours = str(found.block.uuid) == begun.uuid
            return ours and found.block.state is not State.PARTIAL
    except (FileNotFoundError, errors.NotAnImage, errors.UnsupportedImage):
        return False
    except (OSError, errors.MapsaveError) as error:
        with contextlib.suppress(PermissionError):
            if has_partial(begun, held):
                return False
        if isinstance(error, errors.NotPermitted):
            raise
        raise errors.CommitFailed(
            f"{begun.image!r} may be the image of this save, but cannot be read: {error}",
            hint=f"run 'mapsave recover' again once it can; {_PAUSED}. If it is damaged: remove "
            "it, resume the guest with 'cont' at its monitor, then recover",
            image=begun.image,
        ) from None


@contextlib.asynccontextmanager
async def directory(save: Interrupted[SaveBegun]) -> AsyncIterator[store.Directory]:
    """Open the image directory. Raises BadDirectory where it is gone, or does not answer."""
    path = save.begun.directory
    await answering.check(path, writable=not save.dry_run)
    async with shielded.entered(store.directory(path)) as held:
        yield held


async def is_committed_somewhere(save: Interrupted[SaveBegun]) -> bool:
    """Return whether the image has its name; False where its directory is gone, or hangs."""
    try:
        async with directory(save) as held:
            return is_committed(save.begun, held)
    except (errors.BadDirectory, errors.NotPermitted):
        return False


def is_gone(orphan: Orphan, begun: SaveBegun, held: store.Directory) -> bool:
    """Return whether the image was committed, and is gone from its place since.

    Raises CommitFailed where it may have been, and BadDirectory where another directory is at that
    path: the image may be restored elsewhere, and two guests must not run.
    """
    if not orphan.may_have_reached(Step.COMMIT):
        return False
    if is_committed(begun, held) or has_partial(begun, held):
        return False
    if begun.directory_inode not in (None, os.fstat(held.fd).st_ino):
        raise errors.BadDirectory(
            f"{held.path!r} is not the directory that the image was written to: is its file "
            "system mounted?"
        )
    if orphan.reached(Step.COMMITTED):
        return True
    raise errors.CommitFailed(
        f"{begun.image!r} may have been committed, but neither it nor its partial image is there",
        hint="find out where the image went. If it was not restored: resume the guest with "
        "'cont' at its monitor, then run 'mapsave recover'",
        image=begun.image,
    )


def has_partial(begun: SaveBegun, held: store.Directory) -> bool:
    """Return whether the partial image of this save is there. Raises OSError if unreadable."""
    try:
        with adopted(begun, held):
            return True
    except errors.Busy:
        return True
    except (FileNotFoundError, errors.InvalidImage):
        return False


def mark_stale(save: Interrupted[SaveBegun]) -> None:
    """Let no restore take an image whose guest went on: its disks have moved on."""
    with image.opened(save.begun.image) as opened:
        if str(opened.block.uuid) != save.begun.uuid:
            return
        warning = restored_notes.mark_stale(
            save.config.state, opened.path, opened.block.uuid, opened.mark_stale
        )
    if warning is not None:
        save.warn(warning)
    if save.begun.managed:
        try:
            managed_save.set_aside(save.begun.image)
        except OSError as error:
            save.warn(
                f"{save.begun.image!r} is stale, but libvirt would restore it, for it cannot be "
                f"renamed ({error.strerror}): remove it before the guest shuts down"
            )


def note_whereabouts(save: Interrupted[SaveBegun]) -> None:
    """Note that the guest is in the image now, or is not."""
    begun = save.begun
    if begun.uuid is None:
        return
    with image.opened(begun.image) as opened:
        known = opened.metadata
    domain = known.get("domain") or {}
    note = whereabouts.Note(
        guest=begun.guest,
        key=begun.monitor.key,
        domain=domain.get("name"),
        image=begun.image,
        uuid=begun.uuid,
        time=whereabouts.began(known.get("started")),
        managed=begun.managed,
    )
    warning = whereabouts.committed(save.config.state, note, stays=begun.then != "quit")
    if warning is not None:
        save.warn(warning)


async def continues(save: Interrupted[SaveBegun]) -> bool:
    """Return whether QEMU can resume the guest, by its image; True where that cannot be read."""
    begun, name = save.begun, save.begun.name
    try:
        await answering.check(begun.directory)
    except errors.BadDirectory:
        return True
    for each in (partial_names.partial_name(name), name):
        with contextlib.suppress(OSError, errors.MapsaveError):
            with (
                store.directory(begun.directory) as held,
                descriptors.opened(held.fd, each, os.O_RDONLY) as fd,
            ):
                found = global_state.read(fd)
            if found is not None:
                known = run_states.of(found.run_state)
                return known.continues and not found.was_suspended
    return True
