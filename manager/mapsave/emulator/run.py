"""Start an emulated QEMU and serve it until it is told to quit."""

import contextlib
import signal
import threading
from collections.abc import Iterator

from mapsave.emulator import faults
from mapsave.emulator.commands import Emulated
from mapsave.emulator.incoming import Incoming
from mapsave.emulator.machine import Machine
from mapsave.emulator.options import EmulatorOptions
from mapsave.emulator.outgoing import Outgoing
from mapsave.emulator.server import Server, listening

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def run(options: EmulatorOptions) -> int:
    """Be a QEMU with ``options`` until ``quit`` or a signal; return the exit code.

    0 after ``quit`` or SIGTERM, 1 if a restore failed with ``exit-on-error``, or the RAM cannot be
    had. It may not return at all: where QEMU 10.0.2 crashes the process is ended by SIGSEGV or
    SIGFPE. Raises OSError if the socket cannot be made.
    """
    with listening(options.qmp) as listener:
        server = Server(listener)
        try:
            machine = Machine(options, server)
        except OSError as error:
            faults.report(error.strerror or str(error))
            return 1
        with _signals_end(server):
            return server.serve(Emulated(machine, Outgoing(machine), Incoming(machine)))


@contextlib.contextmanager
def _signals_end(server: Server) -> Iterator[None]:
    """Let SIGTERM, SIGINT and SIGHUP end the machine as they end QEMU."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int) -> None:
        faults.report(f"terminating on signal {number}")
        server.emit("SHUTDOWN", {"guest": False, "reason": "host-signal"})
        server.shut_down(0)

    # The handler may interrupt code that holds the server's lock, so the work is deferred.
    old = {
        number: signal.signal(number, lambda got, _: server.defer(lambda: end(got)))
        for number in _SIGNALS
    }
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
