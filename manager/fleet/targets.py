"""The guests of save-all: looked at while they run, and put into the order of their saves."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from manager import errors
from manager.fleet import guests
from manager.image import store
from manager.operations import attach, preview, save_request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from manager.config import Config, Guest, Then

Outcome = Literal["planned", "saved", "failed", "no_time", "not_running", "skipped"]

_AT_ONCE = 8
# Seconds. A monitor that somebody else holds is found out in ten.
_PATIENCE = 15.0
_LEAST_PATIENCE = 1.0
_RUNNING = frozenset(("running", "suspended"))
_LEFT = "postmigrate"


@dataclasses.dataclass
class Target:
    """One guest of a save-all, ``planned`` until its save has ended one way or the other.

    ``size`` is in bytes: what will have to be written, ``ram`` with the zero pages. ``image`` is
    the path that it gets, ``seconds`` how long that will likely take. ``is_alive`` tells whether it
    lives beside whatever image there is of it, which is stale then.
    """

    guest: Guest
    outcome: Outcome = "planned"
    request: save_request.Request | None = None
    run_state: str | None = None
    is_alive: bool = False
    size: int = 0
    ram: int = 0
    image: str | None = None
    seconds: float | None = None
    result: dict[str, Any] | None = None
    error: errors.MapsaveError | None = None

    @property
    def name(self) -> str:
        """The guest's name."""
        return self.guest.name

    @property
    def ran(self) -> bool:
        """Whether its processors ran when it was looked at."""
        return self.run_state in _RUNNING

    def fail(self, error: errors.MapsaveError, outcome: Outcome = "failed") -> None:
        """Record what stood against the save."""
        self.outcome, self.error = outcome, error

    def as_dict(self) -> dict[str, Any]:
        """Return the guest's line in the summary."""
        return {
            "guest": self.name,
            "outcome": self.outcome,
            "result": self.result,
            "error": self.error.as_dict() if self.error else None,
            "size_bytes": self.size,
            "priority": self.guest.priority,
            "image": self.image,
            "estimate_s": self.seconds,
        }


async def examined(
    config: Config, found: Sequence[Guest], then: Then, deadline: float | None
) -> list[Target]:
    """Look at all guests, which run on meanwhile; return them in the order of their saves.

    The higher priority comes first, among equals what is written soonest, so that as many guests as
    can be are safe early. ``deadline`` is in seconds; a guest that does not answer costs a quarter
    of it at most.
    """
    limit = _PATIENCE if deadline is None else deadline / 4
    patience = max(min(limit, _PATIENCE), _LEAST_PATIENCE)
    slots = asyncio.Semaphore(_AT_ONCE)

    async def one(guest: Guest) -> Target:
        target = Target(guest)
        async with slots:
            try:
                await _examine(target, config, then, patience)
            except errors.MapsaveError as error:
                target.fail(error)
            except Exception as error:
                # A bug with one guest must not cost the others their save.
                target.fail(errors.MapsaveError(f"unexpected {type(error).__name__}: {error}"))
        return target

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(guest)) for guest in found]
    targets = [task.result() for task in tasks]
    targets.sort(key=lambda each: (-each.guest.priority, each.size))
    _name_images(targets)
    return targets


async def _examine(target: Target, config: Config, then: Then, patience: float) -> None:
    guest = target.guest
    if guest.emulator is not None and not guests.listens(attach.socket_path(guest, config)):
        target.outcome = "not_running"  # to look at it would start it
        return
    request = save_request.request(config, guest, then=then)
    try:
        async with asyncio.timeout(patience):
            found, error = await preview.preview(guest, config, request)
    except TimeoutError:
        target.is_alive = guest.libvirt is None
        raise errors.Unreachable(
            f"guest {guest.name!r}: its monitor has not answered within {patience:g} s"
        ) from None
    except errors.MapsaveError as unreached:
        if not guests.is_gone(guest, config, unreached):
            # Somebody listens at its socket. A libvirtd that is not reached says nothing.
            target.is_alive = guest.libvirt is None
            raise
        target.outcome = "not_running"
        return
    target.run_state = found["run_state"]
    target.is_alive = target.run_state not in (_LEFT, "inmigrate")
    target.ram = found["memory_bytes"]
    target.size = min(found["resident_bytes"] or target.ram, target.ram)
    if found["strategy"]["zero_pages"] == "none":
        target.size = target.ram
    target.request, target.image = request, found["image"]
    if target.run_state == _LEFT and (path := await asyncio.to_thread(_image_of, guest, config)):
        target.outcome, target.image = "skipped", path
    elif error is not None:
        target.fail(error)


def _image_of(guest: Guest, config: Config) -> str | None:
    """Return the image that a guest lies in which was saved and left; None where there is none."""
    try:
        with store.directory(config.images) as held:
            found = store.entries(held)
    except errors.MapsaveError:
        return None
    wanted = (guest.name, "saved")
    return next((each.path for each in found if (each.guest, each.state) == wanted), None)


def _name_images(targets: Sequence[Target]) -> None:
    """Give each guest an image of its own: names may differ in what a file name cannot hold."""
    taken: set[str] = set()
    for target in targets:
        if target.request is None or target.image is None or target.outcome != "planned":
            continue
        path, number = target.image, 1
        while path in taken:
            number += 1
            path = f"{target.image.removesuffix('.mapsave')}-{number}.mapsave"
        taken.add(path)
        target.image = path
        target.request = dataclasses.replace(target.request, image=path)
