"""What must hold: the guest is alive in its former state, or its image restores with equal RAM."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mapsave import errors
from mapsave.image import extents, image
from mapsave.image.superblock import State

from tests.campaign.guests import Guest
from tests.campaign.scene import Done, Scene
from tests.faults import struck
from tests.kit import ram

MIB = 1 << 20
SOON = 60.0  # seconds: a guest that was told to end does so, on a busy host too
OLD = b"an older file of that name"
FOREIGN = b"another program's file" * 500
# A guest that did not run has these run states by turns; postmigrate is QEMU's, and documented.
_STILL = frozenset(("prelaunch", "paused", "postmigrate"))
_LEAVES = {"quit": "ended", "resume": "running", "leave": "postmigrate"}
Found = Literal["none", "old", "saved", "marked", "bad"]


def look(path: Path) -> Found:
    """Return what is under an image's name."""
    try:
        if path.read_bytes()[: len(OLD)] == OLD:
            return "old"
        with image.opened(path) as opened:
            opened.validate()
            return "saved" if opened.block.state is State.SAVED else "marked"
    except (FileNotFoundError, errors.ImageNotFound):
        return "none"
    except errors.MapsaveError:
        return "bad"


def used_up(scene: Scene, path: Path) -> bool:
    """Return whether an image is known to have been restored: by its mark, or by the state."""
    if look(path) == "marked":
        return True
    done = scene.mapsave("restore", str(path), "--into", f"qmp:{scene.directory}/nobody")
    return done.error_id == "check.already_restored"


@dataclass(frozen=True)
class _Part:
    """A part of a block: firmware that runs uses other parts itself."""

    contents: ram.Contents
    block: str
    first: int
    last: int

    def lengths(self) -> dict[str, int]:
        return {self.block: self.contents.lengths()[self.block]}

    def chunks(self, block: str) -> Iterator[bytes]:
        whole = b"".join(self.contents.chunks(block))
        yield whole[self.first : self.last]


def same_ram(scene: Scene, guest: Guest, what: str, *, ran: bool) -> None:
    """See that a guest has the RAM that it had; where firmware ``ran``, what is not its own."""
    before: ram.Contents = scene.before
    after: ram.Contents = guest.ram
    if ran and scene.plan.shape.firmware:
        sizes = before.lengths()
        largest = max(sizes, key=lambda name: sizes[name])
        # SeaBIOS uses the first MiB, and what is below the largest power of two.
        last = (1 << (sizes[largest].bit_length() - 1)) - 2 * MIB
        before = _Part(before, largest, 2 * MIB, last)
        after = _Part(after, largest, 2 * MIB, last)
    try:
        ram.assert_same(before, after)
    except AssertionError as error:
        scene.violate(f"{what}: RAM differs: {error}")


def may_have_run(scene: Scene) -> bool:
    """Return whether the guest, when it was saved, had run since its RAM was copied."""
    return scene.plan.shape.state == "running" or scene.plan.others_at_work


def as_before(scene: Scene, when: str) -> None:
    """See that the guest is alive and as it was."""
    guest, plan = scene.guest, scene.plan
    if not guest.alive():
        if not plan.guest_may_die:
            scene.violate(f"{when}: GUEST LOST, without an image")
        return
    found = guest.state()
    ok = {scene.found.run_state}
    if plan.shape.state != "running":
        ok |= _STILL if scene.found.run_state in _STILL else {"postmigrate"}
    if plan.others_at_work:
        ok |= {"running", *_STILL}
    if found.run_state not in ok:
        scene.violate(f"{when}: the guest was {scene.found.run_state}, is {found.run_state}")
    settings(scene, guest, when)
    if found.run_state != "running":
        same_ram(scene, guest, when, ran=may_have_run(scene))


def kept_by_qemu(scene: Scene, guest: Guest) -> bool:
    """Return whether QEMU holds what was taken back from it (docs/hazards.md), as was reported."""
    reported = any(".kept_by_qemu" in line for line in scene.trace)
    return reported and any(not held["fds"] for held in guest.state().fdsets)


def settings(scene: Scene, guest: Guest, when: str) -> None:
    """See that QEMU's settings and descriptor sets are as they were found."""
    if "migrate" in str(scene.plan.blow):
        return  # others have begun a migration, during which nothing can be set
    if kept_by_qemu(scene, guest):
        return
    now, before = guest.state(), scene.found
    for what in ("capabilities", "parameters", "fdsets"):
        old, new = getattr(before, what), getattr(now, what)
        if old != new:
            if isinstance(old, dict):
                new = {key: value for key, value in new.items() if old.get(key) != value}
            scene.violate(f"{when}: {what} were not put back: {new}")


