"""Failures of a save, a restore or a monitor: exit codes 4, 5, 9 and 1."""

from mapsave.errors.base import MapsaveError

# Exit code 4: the save failed; the guest is as it was before.


class SaveFailed(MapsaveError, id="save.failed", exit_code=4):
    """The save failed; the guest is in its former run state, or the message names its state."""


class SaveTimeout(SaveFailed, id="save.timeout", http_status=504):
    """The save took longer than its ``timeout`` and was cancelled; for the guest, see
    save.failed."""


class SaveStalled(SaveFailed, id="save.stalled", http_status=504):
    """QEMU wrote nothing for minutes because its storage hangs; cancelled, the guest is as
    before."""


class SaveQemuDied(SaveFailed, id="save.qemu_died"):
    """QEMU exited during the save; with ``then: resume`` the image may be committed."""


class CommitFailed(SaveFailed, id="save.commit"):
    """QEMU wrote its stream, but the image could not be verified or brought to stable storage."""


class GuestContinued(SaveFailed, id="save.guest_continued"):
    """Another client resumed the guest during the save: it was left running, its image is stale."""


class GuestNotEnded(SaveFailed, id="save.guest_not_ended"):
    """The image is committed, but the guest did not shut down; it is paused until recovery."""


class GuestNotPutBack(SaveFailed, id="save.guest_not_put_back"):
    """The guest was not, or must not be, resumed after a save; its state or image is named."""


class SaveKeptByQemu(SaveFailed, id="save.kept_by_qemu"):
    """The save failed, and QEMU has not released its descriptors or settings: it is not saved
    again."""


class NotProven(SaveFailed, id="proof.failed"):
    """A throwaway QEMU with the guest's command line could not load the image; the message has
    QEMU's own reason, and no guest was touched."""


class PagesDiffer(NotProven, id="proof.pages"):
    """Pages of the image are not what the paused guest's RAM has; the message names the first."""


class ProofStalled(NotProven, id="proof.stalled", http_status=504):
    """The throwaway QEMU stopped loading the image, and was killed."""


# Exit code 5: the restore failed; the image is as it was before.


class RestoreFailed(MapsaveError, id="restore.failed", exit_code=5):
    """The restore failed; the image is as it was, and the message has QEMU's own."""


class LaunchFailed(RestoreFailed, id="restore.launch"):
    """The destination QEMU could not be started; its standard error is quoted."""


class RestoreStalled(RestoreFailed, id="restore.stalled", http_status=504):
    """The destination stopped reading the image; if mapsave had started it, it was killed."""


class RestoreTimeout(RestoreFailed, id="restore.timeout", http_status=504):
    """The restore took longer than its ``timeout``; a destination that mapsave started was
    stopped."""


# Exit code 9: told to stop.


class Interrupted(MapsaveError, id="interrupted", exit_code=9, http_status=499):
    """Ctrl-C, SIGTERM or a cancel request; everything is as before, except what ``saved`` and
    ``left`` name."""


class OutcomeUnknown(Interrupted, id="fleet.outcome_unknown"):
    """A task of the fleet was begun on its host, whose service has lost its history since; nothing
    is begun again."""


# Errors of the monitor, turned into one of the above by the caller, which knows what was being
# attempted.


class MonitorError(MapsaveError, id="monitor.failed"):
    """The monitor failed outside any operation that could say more."""


class CommandRefused(MonitorError, id="monitor.command"):
    """A monitor command was answered with an error; ``error_class`` and ``desc`` are QEMU's.

    ``by`` is who refused it: QEMU, or libvirt before QEMU was asked.
    """

    def __init__(self, command: str, error_class: str, desc: str, by: str = "QEMU") -> None:
        super().__init__(
            f"{by} refused {command}: {desc}", command=command, error_class=error_class
        )
        self.command = command
        self.error_class = error_class
        self.desc = desc


class MonitorLost(MonitorError, id="monitor.lost"):
    """The connection to QEMU's monitor broke."""


class MonitorBroken(MonitorError, id="monitor.broken"):
    """libvirtd exited while passing on a command that must not be repeated; it is back."""


class KeptByQemu(MonitorError, id="monitor.kept"):
    """QEMU has not released what a save or restore passed to it: descriptors or settings."""


class QemuMigrates(MonitorError, id="monitor.migrating"):
    """QEMU is migrating for another client, or has not cleaned up after a migration."""


class MonitorTimeout(MonitorError, id="monitor.timeout"):
    """QEMU did not answer a monitor command in time."""
