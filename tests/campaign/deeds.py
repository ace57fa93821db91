"""What others do to a guest or a disk while a command of mapsave stands still at a step."""

from __future__ import annotations

import shutil
import signal
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from tests.kit import wait
from tests.kit.qmp import QmpClosed, QmpError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.campaign.scene import Scene

_HUNG = 1.5  # seconds


def _tell(scene: Scene, command: str) -> None:
    """Let somebody else give QEMU a command; what QEMU refuses is not done."""
    with suppress(QmpError, QmpClosed, AssertionError):
        scene.guest.monitor.execute(command)


def _cont(scene: Scene) -> None:
    _tell(scene, "cont")


def _stop(scene: Scene) -> None:
    _tell(scene, "stop")


def _cont_and_stop(scene: Scene) -> None:
    _tell(scene, "cont")
    _tell(scene, "stop")


def _kill(scene: Scene) -> None:
    scene.guest.end()


def _quit(scene: Scene) -> None:
    _tell(scene, "quit")
    scene.guest.ends_within(wait.LONG)


def _cont_and_kill(scene: Scene) -> None:
    _tell(scene, "cont")
    scene.guest.end()


def _cancel(scene: Scene) -> None:
    _tell(scene, "migrate_cancel")


def _migrate(scene: Scene) -> None:
    with suppress(QmpError, QmpClosed, AssertionError):
        scene.guest.monitor.execute("migrate", uri=f"file:{scene.directory}/theirs")


def _hang(scene: Scene) -> None:
    """Let the guest's QEMU answer no one for a moment."""
    scene.guest.signal(signal.SIGSTOP)
    threading.Timer(_HUNG, scene.guest.signal, (signal.SIGCONT,)).start()


def _another_save(scene: Scene) -> None:
    done = scene.mapsave("save", scene.world.address, "--image", "second.mapsave")
    if done.code != 8:
        scene.violate(f"a second save at the same time: {done}")


def _another_restore(scene: Scene) -> None:
    done = scene.mapsave("restore", str(scene.image))
    if done.code != 8:
        scene.violate(f"a second restore at the same time: {done}")


def _directory_away(scene: Scene) -> None:
    scene.site.images.rename(scene.away)


def _disk_dies(scene: Scene) -> None:
    scene.site.dies()


DEEDS: dict[str, Callable[[Scene], None]] = {
    "cont": _cont,
    "stop": _stop,
    "cont and stop": _cont_and_stop,
    "kill": _kill,
    "quit": _quit,
    "cont and kill": _cont_and_kill,
    "migrate_cancel": _cancel,
    "migrate": _migrate,
    "hang": _hang,
    "another save": _another_save,
    "another restore": _another_restore,
    "directory moved away": _directory_away,
    "disk dies": _disk_dies,
}
ON_DISK = frozenset(("another save", "another restore", "directory moved away", "disk dies"))
# QEMU 10.0 dies of some cancels.
DEADLY = frozenset(("kill", "quit", "cont and kill", "migrate_cancel"))


def do(scene: Scene, deed: str, *, to_destination: bool) -> None:
    """Do it to the guest of the run, or to the destination of a restore."""
    if not to_destination:
        DEEDS[deed](scene)
    elif (destination := scene.world.current()) is not None:
        source, scene.guest = scene.guest, destination
        try:
            DEEDS[deed](scene)
        finally:
            scene.guest = source
            destination.leave()  # its monitor is for whoever looks at it next
            scene.destinations.append(destination)


def bring_back(scene: Scene) -> None:
    """Put the image directory back where it was, if it was moved away."""
    if scene.away.exists():
        if scene.site.images.exists():
            shutil.rmtree(scene.site.images)
        scene.away.rename(scene.site.images)
