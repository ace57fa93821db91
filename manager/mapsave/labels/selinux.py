"""SELinux: the image gets a label that only this QEMU, by its categories, may use.

The label is checked when a descriptor arrives in QEMU (a refused one disappears without a word)
and again after every change, so it is set before the hand-over and asked for beforehand.

Sources: the kernel's security/selinux/hooks.c and virtual_image_context of the SELinux reference
policy.
"""

import contextlib
import dataclasses
import errno
import logging
import os
from collections.abc import Sequence

from mapsave import errors
from mapsave.labels.interface import SecurityModule, gone
from mapsave.labels.label import ACTION, Access, Label, Target, name_of, who
from mapsave.labels.policy import Policy
from mapsave.labels.selinuxfs import ATTRIBUTE, SelinuxFs
from mapsave.labels.system import System

log = logging.getLogger(__name__)


class Selinux(SecurityModule):
    """The image gets a label that only this QEMU may use."""

    name = "selinux"
    marks_files = True

    def __init__(self, policy: Policy, system: System) -> None:
        super().__init__(policy, system)
        self.options = policy.selinux
        self.kernel = SelinuxFs(system)

    def check(self, directory: str, pid: int | None, access: Access, names: Sequence[str]) -> Label:
        process = self.process(pid)
        wanted = self.label_for(process)
        value = wanted or self.kernel.default(directory)
        if process is not None and value is not None and access == "save":
            self._require(process, value, (ACTION[access],), f"images in {directory}", wanted)
        return Label(self.name, value, process)

    def intended(self, target: Target) -> Label:
        return self._intended(target)[0]

    def apply(self, target: Target) -> Label:
        label, wanted = self._intended(target)
        process, before = label.process, label.previous
        if label.value is not None and label.value != before:
            self._set(target, label.value, process, before)
        after = self.system.get_attribute(target.fd, ATTRIBUTE)
        label = dataclasses.replace(label, value=after)
        try:
            if process is not None and after is not None:
                self._require(process, after, _needed(target), target.path, wanted)
        except errors.NotPermitted:
            with contextlib.suppress(OSError):
                self.undo(target, label)
            raise
        return label

    def holds(self, target: Target, label: Label) -> bool:
        current = self.system.get_attribute(target.fd, ATTRIBUTE)
        return current == label.value or (
            label.value is not None and self._same(current, label.value)
        )

    def undo(self, target: Target, label: Label) -> None:
        """Write the remembered label back: the kernel lets no one remove one."""
        if label.previous is not None and label.previous != label.value:
            self._write(target.fd, label.previous)

    def rest(self, target: Target, label: Label) -> None:
        choice = str(label.detail.get("at_rest", self.options.at_rest))
        if target.access == "restore" or choice == "previous":
            return self.undo(target, label)
        if choice == "keep":
            return None
        value = self._default(target, label) if choice == "default" else self._canonical(choice)
        return None if value is None else self._write(target.fd, value)

    def _default(self, target: Target, label: Label) -> str | None:
        """Return what a new file of that directory gets; else the label from before.

        Raises LabelUnavailable where that one is the guest's own: the file was born with it.
        """
        path = name_of(target.fd, target.path)
        value = self.kernel.default(os.path.dirname(path))
        if value is None and label.value and label.previous in (None, label.value):
            raise errors.LabelUnavailable(
                f"the loaded policy does not define how files in {os.path.dirname(path)} are "
                f"labelled; it keeps {label.value}",
                hint=f"run: restorecon {path}",
            )
        return value or label.previous

    def refuses(self, target: Target) -> bool:
        process = self.process(target.pid)
        current = self.system.get_attribute(target.fd, ATTRIBUTE)
        if process is None or current is None or not self.kernel.enforcing():
            return False
        return self.kernel.allows(process, current, "file", ACTION[target.access]) is False

    def explain(self, target: Target) -> str:
        process = (
            self.system.read_or_none(f"/proc/{target.pid}/attr/current") if target.pid else None
        )
        current = self.system.get_attribute(target.fd, ATTRIBUTE)
        action = ACTION[target.access]
        allowed = (
            self.kernel.allows(process, current, "file", action) if process and current else None
        )
        answer = {
            True: "may",
            False: "may not",
            None: "may or may not (the policy cannot be queried)",
        }
        mode = "enforcing" if self.kernel.enforcing() else "permissive"
        said = (
            f"SELinux ({mode}): the file is labelled {current or 'nothing'}, "
            f"{who(target.pid)} runs as {process or 'unknown'}, which "
            f"{answer[allowed]} {action} such a file"
        )
        if process and (refused := self._descriptors_refused(process)):
            why, hint = refused
            said += f", and {why} ({hint})"
        return said

    def creating(self, pid: int | None) -> contextlib.AbstractContextManager[None]:
        wanted = self.label_for(self.process(pid))
        return self.kernel.creating(wanted) if wanted else contextlib.nullcontext()

    def process(self, pid: int | None) -> str | None:
        """Return the context of ``pid``; None without one. Raises LabelUnavailable, Unreachable."""
        if pid is None:
            return None
        context = _read_context(self.system, pid)
        if context is not None and context.count(":") < 2:
            raise errors.LabelUnavailable(
                f"SELinux is on but has no policy: pid {pid} runs as {context!r}",
                hint="load a policy, or boot with selinux=0",
            )
        return context

    def label_for(self, process: str | None) -> str | None:
        """Return the label for an image of QEMU in the context ``process``, in canonical form.

        None without either that or a label of the policy. Raises PolicyViolation.
        """
        if self.options.label is not None:
            return self._canonical(self.options.label)
        if process is None:
            return None
        base = self._image_context()
        if base is None:
            return None
        level = process.split(":", 3)[3:]  # the range; its low part holds the categories
        return self._canonical(":".join([*base, *(part.split("-")[0] for part in level)]))

    def _intended(self, target: Target) -> tuple[Label, str | None]:
        process = self.context(target)
        before = self.system.get_attribute(target.fd, ATTRIBUTE)
        wanted = self._wanted_now(target, process, before)
        value = before if wanted is None or self._same(before, wanted) else wanted
        detail = {"at_rest": self.options.at_rest} if target.access == "save" else {}
        return Label(self.name, value, process, before, detail), wanted

    def _wanted_now(self, target: Target, process: str | None, before: str | None) -> str | None:
        """Return the label to set; None to leave it, where it will do for a restore."""
        reading = target.access == "restore" and self.options.label is None
        if reading and process and before and self._readable(target, process, before):
            return None
        return self.label_for(process)

    def _readable(self, target: Target, process: str, label: str) -> bool:
        """Return whether QEMU may read such a file, and open and map it where it is to do that."""
        return all(self.kernel.allows(process, label, "file", each) for each in _needed(target))

    def shared_label(self) -> str | None:
        """Return the label of files that all guests may read, and none may write; None: unknown."""
        _, lines = self._image_contexts()
        return self.kernel.canonical(lines[1].strip()) if len(lines) > 1 else None

    def _image_contexts(self) -> tuple[str, list[str]]:
        file = f"/etc/selinux/{self.kind()}/contexts/virtual_image_context"
        return file, (self.system.read_or_none(file) or "").splitlines()

    def kind(self) -> str:
        """Return the name of the policy that the host is to load."""
        config = (self.system.read_or_none("/etc/selinux/config") or "").splitlines()
        types = [line.split("=", 1)[1] for line in config if line.startswith("SELINUXTYPE=")]
        return types[-1].strip() if types else "targeted"

    def _image_context(self) -> list[str] | None:
        """Return user, role and type of guest images; None if ``auto`` finds no such thing."""
        file, lines = self._image_contexts()
        base = lines[0].strip().split(":")[:3] if lines else []
        if len(base) == 3:
            return [*base[:2], self.options.image_type or base[2]]
        if self.options.image_type:
            return ["system_u", "object_r", self.options.image_type]
        if self.policy.module == "auto":
            return None
        raise errors.PolicyViolation(
            f"policy {self.policy.name}: {file} does not define the label of guest images",
            hint="set selinux.image_type in the policy, for example svirt_image_t",
            file=file,
        )

    def _canonical(self, label: str) -> str:
        known = self.kernel.canonical(label)
        if known is None:
            raise errors.PolicyViolation(
                f"policy {self.policy.name} requires the label {label}, which the loaded "
                "SELinux policy does not know",
                hint="check the type and the categories; set selinux.image_type or selinux.label",
                wanted=label,
            )
        return known

    def _same(self, found: str | None, wanted: str) -> bool:
        return found == wanted or (found is not None and self.kernel.canonical(found) == wanted)

    def _set(self, target: Target, wanted: str, process: str | None, before: str | None) -> None:
        try:
            self._write(target.fd, wanted)
        except OSError as error:
            action = ACTION[target.access]
            if process and before and self.kernel.allows(process, before, "file", action):
                log.warning("%s keeps the label %s: %s", target.path, before, error.strerror)
                return
            raise errors.LabelRefused(
                f"SELinux does not let mapsave label {target.path}: it is "
                f"{before or 'unlabelled'}, policy {self.policy.name} requires {wanted}: "
                f"{error.strerror}",
                hint="let mapsave's domain relabel files of that type (relabelfrom, relabelto), or "
                "keep images in a directory of type virt_image_t",
                file=target.path,
                label=before,
                process=process,
                wanted=wanted,
            ) from None

    def _write(self, fd: int, value: str) -> None:
        try:
            self.system.set_attribute(fd, ATTRIBUTE, os.fsencode(value) + b"\0")
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            # A mount with context=, NFS: the mount's label counts, and _require asks about it.

    def _descriptors_refused(self, process: str) -> tuple[str, str] | None:
        """Return that QEMU may not use mapsave's descriptors, and what to do; None: not so."""
        own = self.kernel.own()
        if not own or own == process or self.kernel.allows(process, own, "fd", "use") is not False:
            return None
        rule = f"allow {process.split(':')[2]} {own.split(':')[2]}:fd use;"
        return (
            f"may not use descriptors opened by mapsave, which runs as {own}",
            f"add the rule: {rule}",
        )

    def _require(
        self, process: str, found: str, needed: Sequence[str], path: str, wanted: str | None
    ) -> None:
        allows = self.kernel.allows
        missing = [each for each in needed if allows(process, found, "file", each) is False]
        kind, permission, why, hint = "file", needed[0], "", ""
        if missing:
            permission = missing[0]
            why = f"may not {permission} a file labelled {found}"
            hint = (
                "QEMU's type needs another image type: set selinux.image_type, or "
                "selinux.label, to the label of a disk of that guest (ls -Z)"
            )
            if permission != needed[0]:
                types = " ".join(each.split(":")[2] for each in (process, found))
                hint = f"add the rule: allow {types}:file {{ {' '.join(missing)} }};"
        elif (refused := self._descriptors_refused(process)) is not None:
            kind, permission = "fd", "use"
            why, hint = refused
        if not why:
            return
        message = f"SELinux would refuse {path} to QEMU: its context {process} {why}"
        message += f" (policy {self.policy.name} requires {wanted or 'no other label'})"
        if not self.kernel.enforcing():
            log.warning("%s; SELinux is permissive, continuing", message)
            return
        asked = {"class": kind, "permission": permission}
        raise errors.LabelRefused(
            message, hint=hint, file=path, label=found, process=process, wanted=wanted, **asked
        )


def _needed(target: Target) -> tuple[str, ...]:
    """Return the permissions of a file that QEMU needs for an image, or as its RAM."""
    if target.expected is None:
        return (ACTION[target.access],)
    reads = ("read", "open", "map")
    return reads if target.access == "restore" else (*reads, "write")


def _read_context(system: System, pid: int) -> str | None:
    try:
        return system.read(f"/proc/{pid}/attr/current")
    except (FileNotFoundError, ProcessLookupError):
        raise gone(pid) from None
    except PermissionError as error:
        raise errors.NotPermitted(
            f"cannot read the security context of pid {pid}: {error.strerror}", pid=pid
        ) from None
