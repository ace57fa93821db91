"""AppArmor: nothing is written on the image; QEMU's profile gets a rule for its path.

Reading and writing a passed descriptor may be delegated, but QEMU truncates the file at the start
of every save, and that is checked against the profile by path (QEMU's migration/file.c). So a save
always needs a rule; a restore needs one if mapsave itself is confined.

Where mapsave and QEMU are in different mount namespaces, the kernel goes by the path of the file in
that of mapsave, but refuses it to a profile without the flag attach_disconnected.

Sources: the kernel's security/apparmor/apparmorfs.c (``.access``) and path.c (``d_namespace_path``,
``disconnect``), apparmor_parser(8).
"""

from __future__ import annotations

import fnmatch
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mapsave import errors
from mapsave.labels import apparmor_rules
from mapsave.labels.interface import SecurityModule
from mapsave.labels.label import ACTION, Access, Label, Target, name_of, who
from mapsave.labels.policy import Policy
from mapsave.labels.system import CAP_MAC_ADMIN, System

log = logging.getLogger(__name__)

FS = "/sys/kernel/security/apparmor"

PERMISSIONS: dict[Access, str] = {"save": "rw", "restore": "r"}

_CLASS_FILE = b"\x02"
_BITS: dict[Access, int] = {"save": 0x2, "restore": 0x4}  # AA_MAY_WRITE, AA_MAY_READ


@dataclass(frozen=True)
class Confinement:
    """What ``attr/current`` says: ``unconfined`` or ``NAME (MODE)``."""

    profile: str
    mode: str

    @classmethod
    def parse(cls, context: str) -> Confinement:
        """Return what ``context``, the text of ``attr/current``, means."""
        name, bracket, mode = context.rpartition(" (")
        if not bracket:
            return cls(context, "unconfined" if context == "unconfined" else "enforce")
        return cls(name, mode.rstrip(")"))

    @property
    def binding(self) -> bool:
        """Whether refusals are real: neither unconfined nor in complain mode."""
        return self.mode not in ("unconfined", "complain")

    @property
    def plain(self) -> bool:
        """Whether it is one profile of this namespace, not a stack or one of another."""
        return "//&" not in self.profile and not self.profile.startswith(":")


@dataclass(frozen=True)
class Place:
    """Where the rules of one profile go, and the file to load afterwards."""

    rules_file: Path
    profile_file: Path


