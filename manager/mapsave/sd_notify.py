"""What a service reports to systemd: that it is ready, its state, that it is alive.

Sources: sd_notify(3), sd_watchdog_enabled(3). Variables that were read are taken out of the
environment, so that QEMUs and hooks do not act on them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import MutableMapping

_log = logging.getLogger(__name__)

_LONGEST_STATUS = 500  # characters: systemctl shows one line


class Notifier:
    """Reports the service's state to systemd, at ``address``; does nothing where that is None.

    It never waits and never raises: a service does not fail because its state cannot be reported.
    """

    def __init__(self, address: str | None) -> None:
        self._address = address

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> Notifier:
        """Return the notifier of $NOTIFY_SOCKET, and take that out of ``environ``."""
        address = environ.pop("NOTIFY_SOCKET", "")
        if address and not address.startswith(("/", "@")):
            _log.debug("$NOTIFY_SOCKET is not a unix socket, systemd is not notified: %s", address)
            address = ""
        return cls(address or None)

    def ready(self) -> None:
        """Tell that the service has started, or is done with reloading."""
        self._tell("READY=1")

    def status(self, text: str) -> None:
        """Set the line that ``systemctl status`` shows."""
        # A line break would begin another variable, and names of guests come from outside.
        line = "".join(char if char.isprintable() else " " for char in text)
        self._tell(f"STATUS={line[:_LONGEST_STATUS]}")

    def reloading(self) -> None:
        """Report that the configuration is being reloaded; ``ready`` reports the end of it."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={now}")

    def stopping(self) -> None:
        """Tell that the service is stopping."""
        self._tell("STOPPING=1")

    def extend(self, seconds: float) -> None:
        """Ask that start or stop may take until ``seconds`` from now, if that is later."""
        self._tell(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def watchdog(self) -> None:
        """Tell that the service is alive."""
        self._tell("WATCHDOG=1")

    def _tell(self, message: str) -> None:
        if self._address is None:
            return
        address = self._address
        if address.startswith("@"):  # the abstract namespace of unix(7)
            address = "\0" + address[1:]
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        try:
            with socket.socket(socket.AF_UNIX, kind) as sock:
                sock.sendto(message.encode("utf-8", "replace"), address)
        except OSError as error:
            _log.debug("cannot notify systemd of %s: %s", message.partition("\n")[0], error)


def watchdog_interval(environ: MutableMapping[str, str]) -> float | None:
    """Return the seconds between two signs of life; None where systemd does not expect it.

    That is half of $WATCHDOG_USEC, as sd_watchdog_enabled(3) advises. It is for the process
    $WATCHDOG_PID alone. Both are taken out of ``environ``.
    """
    given = environ.pop("WATCHDOG_USEC", "")
    pid = environ.pop("WATCHDOG_PID", "")
    if not given or (pid and pid != str(os.getpid())):
        return None
    if not (given.isascii() and given.isdigit() and int(given)):
        _log.warning("$WATCHDOG_USEC is not a number of microseconds: %r", given)
        return None
    return int(given) / 2e6


async def beat(notifier: Notifier, interval: float | None) -> None:
    """Report every ``interval`` seconds that we are alive, until cancelled; return at once for
    None.

    A task of the loop that serves: if that hangs, systemd is to hear nothing.
    """
    while interval is not None:
        notifier.watchdog()
        await asyncio.sleep(interval)
