"""Whether a guest may be started afresh: not while its memory is in an image.

Quick, and by the state directory and the image alone: a hook of libvirt waits for it, and a call to
libvirt from there would wait forever. A save notes where its guest is (``whereabouts``).
"""

import os
import shlex
import uuid as uuids

from mapsave import errors
from mapsave.config import Config, Guest
from mapsave.operations import locks, whereabouts
from mapsave.operations.whereabouts import Fate, Note


def check(config: Config, guest: Guest) -> Note | None:
    """Return None where the guest may be started, or the note of its managed save.

    libvirt restores that one when it starts the domain. Raises GuestSaved where the guest is in an
    image, or in one that cannot be looked at; NotPermitted, ConfigMissing where no one knows.
    """
    managed = None
    try:
        found = [each for each in whereabouts.read(config.state) if _is_of(guest, each)]
    except OSError as error:
        where = config.state / "whereabouts"
        raise errors.of_os_error(
            error,
            f"cannot find out whether guest {guest.name!r} is in an image: {str(where)!r}: "
            f"{error.strerror}",
            where,
            otherwise=errors.ConfigMissing,
            hint="set 'state:' in the configuration",
        ) from None
    for note in found:
        unseen = ""
        try:
            if whereabouts.fate(config.state, note) is not Fate.SAVED:
                continue
            # A restore by mapsave may start its destination by a script that asks here.
            if locks.is_held(config.state, locks.image_key(uuids.UUID(note.uuid))):
                continue
        except (OSError, errors.UnreadableImage, errors.NotPermitted) as error:
            unseen = f", which cannot be looked at ({getattr(error, 'strerror', None) or error})"
        if note.managed and not unseen:
            managed = note
            continue
        image = shlex.quote(note.image)
        raise errors.GuestSaved(
            f"the memory of guest {guest.name!r} is in {note.image!r}{unseen}: started afresh, the "
            "guest would lose it, and the image would be stale",
            hint=("make it readable, then " if unseen else "")
            + f"restore it: mapsave restore {image}; or discard it: mapsave discard --yes {image}",
            image=note.image,
        )
    return managed


def _is_of(guest: Guest, note: Note) -> bool:
    if guest.libvirt is not None:
        domain = guest.libvirt.domain
        return domain == note.domain or note.key == f"guest:libvirt:{domain}"
    if guest.qmp is not None and note.key == f"guest:{os.path.realpath(guest.qmp)}":
        return True
    return note.guest == guest.name
