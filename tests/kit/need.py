"""What the markers of the tests stand for, and whether this machine has it."""

import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.kit import libvirtd, linux_guest, qemu

MARKERS = {
    "qemu": "runs a real qemu-system-x86_64",
    "kvm": "needs a usable /dev/kvm",
    "libvirt": "runs a private libvirtd and talks to it by libvirt-python, as root",
    "linux": "boots a live Linux guest (downloads a kernel once)",
    "root": "mounts file systems or changes user, so it runs as root",
    "slow": "takes more than about ten seconds",
}


_CAP_SYS_ADMIN = 1 << 21  # capabilities(7), linux/capability.h


def _qemu() -> str | None:
    return None if shutil.which(qemu.BINARY) else f"there is no {qemu.BINARY}"


def _kvm() -> str | None:
    return None if qemu.has_kvm() else "/dev/kvm cannot be used"


def _root() -> str | None:
    if os.geteuid() != 0:
        return "not root"
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    if not effective & _CAP_SYS_ADMIN:
        return "root, but not allowed to mount (a container without CAP_SYS_ADMIN?)"
    return None if Path("/dev/loop-control").exists() else "no loop devices"


def _linux() -> str | None:
    return _qemu() or linux_guest.unavailable()


def _libvirt() -> str | None:
    if importlib.util.find_spec("libvirt") is None:
        return "libvirt-python is not installed"
    return _qemu() or libvirtd.unavailable() or _root()


_CHECKS: dict[str, Callable[[], str | None]] = {
    "qemu": _qemu,
    "kvm": _kvm,
    "libvirt": _libvirt,
    "root": _root,
    "linux": _linux,
}


def missing(marker: str) -> str | None:
    """Say what this machine lacks for tests with ``marker``, or return None."""
    check = _CHECKS.get(marker)
    return check() if check else None
