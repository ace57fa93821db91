"""What tests need of this machine: without it they are left out (``tests/no_skips.py`` counts)."""

import os
from pathlib import Path

import pytest

MARKERS = {"root": "mounts file systems or changes user, so it runs as root"}
_CAP_SYS_ADMIN = 1 << 21  # capabilities(7), linux/capability.h


def skip_if(reason: str | None) -> None:
    """Leave out the test that runs, for ``reason``, if there is one."""
    if reason:
        pytest.skip(reason)


def root() -> str | None:
    """Say why tests cannot do what root does, or return None."""
    if os.geteuid() != 0:
        return "not root"
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    if not effective & _CAP_SYS_ADMIN:
        return "root, but not allowed to mount (a container without CAP_SYS_ADMIN?)"
    return None if Path("/dev/loop-control").exists() else "no loop devices"