def claims(scene: Scene, done: Done) -> None:
    """See that the exit code and the error of a save say what really happened."""
    if done.code is None or done.code < 0:
        return
    found = look(scene.image)
    committed = found in ("saved", "marked")
    if done.code == 0:
        if found != "saved":
            scene.violate(f"exit 0, but the image is {found}")
        _left_as_told(scene, done)
        if scene.plan.is_checkpoint:
            _shares(scene, done)
        return
    if struck.journals(scene.site) or scene.plan.service:
        return  # it is left to recovery, and judged then
    told_of_image = bool(done.error.get("data", {}).get("image"))
    if told_of_image != committed:
        scene.violate(f"the error says image: {told_of_image}, but it is {found}: {done}")
    if committed:
        return
    died = done.error_id == "save.qemu_died"
    if died and scene.guest.alive():
        scene.violate(f"the error says that QEMU exited, but it is running: {done}")
    told = any(word in str(done.error) for word in ("exited", "now ended"))
    if not died and not scene.guest.alive() and not told:
        scene.violate(f"the guest is gone, and the error does not say so: {done}")
    if not (died and scene.plan.guest_may_die):
        as_before(scene, f"after {done}")


def _shares(scene: Scene, done: Done) -> None:
    """See that a checkpoint shares the RAM file's extents, and says how it was taken."""
    part = done.told.get("checkpoint") or {}
    if part.get("pauses") not in (1, 2, 3):
        scene.violate(f"exit 0, but no checkpoint was taken: {part}")
        return
    with scene.image.open("rb") as file:
        shared = extents.shared_bytes(file.fileno(), scene.image.stat().st_size)
    if scene.guest.alive() and not shared and part["shared_bytes"]:
        scene.violate(f"the image shares nothing with the RAM file: {part}")


def _left_as_told(scene: Scene, done: Done) -> None:
    then = str(done.told.get("then", scene.plan.then))
    guest = scene.guest
    if then == "quit":
        if not guest.ends_within(SOON):
            scene.violate(f"exit 0, but the guest is {guest.status()}")
        return
    if not guest.alive():
        if not scene.plan.guest_may_die:
            scene.violate(f"exit 0, --then {then}, but the guest is gone")
        return
    status, wanted = guest.status(), _LEAVES[then]
    if scene.plan.shape.state == "suspended" and then == "resume":
        wanted = "suspended"
    if status != wanted and not scene.plan.others_at_work:
        scene.violate(f"exit 0, --then {then}, but the guest is {status}")
    settings(scene, guest, "after exit 0")


def nothing_left(scene: Scene) -> None:
    """See that recovery has left neither journals nor partial images."""
    if left := [path for path in struck.journals(scene.site) if path.suffix != ".damaged"]:
        scene.violate(
            f"journals left: {[path.name for path in left]}: {left[0].read_text()[-400:]}"
        )
    left = struck.partials(scene.site)
    if scene.plan.before == "partial garbage":
        foreign = [path for path in left if path.read_bytes() == FOREIGN]
        if len(foreign) != 1:
            scene.violate("what mapsave has not written was changed or removed")
        left = [path for path in left if path not in foreign]
    if left:
        scene.violate(f"partial images left: {[path.name for path in left]}")


def settled(scene: Scene) -> Found:
    """See that there is the guest or its image, not neither and not both; return the image."""
    plan, guest = scene.plan, scene.guest
    found = look(scene.image)
    if found == "bad":
        scene.violate("the image is invalid")
    if plan.replaces and found == "none":
        scene.violate("the older file of that name is gone, and nothing took its place")
    lives = guest.alive()
    if found not in ("saved", "marked"):
        as_before(scene, "in the end, without an image")
        return found
    if not lives:
        if found == "marked" and not plan.guest_may_die:
            scene.violate("the guest is gone, and its image is marked: nobody restores it")
        return found
    status = guest.status()
    if found == "saved":
        if plan.then == "quit":
            scene.violate(f"TWINS: the guest is {status} beside an unmarked image")
        elif plan.then == "leave" and status == "running" and not plan.others_at_work:
            scene.violate("TWINS: the guest runs beside an unmarked image, and was to be left")
        elif (
            plan.then == "resume"
            and plan.shape.state == "running"
            and status != "running"
            and not plan.others_at_work
        ):
            scene.violate(f"the guest was to be resumed, and is {status}")
    settings(scene, guest, "in the end, beside the image")
    return found


def restored(scene: Scene, guest: Guest, path: Path, when: str) -> None:
    """See that a guest that was restored has the RAM, and that its image is marked."""
    status = guest.status()
    if status == "running" and not used_up(scene, path):
        scene.violate(f"{when}: TWINS: the restored guest runs, and its image is {look(path)}")
    if status != "running" or not scene.plan.shape.firmware:
        same_ram(scene, guest, when, ran=may_have_run(scene))
    else:
        same_ram(scene, guest, when, ran=True)
    with suppress(AssertionError):
        settings(scene, guest, when)
