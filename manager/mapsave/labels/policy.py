"""Label policies: which security module labels an image, and how. One YAML file each.

``auto`` and ``none`` are built in as well, so that the common case parses no YAML; a file of that
name in one of the operator's directories still wins.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, structs

from mapsave import errors
from mapsave.key_types import Text
from mapsave.keys import Check, Keys, Parse, help, nearest, written

Module = Literal["auto", "selinux", "apparmor", "smack", "dac", "none"]

SYSTEM_DIRECTORY = Path("/etc/mapsave/policies")
SUFFIX = ".yaml"
_SUFFIXES = (SUFFIX, ".yml")

_LAST_ID = 2**32 - 2  # -1 is "as it is" to chown(2)


def _matching(pattern: str, what: str) -> Callable[[str], str]:
    """Return what refuses a text that ``pattern`` does not match whole: it is not ``what``."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text, re.DOTALL):
            raise ValueError(f"{text!r} is not {what}")
        return text

    return check


_absolute = _matching("/.*", "an absolute path")
_context = _matching(r"[^\s:]+:[^\s:]+:[^\s:]+(:\S+)?", "a context: write user:role:type:level")
_selinux_type = _matching(r"[A-Za-z_][A-Za-z0-9_.]*", "a type, as in svirt_image_t")
# Documentation/admin-guide/LSM/Smack.rst of the kernel: what a label may be.
_smack = _matching(r"""(?!-)(?:(?![/"\\'])[!-~]){1,255}""", "a Smack label")


def _mode(text: object) -> int:
    if not isinstance(text, str):
        raise ValueError("must be text: put it in quotes")
    if not re.fullmatch(r"0?[0-7]{3}", text):
        raise ValueError(f'{text!r} is not a mode: write three octal digits, as in "0600"')
    return int(text, 8)


def _owner(text: str) -> str:
    is_number = text.isascii() and text.isdigit()
    if is_number and (len(text) > len(str(_LAST_ID)) or int(text) > _LAST_ID):
        raise ValueError(f"{text!r} is not the number of a user or group: at most {_LAST_ID}")
    return text


def _selinux_rest(text: str) -> str:
    return text if text in ("default", "previous", "keep") else _context(text)


def _template(text: str) -> str:
    left = text.replace("{profile}", "")
    if "{" in left or "}" in left:
        raise ValueError(f"{text!r}: {{profile}} is the only placeholder")
    return text


Absolute = Annotated[Text, Check(_absolute), Meta(title="a path")]
Owner = Annotated[Text, Check(_owner), written("a name or a number, as text")]
Template = Annotated[Absolute, Check(_template)]


class SelinuxOptions(Keys, frozen=True):
    """Labels of SELinux."""

    image_type: Annotated[
        str | None,
        Check(_selinux_type),
        help("Type of the image, in place of the one in `virtual_image_context`."),
    ] = None
    label: Annotated[
        str | None, Check(_context), help("A whole context, in place of the computed one.")
    ] = None
    at_rest: Annotated[
        str,
        Check(_selinux_rest),
        help(
            "Label after the save: `default` (what a new file of that directory gets), "
            "`previous`, `keep` or a whole context."
        ),
    ] = "default"


class ProfileFiles(Keys, frozen=True):
    """Files for the rules of AppArmor profiles.

    ``{profile}`` in both paths is the profile's name, without a leading slash and with ``.`` for
    every other one, as AppArmor names its own files.
    """

    match: Annotated[str, help("Pattern of the profiles' names, such as `libvirt-*`.")]
    rules_file: Annotated[
        Template, help("File that the profile includes and that rules are added to.")
    ]
    profile_file: Annotated[Template, help("File of the profile, which is loaded again.")]


class ApparmorOptions(Keys, frozen=True):
    """Rules of AppArmor."""

    profiles: Annotated[
        tuple[ProfileFiles, ...],
        help("Where rules go; the first that matches counts. Empty: mapsave adds no rules."),
    ] = (
        ProfileFiles(
            "libvirt-*",
            "/etc/apparmor.d/libvirt/{profile}.files",
            "/etc/apparmor.d/libvirt/{profile}",
        ),
        ProfileFiles("*", "/etc/apparmor.d/local/mapsave-{profile}", "/etc/apparmor.d/{profile}"),
    )


