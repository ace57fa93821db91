"""Smack: the image gets QEMU's own label, or the one of the policy.

Source: the kernel's Documentation/admin-guide/LSM/Smack.rst (``access2``, SMACK64).
"""

import contextlib
import dataclasses
import errno
import logging
import os
from collections.abc import Sequence

from mapsave import errors
from mapsave.labels.interface import SecurityModule
from mapsave.labels.label import ACTION, Access, Label, Target, who
from mapsave.labels.policy import Policy
from mapsave.labels.system import System

log = logging.getLogger(__name__)

ATTRIBUTE = "security.SMACK64"
FS = "/sys/fs/smackfs"

_LETTER: dict[Access, str] = {"save": "w", "restore": "r"}


class Smack(SecurityModule):
    """The image gets QEMU's own label, or the one of the policy."""

    name = "smack"

    def __init__(self, policy: Policy, system: System) -> None:
        super().__init__(policy, system)
        self.options = policy.smack

    def check(self, directory: str, pid: int | None, access: Access, names: Sequence[str]) -> Label:
        process = self.process(pid)
        wanted = self.options.label or process
        if process and wanted and access == "save":
            self._require(process, wanted, access, f"images in {directory}")
        return Label(self.name, wanted, process)

    def intended(self, target: Target) -> Label:
        process = self.context(target)
        before = self.system.get_attribute(target.fd, ATTRIBUTE)
        wanted = self.options.label or process
        readable = target.access == "restore" and process and before and not self.options.label
        if readable and self.allows(str(process), str(before), "restore"):
            wanted = None
        detail = {"at_rest": self.options.at_rest} if target.access == "save" else {}
        return Label(self.name, wanted or before, process, before, detail)

    def apply(self, target: Target) -> Label:
        label = self.intended(target)
        process, before = label.process, label.previous
        if label.value is not None and label.value != before:
            self._set(target, label.value, before, process)
        after = self.system.get_attribute(target.fd, ATTRIBUTE)
        label = dataclasses.replace(label, value=after)
        try:
            if process and after:
                self._require(process, after, target.access, target.path)
        except errors.NotPermitted:
            with contextlib.suppress(OSError):
                self.undo(target, label)
            raise
        return label

    def holds(self, target: Target, label: Label) -> bool:
        return self.system.get_attribute(target.fd, ATTRIBUTE) == label.value

    def undo(self, target: Target, label: Label) -> None:
        if label.value == label.previous:
            return
        if label.previous is None:
            self.system.remove_attribute(target.fd, ATTRIBUTE)
        else:
            self.system.set_attribute(target.fd, ATTRIBUTE, os.fsencode(label.previous))

    def rest(self, target: Target, label: Label) -> None:
        choice = str(label.detail.get("at_rest", self.options.at_rest))
        if target.access == "restore" or choice == "previous":
            self.undo(target, label)
        elif choice != "keep":
            self.system.set_attribute(target.fd, ATTRIBUTE, choice.encode())

    def refuses(self, target: Target) -> bool:
        process = self.process(target.pid)
        current = self.system.get_attribute(target.fd, ATTRIBUTE)
        return bool(process and current) and (
            self.allows(str(process), str(current), target.access) is False
        )

    def explain(self, target: Target) -> str:
        process = self.read_context(target.pid) if target.pid is not None else None
        current = self.system.get_attribute(target.fd, ATTRIBUTE)
        action = ACTION[target.access]
        allowed = self.allows(process, current, target.access) if process and current else None
        answer = {True: "may", False: "may not", None: "may or may not (smackfs cannot be queried)"}
        return (
            f"Smack: the file is labelled {current or 'nothing'}, {who(target.pid)} runs as "
            f"{process or 'unknown'}, which {answer[allowed]} {action} such a file"
        )

    def allows(self, process: str, label: str, access: Access) -> bool | None:
        """Return whether the loaded rules let ``process`` at ``label``; None: no answer."""
        try:
            question = f"{process} {label} {_LETTER[access]}"
            return self.system.ask(f"{FS}/access2", os.fsencode(question)) == "1"
        except OSError as error:
            log.debug("cannot query Smack about %s %s: %s", process, label, error)
            return None

    def _set(self, target: Target, wanted: str, before: str | None, process: str | None) -> None:
        try:
            self.system.set_attribute(target.fd, ATTRIBUTE, os.fsencode(wanted))
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                return  # the mount's label counts; _require asks about it
            raise errors.LabelRefused(
                f"Smack does not let mapsave label {target.path}: it is "
                f"{before or 'unlabelled'}, policy {self.policy.name} requires {wanted}: "
                f"{error.strerror}",
                hint="setting a Smack label requires CAP_MAC_ADMIN",
                file=target.path,
                label=before,
                process=process,
                wanted=wanted,
            ) from None

    def _require(self, process: str, found: str, access: Access, path: str) -> None:
        if self.allows(process, found, access) is not False:
            return
        raise errors.LabelRefused(
            f"Smack would refuse {path} to QEMU: its label {process} may not "
            f"{ACTION[access]} a file labelled {found} (policy {self.policy.name} "
            f"requires {self.options.label or process})",
            hint=f"load the rule: {process} {found} {'rw' if access == 'save' else 'r'}",
            file=path,
            label=found,
            process=process,
            wanted=self.options.label or process,
        )
