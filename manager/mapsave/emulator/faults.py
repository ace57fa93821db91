"""QEMU's error messages, and its crashes."""

import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

GENERIC = "GenericError"
COMMAND_NOT_FOUND = "CommandNotFound"
DEVICE_NOT_FOUND = "DeviceNotFound"


class QmpError(Exception):
    """What a command answers instead of a result: an error class and a description."""

    def __init__(self, desc: str, error_class: str = GENERIC) -> None:
        super().__init__(desc)
        self.desc = desc
        self.error_class = error_class


class StreamError(Exception):
    """A migration broke. ``desc`` is for ``error-desc``; ``reports`` are lines for stderr."""

    def __init__(self, desc: str, *reports: str) -> None:
        super().__init__(desc)
        self.desc = desc
        self.reports = reports


class ChannelError(StreamError):
    """A multifd channel of a save broke; QEMU reports that twice."""


class LoadError(StreamError):
    """A load broke: errno ``number``, and the ``causes`` that ``error-desc`` adds to its text."""

    def __init__(
        self, number: int, causes: Sequence[str] = (), reports: Sequence[str] = ()
    ) -> None:
        super().__init__(": ".join([os.strerror(number), *causes]), *reports)
        self.number = number
        self.causes = causes


def report(line: str) -> None:
    """Write one line to stderr, as QEMU's ``error_report`` does."""
    sys.stderr.write(f"mapsave-emulator: {line}\n")
    sys.stderr.flush()


def die(reason: str, number: signal.Signals = signal.SIGSEGV) -> NoReturn:
    """End the process by ``number``, where QEMU would; ``reason`` goes to stderr."""
    report(f"QEMU would crash here: {reason}")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.kill(os.getpid(), number)
    while True:  # the signal reaches some thread of the process within this call or soon after
        time.sleep(1)
