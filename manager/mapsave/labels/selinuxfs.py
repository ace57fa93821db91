"""The questions that SELinux answers in its file system, and the label of files to be created.

Source: the kernel's security/selinux/selinuxfs.c (``context``, ``access``, ``create``, ``class``)
and security/selinux/hooks.c (``fscreate``).
"""

import contextlib
import errno
import logging
import os
from collections.abc import Iterator

from mapsave.labels.system import System

log = logging.getLogger(__name__)

ATTRIBUTE = "security.selinux"
FS = "/sys/fs/selinux"
OWN = "/proc/thread-self/attr/current"
FSCREATE = "/proc/thread-self/attr/fscreate"

_PERMISSIVE_DOMAIN = 0x1  # SELINUX_AVD_FLAGS_PERMISSIVE, in the last field of an access answer


class SelinuxFs:
    """The loaded SELinux policy of one host, as far as it may be asked."""

    def __init__(self, system: System) -> None:
        self.system = system

    def own(self) -> str | None:
        """Return the context of this thread."""
        return self.system.read_or_none(OWN)

    def enforcing(self) -> bool:
        """Return whether refusals are real."""
        return self.system.read_or_none(f"{FS}/enforce") != "0"

    def allows(self, process: str, label: str, kind: str, permission: str) -> bool | None:
        """Return whether the loaded policy allows it, enforcing or not; None if it can't be asked.

        ``kind`` is an object class, ``permission`` one of its permissions.
        """
        try:
            index = int(self.system.read(f"{FS}/class/{kind}/index"))
            bit = int(self.system.read(f"{FS}/class/{kind}/perms/{permission}")) - 1
            question = f"{process} {label} {index} {1 << bit:x}"
            answer = self.system.ask(f"{FS}/access", os.fsencode(question)).split()
            granted = int(answer[0], 16) | (-1 if int(answer[5], 16) & _PERMISSIVE_DOMAIN else 0)
        except (OSError, ValueError, IndexError) as error:
            log.debug("cannot query SELinux about %s %s: %s", process, label, error)
            return None
        return bool(granted >> bit & 1)

    def canonical(self, label: str) -> str | None:
        """Return ``label`` as the kernel writes it (c2,c1 is c1,c2); None if it is unknown."""
        try:
            return self.system.ask(f"{FS}/context", os.fsencode(label) + b"\0")
        except OSError as error:
            # May not ask (EACCES): then take it as it is.
            return None if error.errno == errno.EINVAL else label

    def default(self, directory: str) -> str | None:
        """Return the label that a file created in ``directory`` gets by itself; None: unknown."""
        try:
            own = self.system.read(OWN)
            parent = self.system.get_attribute(os.path.realpath(directory), ATTRIBUTE)
            index = self.system.read(f"{FS}/class/file/index")
            return self.system.ask(f"{FS}/create", f"{own} {parent} {index}".encode()) or None
        except OSError as error:
            log.debug("no default label in %s: %s", directory, error)
            return None

    @contextlib.contextmanager
    def creating(self, label: str) -> Iterator[None]:
        """Have files that this thread creates born with ``label`` where that may be."""
        before = self.system.read_or_none(FSCREATE)
        chosen = self._set_fscreate(label)
        try:
            yield
        finally:
            if chosen:
                try:  # a single NUL byte clears it
                    self.system.write(FSCREATE, os.fsencode(before or "") + b"\0")
                except OSError as error:
                    log.error(
                        "cannot reset the label of new files of this thread, which stays %s: %s",
                        label,
                        error,
                    )

    def _set_fscreate(self, label: str) -> bool:
        own = self.own()
        if own and self.allows(own, label, "file", "create") is False:
            return False
        try:
            self.system.write(FSCREATE, label.encode() + b"\0")
        except OSError as error:
            log.debug("cannot create files as %s: %s", label, error)
            return False
        return True
