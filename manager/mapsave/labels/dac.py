"""Owner, group and mode of the image, by descriptor.

QEMU gets descriptors and needs none of it; it is for those who read the images afterwards. So
only a save sets them, and they stay the same afterwards.
"""

import contextlib
import grp
import os
import pwd
import stat
from collections.abc import Sequence
from typing import TypedDict

from mapsave import errors
from mapsave.labels.interface import SecurityModule
from mapsave.labels.label import Access, Label, Target
from mapsave.labels.policy import Policy
from mapsave.labels.system import CAP_CHOWN


class _State(TypedDict):
    uid: int
    gid: int
    mode: int


class Dac(SecurityModule):
    """File permissions."""

    name = "dac"

    @property
    def is_needed(self) -> bool:
        """Whether the policy says anything about owner, group or mode."""
        return (self.policy.owner, self.policy.group, self.policy.mode) != (None, None, None)

    def process(self, pid: int | None) -> str | None:
        return None

    def check(self, directory: str, pid: int | None, access: Access, names: Sequence[str]) -> Label:
        if access == "restore":
            return Label(self.name)
        uid, gid = self._owner()
        if not self.system.capable(CAP_CHOWN):
            foreign_uid = uid not in (-1, os.geteuid())
            foreign_gid = gid not in (-1, os.getegid(), *os.getgroups())
            if foreign_uid or foreign_gid:
                raise errors.NotPermitted(
                    f"policy {self.policy.name} gives images in {directory} to "
                    f"{self.policy.owner or '-'}:{self.policy.group or '-'}, which mapsave is "
                    f"not permitted to do as uid {os.geteuid()}",
                    hint="run mapsave as root, or leave owner and group out of the policy",
                    file=directory,
                )
        return Label(self.name, self._show(uid, gid, self.policy.mode))

    def intended(self, target: Target) -> Label:
        current = _text(_state(target.fd))
        return Label(self.name, current, None, current)

    def apply(self, target: Target) -> Label:
        before = _state(target.fd)
        if target.access == "restore":
            return Label(self.name, _text(before))
        uid, gid = self._owner()
        rest = {"uid": uid, "gid": gid, "mode": self.policy.mode}
        detail = {"before": before, "rest": rest}
        done = Label(self.name, _text(before), None, _text(before), detail)
        try:
            _set(target.fd, uid, gid, self.policy.mode)
        except OSError as error:
            refusal = errors.NotPermitted(
                f"cannot set owner and mode of {target.path} as policy {self.policy.name} "
                f"requires: it has {_text(before)}, required is "
                f"{self._show(uid, gid, self.policy.mode)}: {error.strerror}",
                hint="run mapsave as root, or leave owner, group and mode out of the policy",
                file=target.path,
            )
            with contextlib.suppress(OSError):
                self.undo(target, done)
            raise refusal from None
        return Label(self.name, _text(_state(target.fd)), None, done.previous, detail)

    def holds(self, target: Target, label: Label) -> bool:
        return _text(_state(target.fd)) == label.value

    def undo(self, target: Target, label: Label) -> None:
        was = label.detail.get("before")
        if was and _state(target.fd) != was:
            _set(target.fd, was["uid"], was["gid"], was["mode"])

    def rest(self, target: Target, label: Label) -> None:
        """Set what the policy said once more, should it have been changed in the meantime."""
        if (wanted := label.detail.get("rest")) is not None:
            _set(target.fd, wanted["uid"], wanted["gid"], wanted["mode"])

    def refuses(self, target: Target) -> bool:
        """Return False: permissions count when a file is opened, and QEMU gets it open."""
        return False

    def explain(self, target: Target) -> str:
        return f"the file has {_text(_state(target.fd))}"

    def _owner(self) -> tuple[int, int]:
        """Return uid and gid, -1 for "as it is". Raises PolicyViolation for unknown names."""
        return (
            _number(self.policy, "owner", self.policy.owner),
            _number(self.policy, "group", self.policy.group),
        )

    def _show(self, uid: int, gid: int, mode: int | None) -> str:
        def part(number: int) -> str:
            return "-" if number == -1 else str(number)

        return f"{part(uid)}:{part(gid)} {'-' if mode is None else f'{mode:04o}'}"


def owner_id(policy: Policy) -> int | None:
    """Return the user that ``policy`` gives images to, or None. Raises PolicyViolation."""
    return None if policy.owner is None else _number(policy, "owner", policy.owner)


def _number(policy: Policy, what: str, name: str | None) -> int:
    if name is None:
        return -1
    if name.isascii() and name.isdigit():
        return int(name)
    try:
        if what == "owner":
            return pwd.getpwnam(name).pw_uid
        return grp.getgrnam(name).gr_gid
    except KeyError:
        kind = "user" if what == "owner" else "group"
        raise errors.PolicyViolation(
            f"policy {policy.name} requires the {what} {name!r}, but this host has no such {kind}",
            hint=f"create it, or name another {kind} or a number in the policy",
        ) from None


def _state(fd: int) -> _State:
    stats = os.fstat(fd)
    return {"uid": stats.st_uid, "gid": stats.st_gid, "mode": stat.S_IMODE(stats.st_mode)}


def _text(state: _State) -> str:
    return f"{state['uid']}:{state['gid']} {state['mode']:04o}"


def _set(fd: int, uid: int, gid: int, mode: int | None) -> None:
    """Set what differs; the mode last, for a change of owner clears bits of it."""
    stats = os.fstat(fd)
    if (uid, gid) != (-1, -1) and (stats.st_uid, stats.st_gid) != (
        stats.st_uid if uid == -1 else uid,
        stats.st_gid if gid == -1 else gid,
    ):
        os.fchown(fd, uid, gid)
    if mode is not None and stat.S_IMODE(os.fstat(fd).st_mode) != mode:
        os.fchmod(fd, mode)