class Apparmor(SecurityModule):
    """QEMU's profile gets a rule for the path of the image."""

    name = "apparmor"

    def __init__(self, policy: Policy, system: System) -> None:
        super().__init__(policy, system)
        self.options = policy.apparmor

    def check(self, directory: str, pid: int | None, access: Access, names: Sequence[str]) -> Label:
        """Return the label without a value. Raises LabelRefused if no rule could be added."""
        context = self.process(pid)
        profile = self._to_convince(context, access)
        if profile is not None:
            self._require_connected(profile, pid, f"images in {directory}")
            real = os.path.realpath(directory)
            paths = [os.path.join(real, name) for name in names]
            answers = [self.allows(profile.profile, path, access) for path in paths] or [None]
            if not all(answers):
                # The next image has another name: a rule that covers them all.
                rule = f'{apparmor_rules.quote(real + "/")[:-1]}*" {PERMISSIONS[access]},'
                allowed = False if False in answers else None
                self._place(profile, f"images in {directory}", [rule], allowed)
        return Label(self.name, None, context)

    def intended(self, target: Target) -> Label:
        """Return the label with the rules that are missing, and where they go. Raises LabelRefused.

        For the journal: who dies while the rules are being added leaves them to be taken out.
        """
        context = self.context(target)
        opens = target.expected is not None
        profile = self._to_convince(context, target.access, opens=opens)
        if profile is None:
            return Label(self.name, None, context)
        self._require_connected(profile, target.pid, target.path)
        answers = {
            path: self.allows(profile.profile, path, target.access) for path in _paths(target)
        }
        rules = [
            apparmor_rules.rule(path, PERMISSIONS[target.access])
            for path, allowed in answers.items()
            if not allowed
        ]
        place = None
        if rules:
            allowed = False if False in answers.values() else None
            place = self._place(profile, target.path, rules, allowed)
        detail = _detail(profile, place, rules) if place is not None else {"rules": []}
        return Label(self.name, None, context, detail=detail)

    def apply(self, target: Target) -> Label:
        """Add the rules that are missing and load the profile. Raises LabelRefused."""
        label = self.intended(target)
        rules = label.detail.get("rules") or []
        if not rules:
            return label
        profile = Confinement.parse(str(label.process))
        try:
            self._add(_place_in(label), rules, profile, target)
            self._verify(profile, target, rules)
        except BaseException:
            self._take_out_quietly(label)
            raise
        return label

    def holds(self, target: Target, label: Label) -> bool:
        """Return True: the lines are taken out where they are, and are no label of the image."""
        return True

    def undo(self, target: Target, label: Label) -> None:
        """Take exactly the added lines out again and load the profile, if it still is loaded.

        Loaded even where the lines are gone: who took them out may have died before that.
        """
        rules = label.detail.get("rules") or []
        if not rules:
            return
        place = _place_in(label)
        if not place.profile_file.exists():  # the guest is gone, and its profile with it
            apparmor_rules.remove(place.rules_file, rules)
            return
        with apparmor_rules.locked(place.rules_file):
            apparmor_rules.remove(place.rules_file, rules)
            if self._loaded(label.detail["profile"]):
                complaint = self._load(place)
                if complaint is not None:
                    raise errors.NotPermitted(
                        f"the rules of {target.path} are out of {place.rules_file}, but loading "
                        f"{place.profile_file} failed: {complaint}",
                        hint=f"run: apparmor_parser -r {place.profile_file}",
                    )

    def rest(self, target: Target, label: Label) -> None:
        self.undo(target, label)

    def refuses(self, target: Target) -> bool:
        profile = self._to_convince(self.process(target.pid), target.access)
        if profile is None:
            return False
        path = name_of(target.fd, target.path)
        return self.allows(profile.profile, path, target.access) is False

    def explain(self, target: Target) -> str:
        current = self.read_context(target.pid) if target.pid is not None else None
        path = name_of(target.fd, target.path)
        action = ACTION[target.access]
        said = f"AppArmor: {who(target.pid)} runs as {current or 'unknown'}"
        if current is None or not Confinement.parse(current).binding:
            return f"{said}, which does not prevent it from opening {path}"
        answer = {True: "has a rule to", False: "has no rule to", None: "may lack the rule to"}
        allowed = self.allows(Confinement.parse(current).profile, path, target.access)
        wanted = apparmor_rules.rule(path, PERMISSIONS[target.access])[:-1]
        said += f", which {answer[allowed]} {action} the file: {wanted}"
        if allowed is not False and self._apart(target.pid):
            said += (
                ", but it is in another mount namespace than mapsave: its profile needs "
                "flags=(attach_disconnected) as well, and no further rule"
            )
        return said

    def _apart(self, pid: int | None) -> bool:
        try:
            spaces = {os.readlink(self.system.locate(f"/proc/{p}/ns/mnt")) for p in ("self", pid)}
        except OSError:
            return False
        return len(spaces) > 1

    def _require_connected(self, profile: Confinement, pid: int | None, path: str) -> None:
        """Raise LabelRefused if the profile is known to lack the flag that other mounts take."""
        if not self._apart(pid):
            return
        place, _ = self._find_place(profile)
        if place is None:
            return
        try:
            text = os.fsdecode(place.profile_file.read_bytes())
        except OSError:
            return
        if apparmor_rules.attaches(text, profile.profile) is not False:
            return
        flags = "flags=(attach_disconnected)"
        raise errors.LabelRefused(
            f"AppArmor would refuse {path} to QEMU: it is in another mount namespace than mapsave, "
            f"and its profile {profile.profile} ({profile.mode}) lacks {flags}",
            hint=f"add {flags} to the profile in {place.profile_file}, and run: apparmor_parser -r "
            f"{place.profile_file}",
            file=path,
            label=None,
            process=f"{profile.profile} ({profile.mode})",
            wanted=[flags],
        )

    def allows(self, profile: str, path: str, access: Access) -> bool | None:
        """Return whether the loaded profile has the permission for ``path``; None: no answer."""
        wanted = _BITS[access]
        subject = b"label\0" + os.fsencode(profile) + b"\0"
        try:
            answer = self.system.ask(
                f"{FS}/.access", subject + _CLASS_FILE + os.fsencode(path)
            ).split()
            masks = {
                key: int(mask, 16) for key, mask in zip(answer[::2], answer[1::2], strict=True)
            }
            return masks["allow"] & ~masks["deny"] & wanted == wanted
        except (OSError, ValueError, KeyError) as error:
            log.debug("cannot query AppArmor about %s and %s: %s", profile, path, error)
            return None

    def _to_convince(
        self, context: str | None, access: Access, *, opens: bool = False
    ) -> Confinement | None:
        """Return the profile that needs a rule, None if none does. ``opens``: the file itself."""
        if context is None or not Confinement.parse(context).binding:
            return None
        if access == "restore" and not opens:
            own = self.read_context("self")
            if own is None or Confinement.parse(own).mode == "unconfined":
                return None  # descriptors of an unconfined opener may be read
        return Confinement.parse(context)

    def _place(
        self, profile: Confinement, path: str, rules: Sequence[str], allowed: bool | None
    ) -> Place | None:
        """Return where to add ``rules``; None if the policy leaves them to the administrator.

        Raises LabelRefused if they are known to be missing and cannot be added.
        """
        if not self.options.profiles:
            if allowed is None:
                return None
            raise self._refusal(profile, path, rules, "the policy does not let mapsave add rules")
        place, why = self._find_place(profile)
        if why is None:
            return place
        raise self._refusal(profile, path, rules, f"mapsave cannot add it: {why}")

    def _find_place(self, profile: Confinement) -> tuple[Place | None, str | None]:
        """Return the place, and why nothing can be put there if that is so."""
        files = [f for f in self.options.profiles if fnmatch.fnmatchcase(profile.profile, f.match)]
        if not profile.plain or not files:
            return None, "the policy names no rules file for a profile of that name"
        # A name may be a path: /usr/bin/qemu is in the file usr.bin.qemu.
        name = profile.profile.strip("/").replace("/", ".")
        place = Place(
            self.system.locate(files[0].rules_file.replace("{profile}", name)),
            self.system.locate(files[0].profile_file.replace("{profile}", name)),
        )
        return place, self._obstacle(place)

    def _obstacle(self, place: Place) -> str | None:
        try:
            text = os.fsdecode(place.profile_file.read_bytes())
        except OSError as error:
            return f"{place.profile_file}: {error.strerror}"
        if not apparmor_rules.includes(text, place.rules_file):
            where = f"{place.rules_file.parent.name}/{place.rules_file.name}"
            return f"{place.profile_file} lacks the line: include if exists <{where}>"
        if not os.access(place.rules_file.parent, os.W_OK):
            return f"{place.rules_file.parent} is not writable"
        if not self.system.capable(CAP_MAC_ADMIN):
            return "mapsave lacks CAP_MAC_ADMIN, which loading a profile requires"
        return None if apparmor_rules.parser() else "apparmor_parser is not installed"

    def _refusal(
        self, profile: Confinement, path: str, rules: Sequence[str], why: str
    ) -> errors.LabelRefused:
        return errors.LabelRefused(
            f"AppArmor would refuse {path} to QEMU: its profile {profile.profile} "
            f"({profile.mode}) has no rule for it (policy {self.policy.name} requires "
            f"{' '.join(rules)}), and {why}",
            hint=f"add to the profile {profile.profile}: {' '.join(rules)}",
            file=path,
            label=None,
            process=f"{profile.profile} ({profile.mode})",
            wanted=list(rules),
        )

    def _add(
        self, place: Place, rules: Sequence[str], profile: Confinement, target: Target
    ) -> None:
        try:
            with apparmor_rules.locked(place.rules_file):
                apparmor_rules.add(place.rules_file, rules)
                complaint = self._load(place)
        except OSError as error:
            complaint = str(error)
        if complaint is not None:
            why = f"loading {place.profile_file} failed: {complaint}"
            raise self._refusal(profile, target.path, rules, why)

    def _verify(self, profile: Confinement, target: Target, rules: Sequence[str]) -> None:
        path = name_of(target.fd, target.path)
        if self.allows(profile.profile, path, target.access) is False:
            why = "the profile still refuses it with the rule added: look for a deny rule"
            raise self._refusal(profile, target.path, rules, f"it {why}")

    def _take_out_quietly(self, done: Label) -> None:
        """Take the lines out while another error is on its way; a failure is logged only."""
        target = Target(-1, str(done.detail["rules_file"]), (), None, "save")
        try:
            self.undo(target, done)
        except (OSError, errors.MapsaveError) as error:
            log.error("%s", error)

    def _loaded(self, profile: str) -> bool:
        try:
            listed = self.system.read_or_none(f"{FS}/profiles")
        except OSError:
            return True
        return listed is None or any(
            line.rpartition(" (")[0] == profile for line in listed.splitlines()
        )

    def _load(self, place: Place) -> str | None:
        return apparmor_rules.parsed(self.system, "-r", place.profile_file)


def _paths(target: Target) -> list[str]:
    others = (
        os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        for path in target.other_paths
    )
    return list(dict.fromkeys([name_of(target.fd, target.path), *others]))


def _detail(profile: Confinement, place: Place, rules: Sequence[str]) -> dict[str, object]:
    return {
        "profile": profile.profile,
        "rules": list(rules),
        "rules_file": str(place.rules_file),
        "profile_file": str(place.profile_file),
    }


def _place_in(label: Label) -> Place:
    return Place(Path(label.detail["rules_file"]), Path(label.detail["profile_file"]))
