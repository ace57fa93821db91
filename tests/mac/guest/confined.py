"""QEMU in a domain of SELinux, and what is asked of files and processes there."""

from __future__ import annotations

import os
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.kit import cli, qemu

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kit.qemu import Qemu

GUEST = "system_u:system_r:svirt_t:s0:c1,c2"
IMAGE = "system_u:object_r:svirt_image_t:s0:c1,c2"
AT_REST = "system_u:object_r:virt_image_t:s0"  # what a new file in /var/lib/mapsave gets
SOCKETS = Path("/run/guests")  # a directory where guests may make sockets
_ATTRIBUTE = "security.selinux"


@contextmanager
def running(*arguments: str, context: str = GUEST, **options: Any) -> Iterator[Qemu]:
    """Run a paused QEMU in ``context``; ``options`` are those of ``qemu.running``."""
    place = Path(tempfile.mkdtemp(dir=SOCKETS))
    with qemu.running(
        *arguments,
        directory=place,
        under=["runcon", context],
        **{"accel": "tcg", "memory": "32M", **options},
    ) as guest:
        assert context_of(guest.pid) == context
        yield guest


def context_of(pid: int) -> str:
    """Return the context of a process."""
    return Path(f"/proc/{pid}/attr/current").read_text().rstrip("\0\n")


def label_of(file: Path | int) -> str:
    """Return the label of a file."""
    return os.getxattr(file, _ATTRIBUTE).rstrip(b"\0").decode()


def relabel(file: Path | int, label: str) -> None:
    """Give a file another label, behind mapsave's back."""
    os.setxattr(file, _ATTRIBUTE, label.encode() + b"\0")


def refusals(name: str) -> list[str]:
    """Return the kernel's log of what it has refused QEMU about a file of this name."""
    log = subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout
    lines = [line for line in log.splitlines() if "denied" in line and "qemu-system" in line]
    return [line for line in lines if name in line]


def policy(site: cli.Site, **selinux: str) -> str:
    """Write a label policy for SELinux with these settings; return its path."""
    path = site.directory / "own.yaml"
    lines = [f'  {name}: "{value}"\n' for name, value in selinux.items()]
    path.write_text("module: selinux\nselinux:\n" + "".join(lines))
    return str(path)
