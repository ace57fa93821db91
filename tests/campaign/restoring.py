"""The restore of a run: hit as its plan says, and then in peace. RAM must be equal."""

import random
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.campaign import damage, judge, recovering
from tests.campaign.guests import Guest
from tests.campaign.plan import NOTHING
from tests.campaign.scene import Done, Scene
from tests.faults import struck

# What refuses an image that was damaged: usage, check, restore, image.
_REFUSALS = (2, 3, 5, 6)


def restore(scene: Scene, path: Path) -> None:
    """Restore as the plan says, then in peace where that failed."""
    plan = scene.plan
    if plan.damage is not None:
        scene.meet(f"damaged: {damage.structure(path, random.Random(plan.damage))}")
        _damaged(scene, path)
    elif plan.restore_blow == NOTHING and not plan.destination_rules:
        in_peace(scene, path, plan.restore)
    else:
        is_used_up = _hit(scene, path)
        in_peace(scene, path, ("--again",) if is_used_up else ())


def in_peace(scene: Scene, path: Path, options: tuple[str, ...] = ()) -> None:
    """Restore with nothing in the way: it must work."""
    scene.site.settings.pop("restore", None)
    scene.site.write()
    with scene.world.destination(()) as more:
        done = scene.mapsave("restore", str(path), *options, *more)
        if done.code == 0:
            _good(scene, path, "restored", options)
        else:
            scene.violate(f"restore in peace: {done}")


@contextmanager
def _current(scene: Scene) -> Iterator[Guest | None]:
    """Look at who runs under the guest's name; no one does at the end."""
    guest = scene.world.current()
    if guest is None:
        yield None
        return
    with closing(guest):
        yield guest
        guest.end()


def _good(scene: Scene, path: Path, when: str, options: tuple[str, ...]) -> None:
    """See that a restore that succeeded has left the guest as it was, and the image marked."""
    with _current(scene) as guest:
        if guest is None:
            if "destination dies" not in scene.plan.tags:
                scene.violate(f"{when}: exit 0, but no guest")
            return
        runs = scene.plan.shape.state in ("running", "suspended")
        if "--run" in options or "--paused" in options:
            runs = "--run" in options
        status = guest.status()
        if not scene.plan.others_at_work and (status in ("running", "suspended")) != runs:
            scene.violate(f"{when}: the guest is {status}")
        judge.restored(scene, guest, path, when)
        if not judge.used_up(scene, path):
            scene.violate(f"{when}: the image is {judge.look(path)}")


def _damaged(scene: Scene, path: Path) -> None:
    """See that a damaged image is refused, or gives equal RAM: never other RAM."""
    with scene.world.destination(()) as more:
        done = scene.mapsave("restore", str(path), *more)
        if done.code != 0 and done.code not in _REFUSALS:
            scene.violate(f"a damaged image: {done}")
        with _current(scene) as guest:
            if guest is None:
                return
            if done.code == 0:
                judge.restored(scene, guest, path, "from a damaged image")
            else:
                scene.violate(f"a destination is left after {done}")


def _hit(scene: Scene, path: Path) -> bool:
    """Restore with what goes wrong in it; return whether the image is used up by it."""
    plan = scene.plan
    content = path.read_bytes()
    # What fails in the destination is its reading.
    options = (*plan.restore, *(("--instant", "off") if plan.destination_rules else ()))
    with scene.world.destination(plan.destination_rules) as more:
        done = scene.mapsave("restore", str(path), *options, *more, blow=plan.restore_blow)
        if done.code == 0:
            _good(scene, path, "restored under fire", options)
            if struck.journals(scene.site):
                recovering.recover(scene, ())
        elif done.code is not None and done.code > 0 and not struck.journals(scene.site):
            _undone(scene, path, content, done, launched=not more)
        else:
            recovering.recover(scene, plan.recoveries)
            _recovered(scene, path, launched=not more)
    return judge.used_up(scene, path)


def _recovered(scene: Scene, path: Path, *, launched: bool) -> None:
    """See that recovery has left a guest beside a marked image, or an image and no guest."""
    with _current(scene) as guest:
        if guest is None:
            return
        if guest.status() == "inmigrate":
            if launched:
                scene.violate("a destination is left after recovery")
            return
        judge.restored(scene, guest, path, "restored by recovery")
        if not judge.used_up(scene, path):
            found = judge.look(path)
            scene.violate(f"a guest was restored by recovery; its image: {found}")


def _undone(scene: Scene, path: Path, content: bytes, done: Done, *, launched: bool) -> None:
    """See that a restore that failed has left the image as it was, and no destination.

    Of a guest that others have resumed before its QEMU died the image is marked: it has run.
    """
    deed = scene.plan.restore_blow.deed
    has_run = deed is not None and deed[1].startswith("cont") and "remains marked" in str(done)
    allowed = ("saved", "marked") if has_run else ("saved",)
    if path.read_bytes() != content and (found := judge.look(path)) not in allowed:
        scene.violate(f"after {done} the image is {found}")
    with _current(scene) as guest:
        if guest is not None and launched:
            scene.violate(f"a destination is left ({guest.status()}) after {done}")
