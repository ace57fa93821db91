"""Failures of a save, a restore or a monitor: exit codes 4, 5, 9 and 1."""

from __future__ import annotations

from mapsave.errors.base import MapsaveError

# Exit code 4: the save failed; the guest is as it was before.


class SaveFailed(MapsaveError):
    """The save failed; the guest is in its former run state, or the message names its state."""

    id = "save.failed"
    exit_code = 4


class SaveTimeout(SaveFailed):
    """The save took longer than its ``timeout`` and was cancelled; for the guest, see
    save.failed."""

    id = "save.timeout"
    http_status = 504


class SaveStalled(SaveFailed):
    """QEMU wrote nothing for minutes because its storage hangs; cancelled, the guest is as
    before."""

    id = "save.stalled"
    http_status = 504


class SaveQemuDied(SaveFailed):
    """QEMU exited during the save; with ``then: resume`` the image may be committed."""

    id = "save.qemu_died"


class CommitFailed(SaveFailed):
    """QEMU wrote its stream, but the image could not be verified or brought to stable storage."""

    id = "save.commit"


class GuestContinued(SaveFailed):
    """Another client resumed the guest during the save: it was left running, its image is stale."""

    id = "save.guest_continued"


class GuestNotEnded(SaveFailed):
    """The image is committed, but the guest did not shut down; it is paused until recovery."""

    id = "save.guest_not_ended"


class GuestNotPutBack(SaveFailed):
    """The guest was not, or must not be, resumed after a save; its state or image is named."""

    id = "save.guest_not_put_back"


class SaveKeptByQemu(SaveFailed):
    """The save failed, and QEMU has not released its descriptors or settings: it is not saved
    again."""

    id = "save.kept_by_qemu"


# Exit code 5: the restore failed; the image is as it was before.


class RestoreFailed(MapsaveError):
    """The restore failed; the image is as it was, and the message has QEMU's own."""

    id = "restore.failed"
    exit_code = 5


class LaunchFailed(RestoreFailed):
    """The destination QEMU could not be started; its standard error is quoted."""

    id = "restore.launch"


class RestoreStalled(RestoreFailed):
    """The destination stopped reading the image; if mapsave had started it, it was killed."""

    id = "restore.stalled"
    http_status = 504


class RestoreTimeout(RestoreFailed):
    """The restore took longer than its ``timeout``; a destination that mapsave started was
    stopped."""

    id = "restore.timeout"
    http_status = 504


# Exit code 9: told to stop.


class Interrupted(MapsaveError):
    """Ctrl-C, SIGTERM or a cancel request; everything is as before, except what ``saved`` and
    ``left`` name."""

    id = "interrupted"
    exit_code = 9
    http_status = 499


# Errors of the monitor, turned into one of the above by the caller, which knows what was being
# attempted.


class MonitorError(MapsaveError):
    """The monitor failed outside any operation that could say more."""

    id = "monitor.failed"


class CommandRefused(MonitorError):
    """A monitor command was answered with an error; ``error_class`` and ``desc`` are QEMU's.

    ``by`` is who refused it: QEMU, or libvirt before QEMU was asked.
    """

    id = "monitor.command"

    def __init__(self, command: str, error_class: str, desc: str, by: str = "QEMU") -> None:
        super().__init__(
            f"{by} refused {command}: {desc}", command=command, error_class=error_class
        )
        self.command = command
        self.error_class = error_class
        self.desc = desc


class MonitorLost(MonitorError):
    """The connection to QEMU's monitor broke."""

    id = "monitor.lost"


class MonitorBroken(MonitorError):
    """libvirtd exited while passing on a command that must not be repeated; it is back."""

    id = "monitor.broken"


class KeptByQemu(MonitorError):
    """QEMU has not released what a save or restore passed to it: descriptors or settings."""

    id = "monitor.kept"


class QemuMigrates(MonitorError):
    """QEMU is migrating for another client, or has not cleaned up after a migration."""

    id = "monitor.migrating"


class MonitorTimeout(MonitorError):
    """QEMU did not answer a monitor command in time."""

    id = "monitor.timeout"
