"""Read the plain data of a YAML file that is right, without loading pydantic for it.

A reader takes a value and returns what it means, or raises ValueError. It need not say what is
wrong: whoever gets a ValueError asks the pydantic model of the same keys, which knows the words
and the lines. So a reader may refuse too much, which costs time, but never accept anything that
the model refuses, or read it differently; tests hold both together.

Loading pydantic and building its models takes longer than all else before QEMU is first asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Reader = Callable[[Any], Any]


def string(value: Any) -> str:
    """Return ``value``; raise ValueError if it is no string."""
    if not isinstance(value, str):
        raise ValueError("not a string")
    return value


def text(value: Any) -> str:
    """Return ``value``; raise ValueError if it is empty or holds what no argument can hold."""
    if not string(value) or "\0" in value:
        raise ValueError("must not be empty" if not value else "must not contain a NUL")
    return string(value)


def word(*known: str) -> Reader:
    """Return the reader of one of the ``known`` words."""

    def read(value: Any) -> str:
        if string(value) not in known:
            raise ValueError("not a known value")
        return string(value)

    return read


def sequence(item: Reader, *, least: int = 0) -> Reader:
    """Return the reader of a list of at least so many items."""

    def read(value: Any) -> list[Any]:
        if not isinstance(value, list) or len(value) < least:
            raise ValueError("not a list, or too short")
        return [item(each) for each in value]

    return read


def table(key: Reader, item: Reader) -> Reader:
    """Return the reader of a mapping whose keys the operator chooses."""

    def read(value: Any) -> dict[Any, Any]:
        if not isinstance(value, dict):
            raise ValueError("not a mapping")
        return {key(name): item(each) for name, each in value.items()}

    return read


def record(
    *,
    needed: Mapping[str, Reader] | None = None,
    preset: Mapping[str, tuple[Reader, Any]] | None = None,
    maybe: Mapping[str, Reader] | None = None,
) -> Reader:
    """Return the reader of a mapping of known keys; what it reads holds all of them.

    ``needed`` must be given; ``preset`` come with the default of a missing one; ``maybe`` may be
    missing or null, and are None then.
    """
    readers = {**(needed or {}), **{name: each for name, (each, _) in (preset or {}).items()}}
    optional = maybe or {}
    absent = {
        **{name: each for name, (_, each) in (preset or {}).items()},
        **dict.fromkeys(optional),
    }

    def read(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValueError("not a mapping")
        if not value.keys() <= readers.keys() | optional.keys():
            raise ValueError("an unknown key")
        if not value.keys() >= readers.keys() - absent.keys():
            raise ValueError("a key is missing")
        given = {name: readers[name](each) for name, each in value.items() if name in readers}
        chosen = {
            name: optional[name](each)
            for name, each in value.items()
            if name in optional and each is not None
        }
        return {**absent, **given, **chosen}

    return read
