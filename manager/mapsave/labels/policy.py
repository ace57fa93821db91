"""Label policies: which security module labels an image, and how. One YAML file each.

``auto`` and ``none`` are built in as well, so that the common case parses no YAML; a file of that
name in one of the operator's directories still wins.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mapsave import errors

if TYPE_CHECKING:
    from collections.abc import Sequence

Module = Literal["auto", "selinux", "apparmor", "smack", "dac", "none"]

SYSTEM_DIRECTORY = Path("/etc/mapsave/policies")
SUFFIX = ".yaml"
_SUFFIXES = (SUFFIX, ".yml")


@dataclass(frozen=True)
class SelinuxOptions:
    """``image_type``: instead of the one in virtual_image_context. ``label``: a whole context.

    ``at_rest``: ``default`` (what a new file of that directory gets), ``previous``, ``keep`` or a
    whole context.
    """

    image_type: str | None = None
    label: str | None = None
    at_rest: str = "default"


@dataclass(frozen=True)
class ProfileFiles:
    """Where rules of AppArmor profiles whose name fits ``match`` (a glob) go.

    ``{profile}`` in both paths is the profile's name, without a leading slash and with ``.`` for
    every other one, as AppArmor names its own files.
    """

    match: str
    rules_file: str
    profile_file: str


@dataclass(frozen=True)
class ApparmorOptions:
    """``profiles``: the first that fits counts. Empty: rules are the administrator's affair."""

    profiles: tuple[ProfileFiles, ...] = (
        ProfileFiles(
            "libvirt-*",
            "/etc/apparmor.d/libvirt/{profile}.files",
            "/etc/apparmor.d/libvirt/{profile}",
        ),
        ProfileFiles("*", "/etc/apparmor.d/local/mapsave-{profile}", "/etc/apparmor.d/{profile}"),
    )


@dataclass(frozen=True)
class SmackOptions:
    """``label``: instead of QEMU's own. ``at_rest``: ``previous``, ``keep`` or a label."""

    label: str | None = None
    at_rest: str = "previous"


@dataclass(frozen=True)
class Policy:
    """What is to be done to an image. ``directories`` empty: any. ``mode``: permission bits."""

    name: str
    module: Module
    directories: tuple[str, ...] = ()
    owner: str | None = None
    group: str | None = None
    mode: int | None = None
    selinux: SelinuxOptions = field(default_factory=SelinuxOptions)
    apparmor: ApparmorOptions = field(default_factory=ApparmorOptions)
    smack: SmackOptions = field(default_factory=SmackOptions)


BUILT_IN = {name: Policy(name, name) for name in ("auto", "none")}


def load(name_or_path: str, search: Sequence[Path] = ()) -> Policy:
    """Return the policy of that name, or the one in the YAML file at that path.

    A name is looked up in ``search``, /etc/mapsave/policies, and what comes with mapsave.

    Raises UnknownPolicy if there is none of that name; ConfigMissing, ConfigError for a bad file.
    """
    if is_path(name_or_path):
        return _read(Path(name_or_path))
    shipped_here = shipped_directory()
    for directory in (*search, SYSTEM_DIRECTORY):
        file = directory / (name_or_path + SUFFIX)
        if file.is_file():
            return _read(file)
    if name_or_path in BUILT_IN:
        return BUILT_IN[name_or_path]
    if name_or_path in shipped():
        return _read(shipped_here / (name_or_path + SUFFIX))
    raise _unknown(name_or_path, search)


def is_path(name_or_path: str) -> bool:
    """Tell the path of a policy from a name: it holds a slash, or ends in ``.yaml`` or ``.yml``."""
    return "/" in name_or_path or name_or_path.endswith(_SUFFIXES)


def shipped() -> list[str]:
    """Return the names of the policies that come with mapsave."""
    directory = shipped_directory()
    return sorted({*BUILT_IN, *(file.stem for file in directory.glob("*" + SUFFIX))})


def shipped_directory() -> Path:
    """Return the directory of what comes with mapsave: policies, SELinux and AppArmor files."""
    return Path(str(resources.files("mapsave"))) / "policies"


def _read(file: Path) -> Policy:
    from mapsave.labels import policy_file

    return policy_file.read(file)


def _unknown(name: str, search: Sequence[Path]) -> errors.UnknownPolicy:
    import difflib

    own = [file.stem for place in (*search, SYSTEM_DIRECTORY) for file in place.glob("*" + SUFFIX)]
    known = sorted({*shipped(), *own})
    close = difflib.get_close_matches(name, known, n=1)
    guess = f": did you mean {close[0]!r}?" if close else ""
    return errors.UnknownPolicy(
        f"there is no label policy {name!r}{guess}",
        hint=f"known policies: {', '.join(known)}; put your own in {SYSTEM_DIRECTORY}",
        policy=name,
        known=known,
    )
