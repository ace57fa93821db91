"""Where libvirt keeps the managed save of a domain, as its QEMU shows it."""

import contextlib
import dataclasses
import json
import os

from mapsave.monitor import process

SUFFIX = ".save"
_KEY = "masterKey0"


@dataclasses.dataclass(frozen=True)
class Managed:
    """Where libvirt keeps the managed save of a domain.

    ``owner`` are user and group of a session's daemon, which could not read a file of root's.
    """

    directory: str
    name: str
    owner: tuple[int, int] | None = None

    @property
    def path(self) -> str:
        """The path of the image."""
        return os.path.join(self.directory, self.name)

    def give(self, fd: int) -> None:
        """Give a new image to the user whose daemon is to restore it. Raises OSError."""
        if self.owner is not None and os.geteuid() == 0:
            os.fchown(fd, *self.owner)


def of(domain: str, pid: int | None) -> Managed | None:
    """Return where the managed save of ``domain`` is, by its QEMU; None where that is not seen.

    libvirt hands QEMU a key in a file, DIRECTORY/domain-ID-NAME/master-key.aes. Its managed saves
    are in DIRECTORY/save, those of a session, whose DIRECTORY is called lib, beside that
    (qemu_conf.c, virQEMUDriverConfigNew; qemu_domain.c, qemuDomainGetMasterKeyFilePath).
    """
    for argument in process.command_line(pid) if pid is not None else ():
        if _KEY not in argument or not argument.startswith("{"):
            continue
        with contextlib.suppress(ValueError, KeyError, TypeError, OSError):
            library = os.path.dirname(os.path.dirname(json.loads(argument)["file"]))
            is_session = os.path.basename(library) == "lib"
            directory = os.path.join(os.path.dirname(library) if is_session else library, "save")
            found = os.stat(directory)
            return Managed(
                directory, domain + SUFFIX, (found.st_uid, found.st_gid) if is_session else None
            )
    return None
