"""One seed, from its beginning to its end."""

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.campaign import (
    blows,
    damage,
    deeds,
    guests,
    judge,
    limits,
    places,
    recovering,
    restoring,
)
from tests.campaign.guests import Guest, World
from tests.campaign.places import Site
from tests.campaign.plan import NOTHING, Plan
from tests.campaign.scene import IMAGE, RETRY, Scene
from tests.faults import struck
from tests.kit import frail, processes, service, storage, wait
from tests.kit.libvirtd import Daemon
from tests.service import interrupted

MOST = 300  # seconds for a whole run


@dataclass(frozen=True)
class Outcome:
    """What came of a seed."""

    plan: Plan
    trace: list[str]
    violations: list[str]
    seconds: float
    met: tuple[str, ...]
    kept: str | None = None


def run(plan: Plan, daemon: Callable[[], Daemon], *, keep: bool = False) -> Outcome:
    """Run a plan; never raises but for an interrupt.

    Once more where something is violated and a QEMU died by SIGSEGV, of which the plan knows
    nothing (``tests/kit/frail.py``).
    """
    before = frail.deaths()
    outcome = _once(plan, daemon, keep=keep)
    if not outcome.violations or plan.guest_may_die or frail.deaths() == before:
        return outcome
    again = _once(plan, daemon, keep=keep)
    again.trace.insert(0, f"QEMU died by SIGSEGV in a first run: {outcome.violations}")
    return again


def _once(plan: Plan, daemon: Callable[[], Daemon], *, keep: bool) -> Outcome:
    begun = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="mc-"))
    trace: list[str] = []
    violations: list[str] = []
    try:
        with _limited():
            _run(plan, directory, daemon, trace, violations)
    except Exception as error:
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place else "?"
        violations.append(f"campaign: {type(error).__name__} at {where}: {error}"[:1500])
    finally:
        file = guests.met_in(directory)
        met = tuple(file.read_text().splitlines()) if file.exists() else ()
        for pid in guests.left_running(directory):
            processes.end(pid)
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)
    seconds = time.monotonic() - begun
    return Outcome(plan, trace, violations, seconds, met, str(directory) if keep else None)


@contextmanager
def _limited() -> Iterator[None]:
    def over(*_: object) -> None:
        raise TimeoutError(f"the run took longer than {MOST} s")

    old = signal.signal(signal.SIGALRM, over)
    signal.alarm(MOST)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


def _run(
    plan: Plan,
    directory: Path,
    daemon: Callable[[], Daemon],
    trace: list[str],
    violations: list[str],
) -> None:
    with places.site_of(plan, directory) as site:
        world = guests.world_of(
            plan, directory, site, daemon() if plan.world == "libvirt" else None
        )
        with world.started() as guest, closing(guest):
            scene = _begin(plan, directory, site, world, guest)
            scene.trace, scene.violations = trace, violations
            try:
                _whole(scene)
            finally:
                for destination in scene.destinations:
                    destination.end()
                    destination.close()
                if scene.away.exists():
                    deeds.bring_back(scene)


def _begin(plan: Plan, directory: Path, site: Site, world: World, guest: Guest) -> Scene:
    """Bring the guest into its state, and note how it is."""
    from tests.kit import ram

    if plan.shape.state == "paused" and plan.world == "qemu":
        guest.monitor.execute("cont")
        guest.monitor.execute("stop")
    before = ram.snapshot(guest.ram, directory / "before")
    if plan.shape.state == "running":
        guest.monitor.execute("cont")
    return Scene(plan, directory, site, world, guest, before, guest.state())


def _whole(scene: Scene) -> None:
    """Save, recover, judge; then restore, or save again."""
    plan = scene.plan
    if plan.replaces:
        scene.image.write_bytes(judge.OLD)
        places.durable(scene.image)
        places.durable(scene.site.images)
    _left_over(scene)
    _save(scene)
    _between(scene)
    recovering.recover(scene, plan.recoveries if plan.restore_blow == NOTHING else ())
    found = judge.settled(scene)
    if found == "saved":
        if scene.guest.alive():
            scene.guest.end()
        restoring.restore(scene, scene.image)
    elif found in ("none", "old") and plan.retry and scene.guest.alive():
        _retry(scene)


def _left_over(scene: Scene) -> None:
    before = scene.plan.before
    if before is None:
        return
    scene.meet(before)
    partial = scene.site.images / f"{IMAGE}.partial"
    if before == "partial garbage":
        partial.write_bytes(judge.FOREIGN)
        return
    # A save that dies before it has touched the guest leaves a partial image with a superblock.
    words = ("save", scene.world.address, "--image", IMAGE, "--replace")
    struck.run(scene.site, "before", "hand-over", "KILL", *words)
    if before == "partial that says saved":
        for path in struck.journals(scene.site):
            path.unlink()
        _say_saved(partial)


