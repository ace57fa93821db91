"""Run a command of mapsave so that it is hit as a plan says."""

from __future__ import annotations

import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.campaign import deeds, guests
from tests.campaign import scene as scenes
from tests.faults import struck
from tests.kit import inject, wait

if TYPE_CHECKING:
    from tests.campaign.plan import Blow
    from tests.campaign.scene import Done, Scene

LIMIT = 150.0  # seconds that any command may take, on a busy host


def perform(scene: Scene, blow: Blow, arguments: list[str]) -> Done:
    """Run ``mapsave`` with these arguments, hit by ``blow``."""
    if blow.deed is not None:
        return _interfered(scene, *blow.deed, arguments)
    met = guests.met_in(scene.directory)
    if blow.strike is not None:
        where, step, signals = blow.strike
        signals = signals.replace("guest:", f"{scene.guest.pid}:")
        env = {"MAPSAVE_TEST_MET": str(met)}
        command = struck.killer(where, step, signals)
        with scene.site.start(*arguments, env=env, command=command) as process:
            return ended(process, arguments)
    env = inject.environment(*blow.rules, met=met) if blow.rules else {}
    with scene.site.start(*arguments, env=env) as process:
        return ended(process, arguments)


def ended(process: subprocess.Popen[str], arguments: list[str]) -> Done:
    """Wait for the end of a command; one that does not come to an end is killed."""
    words = tuple(arguments)
    try:
        stdout, stderr = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        stdout, stderr = process.communicate(timeout=wait.LONG)
        return scenes.Done(words, None, stdout, stderr)
    return scenes.Done(words, process.returncode, stdout, stderr)


def _interfered(scene: Scene, step: str, deed: str, arguments: list[str]) -> Done:
    """Let others do something while the command stands still right after a step."""
    command = struck.killer("after", step, "STOP")
    with scene.site.start(*arguments, command=command) as process:
        wait.until(
            lambda: process.poll() is not None or _is_stopped(process.pid),
            timeout=LIMIT,
            what=f"mapsave to stop at {step}",
        )
        if process.poll() is None:
            deeds.do(scene, deed, to_destination=arguments[0] == "restore")
            scene.meet(f"{deed} at {step}")
            process.send_signal(signal.SIGCONT)
        return ended(process, arguments)


def _is_stopped(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    return False