class SmackOptions(Keys, frozen=True):
    """Labels of Smack."""

    label: Annotated[str | None, Check(_smack), help("Label, in place of QEMU's own.")] = None
    at_rest: Annotated[
        str, Check(_smack), help("Label after the save: `previous`, `keep` or a label.")
    ] = "previous"


class Policy(Keys, frozen=True):
    """A label policy: what to do to an image. Its name is the file's, without the suffix."""

    module: Annotated[
        Module,
        help(
            "The security module that labels the image; `auto` is the one that is active, `dac` "
            "none: only owner and mode count."
        ),
    ]
    directories: Annotated[
        tuple[Absolute, ...],
        help("Where images may go: these and what is below, links followed; by default anywhere."),
    ] = ()
    owner: Annotated[Owner | None, help("User that owns the image; changing it takes root.")] = None
    group: Annotated[Owner | None, help("Group that owns the image.")] = None
    mode: Annotated[
        int | None,
        Parse(_mode),
        written(
            'three octal digits in quotes, as in "0640"',
            {"type": "string", "pattern": "^0?[0-7]{3}$"},
        ),
        help("Permission bits."),
    ] = None
    selinux: Annotated[SelinuxOptions, help("Labels of SELinux.")] = SelinuxOptions()
    apparmor: Annotated[ApparmorOptions, help("Rules of AppArmor.")] = ApparmorOptions()
    smack: Annotated[SmackOptions, help("Labels of Smack.")] = SmackOptions()
    description: Annotated[str | None, help("A line for readers of the file.")] = None
    name: str = ""


BUILT_IN = {"auto": Policy("auto", name="auto"), "none": Policy("none", name="none")}


def load(name_or_path: str, search: Sequence[Path] = ()) -> Policy:
    """Return the policy of that name, or the one in the YAML file at that path.

    Names are looked up in ``search``, /etc/mapsave/policies, and what comes with mapsave.

    Raises UnknownPolicy if there is none of that name; ConfigMissing, ConfigError for a bad file;
    NotPermitted.
    """
    if is_path(name_or_path):
        return _read(Path(name_or_path))
    shipped_here = shipped_directory()
    for directory in (*search, SYSTEM_DIRECTORY):
        file = directory / (name_or_path + SUFFIX)
        try:
            is_there = file.is_file()
        except PermissionError as error:
            raise errors.denied(f"cannot look for {str(file)!r}: {error.strerror}", file) from None
        if is_there:
            return _read(file)
    if name_or_path in BUILT_IN:
        return BUILT_IN[name_or_path]
    if name_or_path in shipped():
        return _read(shipped_here / (name_or_path + SUFFIX))
    raise _unknown(name_or_path, search)


def known(search: Sequence[Path] = ()) -> list[str]:
    """Return the names that ``load`` knows."""
    own = [file.stem for place in (*search, SYSTEM_DIRECTORY) for file in place.glob("*" + SUFFIX)]
    return sorted({*shipped(), *own})


def is_path(name_or_path: str) -> bool:
    """Tell the path of a policy from a name: it holds a slash, or ends in ``.yaml`` or ``.yml``."""
    return "/" in name_or_path or name_or_path.endswith(_SUFFIXES)


def shipped() -> list[str]:
    """Return the names of the policies that come with mapsave."""
    directory = shipped_directory()
    return sorted({*BUILT_IN, *(file.stem for file in directory.glob("*" + SUFFIX))})


def shipped_directory() -> Path:
    """Return the directory of what comes with mapsave: policies, SELinux and AppArmor files."""
    from importlib import resources  # slow to import, and rarely needed

    return Path(str(resources.files("mapsave"))) / "policies"


def _read(file: Path) -> Policy:
    from mapsave import yaml_file

    document = yaml_file.read(file)
    found = document.validate(Policy)
    for section in ("selinux", "apparmor", "smack"):
        if section in document.data and found.module not in (section, "auto"):
            message = f"the section {section!r} does not apply to module: {found.module}"
            raise document.error((section,), message)
    return structs.replace(found, name=file.stem)


def _unknown(name: str, search: Sequence[Path]) -> errors.UnknownPolicy:
    names = known(search)
    return errors.UnknownPolicy(
        f"there is no label policy {name!r}{nearest(name, names)}",
        hint=f"known policies: {', '.join(names)}; put your own in {SYSTEM_DIRECTORY}",
        policy=name,
        known=names,
    )