def _say_saved(partial: Path) -> None:
    import dataclasses

    from mapsave.image import formats, superblock

    with partial.open("r+b") as file:
        block, _ = formats.slots(file.fileno())
        assert block is not None
        size = max(os.fstat(file.fileno()).st_size, block.stream_offset)
        file.truncate(size)
        said = dataclasses.replace(block, state=superblock.State.SAVED, file_length=size)
        superblock.write(file.fileno(), said)


def _save(scene: Scene) -> None:
    plan = scene.plan
    words = ["save", scene.world.address, "--image", IMAGE, *plan.arguments]
    words += ["--replace"] if plan.replaces else []
    with ExitStack() as stack:
        if plan.limit is not None:
            stack.enter_context(limits.held(scene.guest, *plan.limit))
            scene.meet("limited")
        if plan.leave_free is not None:
            assert scene.site.disk is not None
            room = _free(scene.site.disk)
            if room > plan.leave_free:
                stack.enter_context(storage.filled(scene.site.disk, leave=plan.leave_free))
                scene.meet("filled")
        if plan.service:
            _by_service(scene, words)
            return
        done = scene.mapsave(*words, blow=plan.blow)
        is_readable = plan.between != "disk is back" and not scene.away.exists()
        if plan.leave_free is None and is_readable:
            judge.claims(scene, done)
    if plan.leave_free is not None:
        judge.claims(scene, done)


def _free(disk: Path) -> int:
    import os

    room = os.statvfs(disk)
    return room.f_bavail * room.f_frsize


def _by_service(scene: Scene, words: list[str]) -> None:
    """Have a service do the save, which may be killed at a step; the next one recovers."""
    strike = scene.plan.blow.strike
    command, env = None, {"MAPSAVE_TEST_MET": str(guests.met_in(scene.directory))}
    if strike is not None:
        command = [sys.executable, "-m", "tests.faults.killer", *strike]
    with ExitStack() as stack:
        first = stack.enter_context(service.started(scene.site, command=command, env=env))
        service.await_answer(first)
        client = stack.enter_context(scene.site.start(*words, "--json"))
        killed = strike is not None and strike[2] == "KILL"
        with suppress(TimeoutError):
            _await_either(first.process, client, killed=killed)
        if first.process.poll() is None:
            first.signal(signal.SIGTERM)
        code = first.process.wait(wait.LONG)
        if code not in (0, -9 if killed else 0):
            scene.violate(f"the service ended with {code}: {first.logged()[-400:]}")
        if scene.plan.between == "database damaged":
            rng = random.Random(f"database-{scene.plan.seed}")
            scene.meet(f"database: {damage.database(scene.site.state / 'journal.db', rng)}")
        with service.running(scene.site) as second:
            interrupted.await_recovery(second)
            done = blows.ended(client, words)
            scene.note(f"through the service: {done}")
            if done.code is None or done.code < 0 or (done.code == 1 and not killed):
                scene.violate(f"through the service: {done}")
            second.stop()
        if "Traceback" in first.logged():
            scene.violate(f"traceback in the service: {first.logged()[-900:]}")
    if done.code == 0:
        judge.claims(scene, done)


def _await_either(service_process, client, *, killed: bool) -> None:  # type: ignore[no-untyped-def]
    """Wait until the service has died of what strikes it, or the command has ended."""
    deadline = time.monotonic() + wait.LONG
    while service_process.poll() is None and client.poll() is None:
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.01)


def _between(scene: Scene) -> None:
    """Do what happens after the save, and before the recovery."""
    match scene.plan.between:
        case None | "database damaged":
            return
        case "guest dies":
            scene.guest.end()
        case "disk is back":
            scene.site.comes_back()
        case "read-only":
            assert scene.site.disk is not None
            with suppress(AssertionError), storage.read_only(scene.site.disk):
                scene.mapsave("recover")
        case "directory away":
            scene.site.images.rename(scene.away)
            scene.mapsave("recover")
            deeds.bring_back(scene)
        case "journal damaged":
            rng = random.Random(f"damage-{scene.plan.seed}")
            for path in struck.journals(scene.site):
                scene.meet(f"journal damaged: {damage.journal(path, rng)}")
        case deed:
            deeds.DEEDS[deed](scene)
    scene.meet(f"between: {scene.plan.between}")


def _retry(scene: Scene) -> None:
    """Save again in peace, as a job does: it must work, whatever failed before."""
    guest = scene.guest
    if scene.plan.shape.state == "suspended":
        return  # it is refused, every time
    if guest.status() == "postmigrate":
        guest.monitor.execute("cont")
        scene.plan = _others(scene.plan)
    path = scene.site.images / RETRY
    words = ["save", scene.world.address, "--image", RETRY, "--format", scene.plan.format]
    done = scene.mapsave(*words)
    if done.code != 0:
        refused = done.error_id == "check.kept_by_qemu" and judge.kept_by_qemu(scene, guest)
        if not refused:
            scene.violate(f"the second save fails: {done}")
        return
    if not guest.ends_within(judge.SOON):
        scene.violate("the second save did not end the guest")
        guest.end()
    restoring.in_peace(scene, path)


def _others(plan: Plan) -> Plan:
    import dataclasses

    return dataclasses.replace(plan, tags=plan.tags | {"others"})
