"""The service's log: the standard library's loggers, in one form.

What is bound to the context (``bind``) is on every line that is logged inside, whichever module
logs it.
"""

from __future__ import annotations

import contextlib
import contextvars
import datetime
import functools
import logging
import os
import select
import sys
import types
from collections.abc import Callable, Mapping
from typing import TextIO

from mapsave.service.log import formats, journald
from mapsave.service_settings import LogFormat
from mapsave.strict_json import Facts

_CHUNK = select.PIPE_BUF  # pipe(7): where poll says there is room, so much does not block
_PATIENCE_MS = 200
# At least this severe where not everything is wanted. qemu.qmp's errors are about connections that
# ended, which operations report themselves; aiohttp.access is a line a request.
_LOUD = {
    "qemu.qmp": logging.CRITICAL,
    "aiohttp.access": logging.WARNING,
}
_FACTS: contextvars.ContextVar[Facts] = contextvars.ContextVar(
    "facts", default=types.MappingProxyType({})
)


def configure(
    form: LogFormat = "auto",
    level: int = logging.INFO,
    stream: TextIO | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    journal: str = journald.SOCKET,
) -> None:
    """Log to ``stream`` (stderr) what is as severe as ``level``; takes the place of a former call.

    ``journald`` sends entries to the socket ``journal``, and writes those that cannot be sent to
    ``stream``. ``auto`` is that where $JOURNAL_STREAM names ``stream``, and ``text`` elsewhere.
    """
    output = _Output(sys.stderr if stream is None else stream)
    if form == "auto":
        is_journal = journald.names(output.fd, environ.get("JOURNAL_STREAM"))
        form = "journald" if is_journal else "text"
    root = logging.getLogger()
    for old in list(root.handlers):
        # The other is what the command line put there, which would write each line again.
        if isinstance(old, _Handler) or type(old) is logging.StreamHandler:
            root.removeHandler(old)
            old.close()
    root.addHandler(_Handler(output, form, journal))
    root.setLevel(level)
    for name, least in _LOUD.items():
        logging.getLogger(name).setLevel(logging.NOTSET if level <= logging.DEBUG else least)
    logging.getLogger("asyncio").setLevel(logging.WARNING)  # below it describes its selector


def bind(**facts: object) -> contextvars.Token[Facts]:
    """Put those ``facts`` (operation, guest, job, step) that are not None on every later line of
    this task."""
    known = {key: value for key, value in facts.items() if value is not None}
    return _FACTS.set({**_FACTS.get(), **known})


class _Handler(logging.Handler):
    """Writes entries; whatever happens thereby, who logs does not notice."""

    def __init__(self, output: _Output, form: LogFormat, journal: str) -> None:
        super().__init__()
        self._output = output
        self._journald = journald.Journald(journal) if form == "journald" else None
        self._write: Callable[[Facts], str] = formats.as_text
        if self._journald is not None:
            self._write = functools.partial(formats.to_journald, self._journald)
        elif form == "json":
            self._write = formats.as_json

    def format(self, record: logging.LogRecord) -> str:
        """Return the entry as it is written; the empty text where journald has taken it."""
        extra = {key: vars(record)[key] for key in formats.CONTEXT if key in vars(record)}
        entry = {
            **_FACTS.get(),
            **extra,
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
        }
        if record.exc_info:
            entry["exception"] = logging.Formatter().formatException(record.exc_info)
        return self._write(entry)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one entry."""
        try:
            line = self.format(record)
        except Exception as error:  # arguments that do not fit, or a value that cannot be printed
            # In an empty context, for what is bound may be what cannot be printed.
            line = contextvars.Context().run(self.format, _about(record, error))
        if line:
            self._output.write(line + "\n")

    def close(self) -> None:
        """Close the way to journald; the stream belongs to others."""
        if self._journald is not None:
            self._journald.close()
        super().close()


def _about(record: logging.LogRecord, error: Exception) -> logging.LogRecord:
    what = (type(error).__name__, record.pathname, record.lineno)
    words = "a log entry cannot be written: %s, logged at %s:%d"
    return logging.LogRecord(
        record.name, logging.ERROR, record.pathname, record.lineno, words, what, None
    )


class _Output:
    """A stream for lines. One that is closed or full loses lines: a save must not wait for it."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.fd: int | None = None
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self.fd = stream.fileno() if stream is not None else None
        self._is_stuck = False
        self._is_torn = False

    def write(self, line: str) -> None:
        """Write a line, if that goes; waits only with the first that is lost. Raises nothing."""
        # Behind a closed stream its descriptor may be another file by now.
        if self._stream is None or self._stream.closed:
            return
        with contextlib.suppress(OSError, ValueError):
            if self.fd is None:
                self._stream.write(line)
                self._stream.flush()
            else:
                self._write_bytes(self.fd, line.encode("utf-8", "backslashreplace"))

    def _write_bytes(self, fd: int, data: bytes) -> None:
        if self._is_torn:
            data = b"\n" + data
        view = memoryview(data)
        while view:
            if not self._has_room(fd):
                break
            written = os.write(fd, view[:_CHUNK])
            self._is_torn = written < len(view)
            view = view[written:]

    def _has_room(self, fd: int) -> bool:
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        self._is_stuck = not poll.poll(0 if self._is_stuck else _PATIENCE_MS)
        return not self._is_stuck
