"""Clones of a guest: their names, and how each is started, by ``clone:`` in its configuration.

A clone has no entry of its own: its name says whose clone it is and what ``{n}`` is, so that every
command finds it, whichever process has started it. Texts are rendered here, not by ``str.format``:
that would give a file access to attributes, and JSON in a command line has braces of its own.
"""

import re
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from mapsave import key_types
from mapsave.key_types import Argument, Place, Text
from mapsave.keys import Check, Keys, help

_N = "{n}"
_FIELDS = ("name", "n")
# ``${x}`` is the shell's, ``{"x"`` is JSON's.
_FIELD = re.compile(r"(?<!\$)\{([A-Za-z_][A-Za-z0-9_]*)(?::([^{}]*))?\}")
_FORMAT = re.compile(r"0?[1-9]?[0-9]?[dxX]")
# It goes into paths and into QEMU's lists of options: no slash, no comma, no dot at its beginning.
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
# One way to write each: two names with one number would have one disk and one MAC address.
_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")


def _check_text(value: str) -> str:
    for field, form in _FIELD.findall(value):
        if field not in _FIELDS:
            raise ValueError(f"unknown field {{{field}}} (known: {{name}}, {{n}})")
        if form and (field != "n" or not _FORMAT.fullmatch(form)):
            raise ValueError(f"{{{field}:{form}}} is not a format; a number may be {{n:02x}}")
    return value


def _check_names(value: str) -> str:
    if value.count(_N) != 1 or len(_FIELD.findall(value)) != 1:
        raise ValueError("must contain {n} once, and no other field")
    if not value.replace(_N, ""):
        raise ValueError("must contain more than {n}: any name would be that of a clone")
    key_types.check_name(value.replace(_N, "1"))
    return value


def _check_socket(value: Path) -> Path:
    if not _FIELD.search(_check_text(str(value))):
        raise ValueError("must contain {name} or {n}: each clone has a monitor of its own")
    return value


class CloneTemplate(Keys, frozen=True):
    """How clones of a guest are started; `{name}` is a clone's name, `{n}` its number.

    The number may be written in another way, such as ``{n:02x}``.
    """

    name: Annotated[
        Annotated[Text, Check(_check_names)] | None,
        help("Their names, with `{n}` (default: the guest's name, `-` and `{n}`)."),
    ] = None
    qmp: Annotated[
        Annotated[Place, Check(_check_socket)] | None,
        help("Path of each one's QMP socket, with `{name}` or `{n}`."),
    ] = None
    launch: Annotated[
        tuple[Annotated[Argument, Check(_check_text)], ...],
        Meta(min_length=1),
        help("Command and arguments that start one, with `{name}` and `{n}`."),
    ] = ()

    def names(self, guest: str) -> str:
        """Return how clones of ``guest`` are named, with ``{n}``."""
        return self.name or f"{guest}-{_N}"

    @property
    def is_numbered(self) -> bool:
        """Whether ``{n}`` must be a number: its format says so."""
        texts = (str(self.qmp), *self.launch)
        return any(form for text in texts for _, form in _FIELD.findall(text))

    def part(self, guest: str, name: str) -> str | None:
        """Return what ``{n}`` is in the ``name`` of a clone of ``guest``; None where it is none."""
        before, _, after = self.names(guest).rpartition(_N)
        found = name[len(before) : len(name) - len(after)]
        allowed = _NUMBER if self.is_numbered else _PART
        is_one = allowed.fullmatch(found) is not None and name == f"{before}{found}{after}"
        return found if is_one else None

    def made(self, name: str, part: str) -> dict[str, Any]:
        """Return the keys of the guest ``name``, a clone of which ``part`` is ``{n}``."""
        launch = tuple(_rendered(word, name, part) for word in self.launch)
        if self.qmp is None:
            return {"launch": launch}
        return {"qmp": Path(_rendered(str(self.qmp), name, part)), "launch": launch}

    def check(self, kind: str) -> None:
        """Raise ValueError where these keys do not suit a guest that is reached by ``kind``."""
        given = [key for key in ("qmp", "launch") if getattr(self, key)]
        if kind == "libvirt":
            raise ValueError("clone applies to qmp and emulator guests, not to libvirt ones")
        if kind == "qmp" and len(given) != 2:
            raise ValueError("clone needs qmp and launch")
        if kind == "emulator" and given:
            raise ValueError(f"clone takes no {given[0]} for emulator guests")


def _rendered(text: str, name: str, part: str) -> str:
    def field(match: re.Match[str]) -> str:
        if match[1] == "name":
            return name
        return format(int(part), match[2]) if match[2] else part

    return _FIELD.sub(field, text)
