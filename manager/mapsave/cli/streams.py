"""The standard streams of the process: a command ends the same way, be they read or not."""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from typing import TYPE_CHECKING, NoReturn, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def leave(code: int) -> NoReturn:
    """End the process at once; what was printed is printed."""
    for stream in (sys.stdout, sys.stderr):
        # None or closed: the process was started so. Else: reported already, or no one to ask.
        with contextlib.suppress(AttributeError, ValueError, OSError):
            stream.flush()
    os._exit(code)


def prepare() -> None:
    """Give the process standard streams that it can rely on.

    Those it was started without are /dev/null: the next file to be opened, an image perhaps, would
    get their number, and another program, or a library, would write its messages there.
    """
    for fd, flags in enumerate((os.O_RDONLY, os.O_WRONLY, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, flags), True)  # the lowest number that is free
    sys.stdout = _text(sys.stdout, io.BufferedWriter(_Raw(1, raises=True)))
    sys.stderr = _text(sys.stderr, io.BufferedWriter(_Raw(2, raises=False)))


def is_read() -> bool:
    """Return whether what is printed on standard output may still be read: a pipe has a reader."""
    poll = select.poll()
    poll.register(1, 0)
    return not any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def _text(before: TextIO | None, buffer: io.BufferedWriter) -> io.TextIOWrapper:
    """Return a stream for text as Python has made ``before``."""
    return io.TextIOWrapper(
        buffer,
        encoding=before.encoding if before is not None else "utf-8",
        errors=before.errors if before is not None else "backslashreplace",
        line_buffering=buffer.fileno() == 2 or buffer.isatty(),
    )


class _Raw(io.FileIO):
    """Standard output or error: what no one reads is dropped.

    Where it cannot be written, OutputFailed is raised once if ``raises``.
    """

    def __init__(self, fd: int, *, raises: bool) -> None:
        super().__init__(fd, "w", closefd=False)
        self._raises = raises

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            while (written := super().write(data)) is None:  # it does not block: the reader is slow
                select.select((), (self,), ())
        except BrokenPipeError:
            pass
        except OSError as error:
            if self._raises:
                self._raises = False
                from mapsave import errors

                raise errors.OutputFailed(
                    f"cannot print the result: {error.strerror}", hint="what was done remains done"
                ) from None
        else:
            return written
        return len(memoryview(data).cast("B"))
