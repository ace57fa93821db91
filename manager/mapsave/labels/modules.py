"""The security modules that mapsave labels for: how each is recognised, and its class.

A class is imported only where its module is active: a save starts in no time.
"""

import dataclasses
from collections.abc import Callable

from mapsave.labels.dac import Dac
from mapsave.labels.interface import SecurityModule
from mapsave.labels.policy import BUILT_IN, Policy
from mapsave.labels.system import System

Make = Callable[[Policy, System], SecurityModule]


SELINUX_ENFORCE = "/sys/fs/selinux/enforce"
APPARMOR_ENABLED = "/sys/module/apparmor/parameters/enabled"
SMACK_FS = "/sys/fs/smackfs"  # the mount point, which the kernel makes if Smack is on


def _selinux() -> Make:
    from mapsave.labels.selinux import Selinux

    return Selinux


def _apparmor() -> Make:
    from mapsave.labels.apparmor import Apparmor

    return Apparmor


def _smack() -> Make:
    from mapsave.labels.smack import Smack

    return Smack


@dataclasses.dataclass(frozen=True)
class _Row:
    is_active: Callable[[System], bool]
    load: Callable[[], Make]


# That an attribute can be stored says nothing: to a kernel without SELinux, security.selinux is
# just bytes, which take effect when the disk is used with SELinux later.
_ROWS = {
    "selinux": _Row(lambda system: system.exists(SELINUX_ENFORCE), _selinux),
    "apparmor": _Row(lambda system: system.read_or_none(APPARMOR_ENABLED) == "Y", _apparmor),
    "smack": _Row(lambda system: system.exists(SMACK_FS), _smack),
}


def is_active(name: str, system: System) -> bool:
    """Return whether the module is active on this host; file permissions always are."""
    return name not in _ROWS or _ROWS[name].is_active(system)


def active(policy: Policy, system: System) -> list[SecurityModule]:
    """Return the active security modules."""
    return [row.load()(policy, system) for row in _ROWS.values() if row.is_active(system)]


def named(name: str, system: System) -> SecurityModule | None:
    """Return the module of a journalled label, whichever policy set it; None if it is unknown."""
    if name in _ROWS:
        return _ROWS[name].load()(BUILT_IN["auto"], system)
    return Dac(BUILT_IN["auto"], system) if name == "dac" else None
