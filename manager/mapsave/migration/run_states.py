"""QEMU's run states (``qapi/run-state.json``): what save, roll-back and resume do from each.

A save leaves QEMU in ``postmigrate``, whatever the guest's state was, and QEMU knows few ways from
there: ``cont`` sets a guest running that could run, and of one that has suspended itself it dies
(10.0: ``invalid runstate transition: 'postmigrate' -> 'suspended'``). So a guest is saved only from
a state to which it can be brought back if the save fails after its stream has ended.
"""

import dataclasses
import enum


class RunState(enum.StrEnum):
    """The run states that mapsave knows; ``query-status`` may name others."""

    RUNNING = "running"
    PAUSED = "paused"
    PRELAUNCH = "prelaunch"
    IO_ERROR = "io-error"
    WATCHDOG = "watchdog"
    SUSPENDED = "suspended"
    SHUTDOWN = "shutdown"
    INTERNAL_ERROR = "internal-error"
    GUEST_PANICKED = "guest-panicked"
    DEBUG = "debug"
    SAVE_VM = "save-vm"
    RESTORE_VM = "restore-vm"
    COLO = "colo"
    INMIGRATE = "inmigrate"
    FINISH_MIGRATE = "finish-migrate"
    POSTMIGRATE = "postmigrate"


@dataclasses.dataclass(frozen=True)
class Handling:
    """What can be done with a guest in one run state.

    ``refusal``: why it is not saved, None where it is, and ``hint`` what can be done about that.
    ``runs``: the save pauses it, and a roll-back or ``--then resume`` resumes it; others are left
    in ``postmigrate``. ``continues``: ``cont`` brings the guest back from there.
    """

    refusal: str | None = None
    hint: str | None = None
    runs: bool = False
    continues: bool = True


def _refused(refusal: str, hint: str, *, continues: bool = False) -> Handling:
    return Handling(refusal, hint, continues=continues)


_RESET = "reset it ('system_reset' at its monitor), or shut QEMU down"
_WAIT = "wait until it has finished"

TABLE: dict[str, Handling] = {
    RunState.RUNNING: Handling(runs=True),
    RunState.PAUSED: Handling(),
    RunState.PRELAUNCH: Handling(),
    # The requests that failed are in the image, and are tried again when the guest is resumed.
    RunState.IO_ERROR: Handling(),
    RunState.WATCHDOG: Handling(),
    RunState.SUSPENDED: _refused(
        "the guest has suspended itself to RAM (S3), and QEMU would crash when the guest is "
        "resumed after a save, even a failed one",
        "wake it up ('system_wakeup' at its monitor), then save it",
    ),
    RunState.SHUTDOWN: _refused("the guest has shut down", _RESET),
    RunState.INTERNAL_ERROR: _refused("QEMU cannot execute the guest (internal error)", _RESET),
    RunState.GUEST_PANICKED: _refused(
        "the guest's operating system has crashed",
        "dump it ('dump-guest-memory' at its monitor), then reset it or shut QEMU down",
    ),
    RunState.DEBUG: _refused("a debugger has stopped the guest", "resume it in the debugger first"),
    RunState.SAVE_VM: _refused("another client is taking an internal snapshot of it", _WAIT),
    RunState.RESTORE_VM: _refused(
        "it is being reverted to an internal snapshot, or the revert has failed",
        "wait until it has finished; if it has failed, revert again or shut QEMU down",
    ),
    RunState.COLO: _refused(
        "it is replicated to another host (COLO)", "stop the replication first"
    ),
    RunState.INMIGRATE: _refused(
        "QEMU is waiting for an incoming migration", "restore a guest into it"
    ),
    RunState.FINISH_MIGRATE: _refused(
        "another client's migration of it is in its final phase", _WAIT, continues=True
    ),
    RunState.POSTMIGRATE: _refused(
        "the guest was saved before and left paused; QEMU cannot save it again from that state",
        "resume it ('cont' at its monitor), or shut it down and use its image",
        continues=True,
    ),
}


def of(name: str) -> Handling:
    """Return what can be done in the run state ``name``; one that we do not know is refused."""
    unknown = _refused(f"mapsave does not know the run state {name!r}", "use a newer mapsave")
    return TABLE.get(name, unknown)
