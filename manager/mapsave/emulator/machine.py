"""The emulated machine: run state, RAM, capabilities and descriptors."""

import enum
import signal
import threading
from collections.abc import Callable
from typing import Protocol

from mapsave.emulator import faults
from mapsave.emulator.faults import QmpError
from mapsave.emulator.fdset import FdSets
from mapsave.emulator.memory import GuestMemory
from mapsave.emulator.migration_options import Capabilities, Parameters
from mapsave.emulator.options import EmulatorOptions
from mapsave.emulator.versions import VERSIONS


class RunState(enum.StrEnum):
    """What ``query-status`` names (``qapi/run-state.json``)."""

    PRELAUNCH = "prelaunch"
    RUNNING = "running"
    PAUSED = "paused"
    FINISH_MIGRATE = "finish-migrate"
    POSTMIGRATE = "postmigrate"
    INMIGRATE = "inmigrate"
    # A guest comes into these only by an image of a QEMU in which it was in them.
    SUSPENDED = "suspended"
    IO_ERROR = "io-error"
    WATCHDOG = "watchdog"
    SHUTDOWN = "shutdown"
    GUEST_PANICKED = "guest-panicked"
    INTERNAL_ERROR = "internal-error"


# QEMU takes a guest in one of these for one that goes on: `stop` stops it, a failed save does not.
LIVE = frozenset((RunState.RUNNING, RunState.SUSPENDED))
NEED_RESET = frozenset((RunState.SHUTDOWN, RunState.INTERNAL_ERROR))


class Monitor(Protocol):
    """What the machine needs of the QMP server. All three may be called from any thread."""

    def emit(self, event: str, data: dict[str, object] | None = None) -> None:
        """Send an event to the client."""

    def defer(self, work: Callable[[], None]) -> None:
        """Run ``work`` in the main loop after the reply under way is sent."""

    def shut_down(self, exit_code: int) -> None:
        """End the main loop."""


class Machine:
    """``lock`` is QEMU's big lock: held by every command and by the last phase of a save."""

    def __init__(self, options: EmulatorOptions, monitor: Monitor) -> None:
        self.options = options
        self.monitor = monitor
        self.lock = threading.RLock()
        self.memory = GuestMemory(options)
        self.version = VERSIONS[options.version]
        self.capabilities = Capabilities(self.version)
        self.parameters = Parameters(self.version)
        self.fdsets = FdSets()
        self.named_fds: dict[str, int] = {}
        self.autostart = not options.paused
        self.was_suspended = False  # to RAM, whatever the run state has become since
        self.run_state = RunState.PRELAUNCH
        if options.incoming:
            self.run_state = RunState.INMIGRATE
        elif self.autostart:
            self.run_state = RunState.RUNNING
            self.memory.resume()

    @property
    def running(self) -> bool:
        return self.run_state is RunState.RUNNING

    @property
    def uses_direct_io(self) -> bool:
        """True if channels use O_DIRECT: direct-io is silently ignored without the two others."""
        on = self.capabilities
        return bool(self.parameters["direct-io"] and on["mapped-ram"] and on["multifd"])

    def migration_event(self, status: str) -> None:
        if self.capabilities["events"]:
            self.monitor.emit("MIGRATION", {"status": status})

    def start(self) -> None:
        """Let the guest run, or be suspended again, if it does not do so already."""
        if self.run_state in LIVE:
            return
        if self.was_suspended and self.run_state is RunState.POSTMIGRATE:
            reason = "invalid runstate transition: 'postmigrate' -> 'suspended'"
            faults.die(reason, signal.SIGABRT)
        self.monitor.emit("RESUME")
        if self.was_suspended:
            self.run_state = RunState.SUSPENDED
            return
        self.run_state = RunState.RUNNING
        self.memory.resume()

    def stop(self, state: RunState, *, force: bool = False) -> None:
        """Stop the guest if it runs; ``force`` takes ``state`` even if it did not."""
        was_running = self.run_state in LIVE
        if self.running:
            self.memory.halt()
        if was_running or force:
            self.run_state = state
        if was_running:
            self.monitor.emit("STOP")

    def command_stop(self) -> None:
        if self.run_state is RunState.INMIGRATE:
            self.autostart = False
        else:
            self.stop(RunState.PAUSED)

    def command_cont(self) -> None:
        """The QMP command ``cont``. Raises QmpError while a save is in its last phase."""
        if self.run_state is RunState.FINISH_MIGRATE:
            raise QmpError("Migration is not finalized yet")
        if self.run_state in NEED_RESET:
            raise QmpError("Resetting the Virtual Machine is required")
        if self.run_state is RunState.INMIGRATE:
            self.autostart = True
        else:
            self.start()
