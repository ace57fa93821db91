"""The file of a step journal: a JSON object a line, each with a checksum of its own.

A line repeats what the lines before it said, so that any whole line says all up to its step. Only
an empty file, or one whose single line is torn, is that of a manager which died before its first
step; whatever else cannot be read is damaged, and may have said anything.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mapsave import strict_json

PATTERN = "*.jsonl"
SUFFIX = ".v2.jsonl"  # an earlier version wrote ``.jsonl``: no checksums, each fact only once
DAMAGED = ".damaged"
_MOST = 4 << 20  # bytes; a save writes some ten lines of one or two KiB
_FIRST = b'{"step": "begin", '
_SEALED = re.compile(rb'(\{.*), "sum": "([0-9a-f]{32})"\}', re.DOTALL)
_SUM = re.compile(rb', "sum": "[0-9a-f]{32}"\}')
_OWN = ("step", "steps", "time", "sum")
Facts = dict[str, Any]  # foreign: any version may have written them


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a journal says: its facts, and the steps that were recorded.

    ``is_damaged``: some line cannot be read. ``is_unsure``: it may have been a further step.
    """

    facts: Facts
    steps: tuple[str, ...]
    is_damaged: bool = False
    is_unsure: bool = False

    @property
    def is_blank(self) -> bool:
        """Whether its manager died before the first step was recorded: nothing was touched."""
        return not self.steps and not self.is_damaged


def line(step: str, facts: Mapping[str, object], steps: tuple[str, ...]) -> bytes:
    """Return the line that records ``step``; ``facts`` and ``steps`` are those up to it."""
    record = {"step": step, "steps": steps, "time": time.time(), **facts}
    body = json.dumps(record).encode("ascii")
    return body[:-1] + f', "sum": "{_sum(body)}"}}\n'.encode("ascii")


def _sum(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()[:32]


def read(path: Path) -> Contents:
    """Read a journal. Raises OSError where the disk does not give it, FileNotFoundError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return Contents({}, (), is_damaged=True, is_unsure=True)
        data = b""
        while len(data) <= _MOST and (chunk := os.read(fd, _MOST)):
            data += chunk
    finally:
        os.close(fd)
    return parse(data, is_sealed=path.name.endswith(SUFFIX))


def parse(data: bytes, *, is_sealed: bool) -> Contents:
    """Return what a journal says; one that is not ``is_sealed`` is of an earlier version."""
    facts: Facts = {}
    steps: tuple[str, ...] = ()
    is_damaged = is_unsure = False
    for text in data[:_MOST].split(b"\n"):
        record = _record(text, is_sealed=is_sealed)
        if record is not None:
            own = (str(record["step"]),)
            steps = tuple(map(str, record["steps"])) if is_sealed else steps + own
            facts.update({key: record[key] for key in record if key not in _OWN})
            is_unsure = is_unsure and not is_sealed  # a whole line repeats the damaged ones
        elif text:
            is_damaged = is_unsure = True
    if len(data) > _MOST:
        return Contents(facts, steps, is_damaged=True, is_unsure=True)
    if is_damaged and _is_torn(data, is_sealed=is_sealed):
        # A crash of the host, or a kill amid the write, left a piece of the last line, whose step
        # was not taken then. But it may also have been whole, and rotten since.
        whole = parse(data[: data.rfind(b"\n") + 1], is_sealed=is_sealed)
        return dataclasses.replace(whole, is_unsure=bool(whole.steps))
    return Contents(facts, steps, is_damaged, is_unsure)


def _is_torn(data: bytes, *, is_sealed: bool) -> bool:
    """Return whether the file ends in a piece of a line, after whole ones or as its beginning."""
    last = data[data.rfind(b"\n") + 1 :]
    if not last or _record(last, is_sealed=is_sealed) is not None:
        return False
    piece, is_only = last.rstrip(b"\0"), len(last) == len(data)
    if _SUM.search(piece) or (is_only and not piece):
        return False  # a line that was whole; or zeros, of which there may have been many lines
    beginning = _FIRST if is_only else b'{"step": "'
    return piece.startswith(beginning) or beginning.startswith(piece)


def _record(text: bytes, *, is_sealed: bool) -> Facts | None:
    """Return what a line says; None where it is damaged."""
    if is_sealed:
        found = _SEALED.fullmatch(text)
        if found is None or _sum(found[1] + b"}").encode() != found[2]:
            return None
    try:
        record = strict_json.loads(text)
    except ValueError:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("step"), str):
        return None
    if is_sealed and not isinstance(record.get("steps"), list):
        return None
    return record


class Writer:
    """Appends lines to a journal open as ``fd``, which is O_APPEND and locked."""

    def __init__(self, fd: int, known: Contents | None = None) -> None:
        self._fd = fd
        self._facts = dict(known.facts) if known else {}
        self._steps = known.steps if known else ()

    def close(self) -> None:
        """Close it; a thread that hung until now writes to no other file of that number."""
        fd, self._fd = self._fd, -1
        os.close(fd)

    def write(self, step: str, data: Mapping[str, object]) -> None:
        """Bring a step to stable storage; one that fails is not in the file. Raises OSError."""
        facts, steps = {**self._facts, **data}, (*self._steps, step)
        text = line(step, facts, steps)
        size = os.fstat(self._fd).st_size
        try:
            if os.write(self._fd, text) != len(text):  # write(2): what fits is written first
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fdatasync(self._fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, size)
            raise
        self._facts, self._steps = facts, steps


def append(path: Path, step: str, data: Mapping[str, object]) -> None:
    """Record durably a further step in a journal that was found. Raises OSError."""
    known = read(path)
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    try:
        text = os.pread(fd, _MOST, 0)
        is_sealed = path.name.endswith(SUFFIX)
        if not text.endswith(b"\n"):
            if _is_torn(text, is_sealed=is_sealed):
                os.ftruncate(fd, text.rfind(b"\n") + 1)  # it would hide ours
            else:
                os.write(fd, b"\n")
        if is_sealed:
            Writer(fd, known).write(step, data)
            return
        record = {"step": step, "time": time.time(), **data}
        os.write(fd, json.dumps(record).encode("ascii") + b"\n")
        os.fdatasync(fd)
    finally:
        os.close(fd)
