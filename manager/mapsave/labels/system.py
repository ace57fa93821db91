"""The kernel as the label layer sees it: attribute files, pseudo file systems, extended attributes.

Everything the modules ask of the host goes through a :class:`System`, so that they can be run
against a copy of another host's attribute files.
"""

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CAP_CHOWN = 0
CAP_MAC_ADMIN = 33

_NO_ATTRIBUTE = (errno.ENODATA, errno.EOPNOTSUPP)
_REPLY_BYTES = 4096  # selinuxfs, smackfs and apparmorfs answer within one page
_COMMAND_SECONDS = 60.0  # apparmor_parser takes 0.5 s on a slow machine


@dataclass(frozen=True)
class System:
    """One host. ``root`` is put before every path under /sys, /proc and /etc."""

    root: Path = Path("/")

    def locate(self, path: str) -> Path:
        """Return where the absolute ``path`` of the host is below ``root``."""
        return self.root / path.lstrip("/")

    def exists(self, path: str) -> bool:
        """Return whether ``path`` exists and can be looked up."""
        return os.path.exists(self.locate(path))

    def read(self, path: str) -> str:
        """Return the text of an attribute file, without what it may end with. Raises OSError."""
        return os.fsdecode(self.locate(path).read_bytes().strip(b"\0\n\t "))

    def read_or_none(self, path: str) -> str | None:
        """Return what :meth:`read` does, or None where the file is absent or has no answer.

        ``attr/current`` answers EINVAL when no security module is active.
        """
        try:
            return self.read(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOTDIR):
                return None
            raise

    def write(self, path: str, data: bytes) -> None:
        """Write an attribute file in one call; O_WRONLY needs the least rights. Raises OSError."""
        fd = os.open(self.locate(path), os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)

    def ask(self, path: str, question: bytes) -> str:
        """Write ``question`` to a file that answers, and return the answer. Raises OSError."""
        fd = os.open(self.locate(path), os.O_RDWR | os.O_CLOEXEC)
        try:
            os.write(fd, question)
            return os.fsdecode(os.read(fd, _REPLY_BYTES).strip(b"\0\n\t "))
        finally:
            os.close(fd)

    def get_attribute(self, target: int | str, name: str) -> str | None:
        """Return an extended attribute, or None. Raises OSError but for ENODATA, EOPNOTSUPP."""
        try:
            return os.fsdecode(os.getxattr(target, name).rstrip(b"\0"))
        except OSError as error:
            if error.errno in _NO_ATTRIBUTE:
                return None
            raise

    def set_attribute(self, fd: int, name: str, value: bytes) -> None:
        """Set the extended attribute by descriptor. Raises OSError."""
        os.setxattr(fd, name, value)

    def remove_attribute(self, fd: int, name: str) -> None:
        """Remove the extended attribute by descriptor; one that is not there is no error."""
        try:
            os.removexattr(fd, name)
        except OSError as error:
            if error.errno not in _NO_ATTRIBUTE:
                raise

    def capable(self, capability: int) -> bool:
        """Return whether this process has the capability of that number (capabilities(7))."""
        status = self.read_or_none("/proc/self/status") or ""
        for line in status.splitlines():
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> capability & 1)
        return os.geteuid() == 0

    def run(self, command: Sequence[str], given: bytes = b"") -> str | None:
        """Run ``command`` and return None, or its complaint if it failed or cannot be run.

        It gets ``given`` to read.

        A session of its own, so that Ctrl-C to mapsave does not end it half-way.
        """
        import subprocess  # costs as much as all of this package

        try:
            result = subprocess.run(
                command,
                env={"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"},
                input=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=_COMMAND_SECONDS,
                start_new_session=True,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        if result.returncode == 0:
            return None
        said = result.stdout.decode(errors="replace").strip()
        return said or f"{command[0]} exited with status {result.returncode}"
