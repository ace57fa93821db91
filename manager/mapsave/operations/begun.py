"""What recovery must know of an operation: the typed content of the crash journal.

``journal.operation`` writes a record as the first step, and further steps add what is ``Noted``.
The names are the keys on disk: a journal of an earlier version must still be read.
"""

import os
from typing import TypedDict

import msgspec

from mapsave.config import Prove, Then
from mapsave.labels.label import Label
from mapsave.migration.parameters import Settings
from mapsave.operations.attach import Monitor


class Noted(TypedDict, total=False):
    """What later steps add; only a restore learns its monitor, process and settings that late."""

    uuid: str
    label: Label
    outcome: str
    monitor: Monitor
    pid: int | None
    process_started: int | None
    fdset: int
    settings: Settings
    acl: str
    link: str
    inode: int


class SaveBegun(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A save: its guest, whose QEMU is ``pid`` where that is in our sight, and its image.

    ``directory`` and ``name`` are the image's; ``directory_inode`` shows whether another directory
    is at that path since. ``settings`` are what QEMU is to get back; ``fdset`` is what it was
    given. ``managed``: libvirt restores the image at the domain's next start. ``uuid`` and
    ``label`` of the image, and the ``outcome`` of recovery, come later.
    """

    guest: str
    monitor: Monitor
    pid: int | None
    process_started: int | None
    directory: str
    directory_inode: int | None = None
    name: str
    replace: bool
    managed: bool = False
    then: Then
    policy: str | None = None
    prove: Prove = "none"
    was_running: bool
    settings: Settings
    fdset: int
    uuid: str | None = None
    label: Label | None = None
    outcome: str | None = None

    @property
    def image(self) -> str:
        """The path that the image has once it is committed."""
        return os.path.join(self.directory, self.name)


class RestoreBegun(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A restore of the image at the path ``image``; its steps note the rest as they come to it.

    ``acl``: the ACL of the image, of that ``uuid`` and ``inode``, before QEMU's user was let in, in
    hexadecimal digits. ``link``: the link by which a QEMU of libvirt's opens the image.
    ``is_clone``: the image is not marked.
    """

    guest: str
    image: str
    through_libvirt: bool | None = None
    is_clone: bool = False
    monitor: Monitor | None = None
    pid: int | None = None
    process_started: int | None = None
    fdset: int | None = None
    settings: Settings | None = None
    label: Label | None = None
    acl: str | None = None
    link: str | None = None
    uuid: str | None = None
    inode: int | None = None
    outcome: str | None = None


Begun = SaveBegun | RestoreBegun
