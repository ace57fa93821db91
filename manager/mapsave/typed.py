"""Read plain data into types, from any thread.

msgspec prepares a type when something is first read into it. Another thread that reads into it at
that moment gets what is half prepared, and the process dies of SIGSEGV (msgspec 0.22, in
``StructInfo_Convert``). So one thread reads at a time, which costs nothing: under the interpreter's
lock two would not be faster.
"""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

_reading = threading.RLock()  # a hook may read on


def convert(found: object, kind: type[T], *, hook: Callable[[type, Any], Any] | None = None) -> T:
    """Return plain data as an instance of ``kind``; ``hook`` makes what msgspec cannot.

    Raises msgspec.ValidationError, which is a ValueError.
    """
    with _reading:
        return msgspec.convert(found, kind, dec_hook=hook)


def decode(raw: bytes | str, kind: type[T]) -> T:
    """Return JSON as an instance of ``kind``. Raises msgspec.DecodeError, which is a ValueError."""
    with _reading:
        return msgspec.json.decode(raw, type=kind)
