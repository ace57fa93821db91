"""QEMU's command line as data: where its options are, and what they say.

Most values are lists of ``key=value`` in which a comma is written twice (QEMU's ``util/keyval.c``);
objects and devices may be JSON as well. What is changed is written in the form that it had.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence

from mapsave import strict_json

# The key that the first word of a list may leave out.
_IMPLIED = {
    "audio": "driver",
    "audiodev": "driver",
    "blockdev": "driver",
    "chardev": "backend",
    "fsdev": "fsdriver",
    "icount": "shift",
    "net": "type",
    "nic": "type",
    "object": "qom-type",
    "virtfs": "fsdriver",
    "machine": "type",
    "M": "type",
    "device": "driver",
    "numa": "type",
    "netdev": "type",
    "m": "size",
    "overcommit": "",
    "run-with": "",
    "runas": "user",
    "sandbox": "enable",
}

Properties = dict[str, object]


@dataclasses.dataclass(frozen=True)
class Option:
    """An option with a value: its name without dashes, where its value is, and what that says."""

    name: str
    at: int
    properties: Properties
    is_json: bool

    def text(self, key: str) -> str | None:
        """Return a property as key=value has it; None where it is not given."""
        value = self.properties.get(key)
        return None if value is None else _text(value)

    def is_on(self, key: str, *, default: bool = False) -> bool:
        """Return whether a switch is on: ``on``, ``yes``, ``true`` or ``y`` as QEMU takes them."""
        value = self.text(key)
        return default if value is None else value in ("on", "yes", "true", "y")

    def replaced(self, properties: Mapping[str, object]) -> str:
        """Return the value with other properties, in the form that it has."""
        return json.dumps(properties) if self.is_json else written(self.name, properties)


def options(argv: Sequence[str], *names: str) -> Iterator[Option]:
    """Yield the options of these names on a command line, in their order.

    A value that QEMU would refuse is left out: QEMU says what is wrong with it.
    """
    for at, word in enumerate(argv[:-1], 1):
        name = word.removeprefix("-").removeprefix("-")
        if not word.startswith("-") or name not in names:
            continue
        try:
            properties, is_json = _parsed(name, argv[at])
        except ValueError:
            continue
        yield Option(name, at, properties, is_json)


def switches(argv: Sequence[str]) -> frozenset[str]:
    """Return the names of all options that are on a command line, without their dashes."""
    found = (word for word in argv if word.startswith("-"))
    return frozenset(word.removeprefix("-").removeprefix("-") for word in found)


def written(name: str, properties: Mapping[str, object]) -> str:
    """Return properties as the key=value list of the option ``name``."""
    implied = _IMPLIED.get(name)
    words = []
    for number, (key, value) in enumerate(properties.items()):
        text = _text(value).replace(",", ",,")
        words.append(text if number == 0 and key == implied else f"{key}={text}")
    return ",".join(words)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def _parsed(name: str, value: str) -> tuple[Properties, bool]:
    """Return the properties, and whether they are JSON. Raises ValueError."""
    if value.startswith("{"):
        found = strict_json.loads(value.encode())
        if not isinstance(found, dict):
            raise ValueError("not an object")
        return found, True
    return _list(value, _IMPLIED.get(name)), False


def _list(value: str, implied: str | None) -> Properties:
    found: Properties = {}
    for number, word in enumerate(_words(value)):
        key, equals, text = word.partition("=")
        if not equals and number == 0 and implied:
            key, text = implied, word
        elif not equals:
            text = "on"
        found[key] = text
    return found


def _words(value: str) -> Iterator[str]:
    """Split at commas, but for those that are written twice."""
    word, at = "", 0
    while at < len(value):
        if value[at] != ",":
            word, at = word + value[at], at + 1
        elif value[at : at + 2] == ",,":
            word, at = word + ",", at + 2
        else:
            yield word
            word, at = "", at + 1
    yield word
