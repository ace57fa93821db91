"""Types of keys that several formats share, each with what people write for it."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from mapsave import units
from mapsave.keys import Check, Parse, written

NAME_BYTES = 200  # leaves room for ".partial" and the like within the 255 bytes of a file name
ADDRESSES = ("qmp:", "libvirt:", "libvirt+")

# What editors and clients can check beforehand; the checks have the last word.
NAME_PATTERN = (
    r"^(?!\.{1,2}$|qmp:|libvirt[:+])"
    r"[^\u0000-\u0020\u007f/\-]([^\u0000-\u001f\u007f/]*[^\u0000-\u0020\u007f/])?$"
)
_DURATION = (
    r"^([0-9]*[1-9][0-9]*(\.[0-9]+)?|"
    rf"([1-9][0-9]*(\.[0-9]+)? ?({units.DURATION_UNITS}) ?)+)$"
)
_NOTE = 1000  # characters
_TRUTH = {"on": True, "yes": True, "off": False, "no": False}


def check_note(text: str) -> str:
    """Return a note that goes into an image; raise ValueError where it is too long, or no text."""
    text.encode()
    if not text or len(text) > _NOTE or "\0" in text:
        raise ValueError(f"must be text of 1 to {_NOTE} characters")
    return text


def check_name(name: str) -> str:
    """Return ``name`` if a guest, a job or an image may have that name.

    It becomes part of file names and of command lines. Raises ValueError otherwise.
    """
    if not name or name in (".", ".."):
        raise ValueError(f"{name!r} is not a name")
    if "/" in name or not all(char.isprintable() for char in name):
        raise ValueError(f"the name {name!r} contains a slash or an unprintable character")
    if name.startswith("-") or name != name.strip():
        raise ValueError(f"the name {name!r} begins with '-' or has leading or trailing spaces")
    if name.startswith(ADDRESSES):
        raise ValueError(f"the name {name!r} looks like an address ({', '.join(ADDRESSES)})")
    if len(name.encode()) > NAME_BYTES:
        raise ValueError(f"the name {name[:20]!r}... is longer than {NAME_BYTES} bytes")
    return name


def check_text(value: str) -> str:
    """Return ``value``; raise ValueError if it is empty or holds what no argument can hold."""
    if not value or "\0" in value:
        raise ValueError("must not contain a NUL" if value else "must not be empty")
    return value


def _argument(value: object) -> object:
    if isinstance(value, str) and "\0" in value:
        raise ValueError("must not contain a NUL")
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _variable(name: str) -> str:
    if not (name.isascii() and name.isidentifier()):
        raise ValueError(f"{name!r} is not the name of an environment variable")
    return name


def _size(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return value
    if len(str(value)) > 40:
        raise ValueError("not a size (write bytes or a number with K, M, G or T)")
    if (found := units.parse_size(value)) == 0:
        raise ValueError("must not be 0")
    return found


def _time(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return value
    return units.parse_duration(value)


def _positive(seconds: float) -> float:
    if seconds == 0:
        raise ValueError("must be longer than 0")
    return seconds


Text = Annotated[
    str,
    Check(check_text),
    msgspec.Meta(extra_json_schema={"minLength": 1, "pattern": r"^[^\u0000]+$"}),
]
Name = Annotated[
    str,
    Check(check_name),
    msgspec.Meta(
        title="a name", extra_json_schema={"pattern": NAME_PATTERN, "maxLength": NAME_BYTES}
    ),
]
Note = Annotated[Text, Check(check_note), msgspec.Meta(extra_json_schema={"maxLength": _NOTE})]
# A path that the reader's hook takes as relative to the file it is in.
Place = Annotated[
    Path,
    Parse(lambda value: check_text(value) if isinstance(value, str) else value),
    written("a path", {"type": "string", "minLength": 1, "pattern": r"^[^\u0000]+$"}),
]
# A number is taken as the text in the file, so that ``-m, 4096`` needs no quotes.
Argument = Annotated[str, Parse(_argument), written("text", {"type": ["string", "integer"]})]
Variable = Annotated[
    Text,
    Check(_variable),
    msgspec.Meta(title="a name", extra_json_schema={"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"}),
]
Truth = Annotated[
    bool,
    Parse(lambda value: _TRUTH.get(value, value) if isinstance(value, str) else value),
    written("true or false", {"anyOf": [{"type": "boolean"}, {"enum": list(_TRUTH)}]}),
]
Switch = Annotated[
    Literal["auto", "on", "off"],
    Parse(lambda value: ("off", "on")[value] if isinstance(value, bool) else value),
    written(None, {"enum": ["auto", "on", "off", True, False]}),
]
Size = Annotated[int, Parse(_size), written("a size, such as 64M", {"type": ["integer", "string"]})]
# Seconds; 0 is refused.
Duration = Annotated[
    float,
    Parse(_time),
    Check(_positive),
    written(
        "a duration, such as 15m",
        {
            "anyOf": [
                {"type": "string", "pattern": _DURATION},
                {"type": "number", "exclusiveMinimum": 0},
            ]
        },
    ),
]
# QEMU takes 1 to 255 (``multifd-channels`` is a uint8, migrate_params_check refuses 0).
Channels = Literal["auto"] | Annotated[int, msgspec.Meta(ge=1, le=255)]
AtOnce = Annotated[int, msgspec.Meta(ge=1, le=1000)]
