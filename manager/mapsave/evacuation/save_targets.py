"""The guests of save-all: looked at while they run, and put into the order of their saves."""

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Literal, TypedDict

from msgspec import structs

from mapsave import errors, units
from mapsave.config import Config, Guest, Then
from mapsave.evacuation import guests
from mapsave.image import store
from mapsave.image.metadata import ProcessPart
from mapsave.operations import (
    answering,
    attach,
    in_use,
    locks,
    preview,
    restored_notes,
    save_request,
)
from mapsave.operations.preview import Preview
from mapsave.operations.results import SaveResult
from mapsave.strict_json import Facts

Outcome = Literal["planned", "saved", "failed", "no_time", "not_running", "skipped"]

_AT_ONCE = 8
# Seconds. A monitor in use by another client is noticed within ten.
_PATIENCE = 15.0
_LEAST_PATIENCE = 1.0
_RUNNING = frozenset(("running", "suspended"))
_LEFT = "postmigrate"


class Line(TypedDict):
    """One guest of a save-all, as its summary has it."""

    guest: str
    outcome: Outcome
    result: Facts | None
    error: errors.ErrorDict | None
    size_bytes: int
    priority: int
    image: str | None
    estimate_s: float | None


@dataclasses.dataclass
class Target:
    """One guest of a save-all, ``planned`` until its save has ended one way or the other.

    ``size`` is in bytes: what will have to be written, ``ram`` with the zero pages. ``image`` is
    the path that it gets, ``seconds`` how long that will likely take. ``is_alive`` returns
    whether it is running beside whatever image there is of it, which is stale then. ``locks``
    are the keys of those of its locks that another mapsave holds: it is to be looked at once
    they are free. ``tries`` is how often its save was begun in vain for that. ``lies_in`` is the
    image that an earlier save has left it paused for.
    """

    guest: Guest
    outcome: Outcome = "planned"
    request: save_request.Request | None = None
    run_state: str | None = None
    locks: tuple[str, ...] = ()
    tries: int = 0
    is_alive: bool = False
    lies_in: store.Entry | None = None
    size: int = 0
    ram: int = 0
    image: str | None = None
    seconds: float | None = None
    result: SaveResult | None = None
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

    def line(self) -> Line:
        """Return the guest's line in the summary."""
        return {
            "guest": self.name,
            "outcome": self.outcome,
            "result": self.result.as_dict() if self.result else None,
            "error": self.error.as_dict() if self.error else None,
            "size_bytes": self.size,
            "priority": self.guest.priority,
            "image": self.image,
            "estimate_s": self.seconds,
        }


async def examined(
    config: Config, found: Sequence[Guest], then: Then, deadline: float | None
) -> list[Target]:
    """Look at all guests, which run on in the meantime; return them in the order of their saves.

    The higher priority comes first, among equals what is written soonest, so that as many guests as
    can be are safe early. ``deadline`` is in seconds; a guest that does not answer costs a quarter
    of it at most.
    """
    slots = asyncio.Semaphore(_AT_ONCE)

    async def one(guest: Guest) -> Target:
        target = Target(guest)
        async with slots:
            await look(target, config, then, patience_for(deadline))
        return target

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(guest)) for guest in found]
    targets = [task.result() for task in tasks]
    targets.sort(key=lambda each: (-each.guest.priority, each.size))
    taken: set[str] = set()
    for target in targets:
        if target.outcome == "planned":
            name_image(target, taken)
    return targets


def patience_for(deadline: float | None) -> float:
    """Return for how many seconds a guest is looked at; ``deadline`` in seconds from now."""
    limit = _PATIENCE if deadline is None else deadline / 4
    return max(min(limit, _PATIENCE), _LEAST_PATIENCE)


def held_locks(target: Target, config: Config) -> tuple[str, ...]:
    """Return those of ``locks`` that are still held."""
    return tuple(key for key in target.locks if locks.is_held(config.state, key))


async def look(target: Target, config: Config, then: Then, patience: float) -> None:
    """Look at a guest for at most ``patience`` seconds, and set what is found."""
    try:
        await _examine(target, config, then, patience)
    except Exception as error:
        # Not even a bug with one guest must cost the others their save.
        target.fail(errors.as_ours(error))


async def _examine(target: Target, config: Config, then: Then, patience: float) -> None:
    guest = target.guest
    if guest.emulator is not None and not guests.listens(attach.socket_path(guest, config)):
        target.outcome = "not_running"  # to look at it would start it
        return
    # A monitor serves one client at a time: no one else is heard while another mapsave uses it.
    if guest.libvirt is None and _is_locked(target, config, _monitor_lock(guest, config)):
        return
    try:
        request = save_request.request(config, guest, then=then)
        request = dataclasses.replace(request, for_shutdown=True)
        async with asyncio.timeout(patience):
            found, error = await preview.preview(guest, config, request)
            if error is not None and found["managed"] and request.settings.managed == "auto":
                # Better elsewhere than not at all: its place is libvirt's, and was not asked for.
                request = dataclasses.replace(request, for_shutdown=False)
                found, error = await preview.preview(guest, config, request)
    except (TimeoutError, errors.MapsaveError) as unreached:
        _not_reached(target, config, unreached, patience)
        return
    if _is_locked(target, config, *_locks(guest, found)):
        return
    target.run_state = found["run_state"]
    target.is_alive = target.run_state not in (_LEFT, "inmigrate")
    target.ram = found["memory_bytes"]
    part = found["process"]
    lives_on = in_use.of_process(config.state, (part["pid"], part["started"]) if part else None)
    # What it maps from its image is written as well, though little of that is in memory.
    mapped = lives_on.data_bytes if lives_on is not None else 0
    target.size = min(max(found["resident_bytes"] or target.ram, mapped), target.ram)
    if found["strategy"]["zero_pages"] == "none":
        target.size = target.ram
    if target.run_state == _LEFT:
        target.lies_in = await answering.within(
            config.images, _image_of, guest, config, found["process"]
        )
        target.image = target.lies_in.path
        target.outcome = "skipped"
        return
    managed = structs.replace(request.settings, managed="on" if found["managed"] else "off")
    target.request = dataclasses.replace(request, is_urgent=True, settings=managed)
    target.image = found["image"]
    if error is not None:
        target.fail(error)


def _not_reached(target: Target, config: Config, error: Exception, patience: float) -> None:
    """Set what it means that a guest did not answer. Raises what prevents its save."""
    guest = target.guest
    if guest.libvirt is None and _is_locked(target, config, _monitor_lock(guest, config)):
        return  # another mapsave came first
    if isinstance(error, errors.MapsaveError) and guests.is_gone(guest, config, error):
        target.outcome = "not_running"
        return
    # Somebody listens at its socket. A libvirtd that is not reached says nothing.
    target.is_alive = guest.libvirt is None
    if isinstance(error, errors.MapsaveError):
        raise error
    limit = units.format_duration(patience)
    raise errors.Unreachable(f"guest {guest.name!r}: its monitor has not answered within {limit}")


def _monitor_lock(guest: Guest, config: Config) -> str:
    return attach.Monitor.at(attach.socket_path(guest, config)).key


def _locks(guest: Guest, found: Preview) -> list[str]:
    """Return the keys of the locks that only a guest that answers reveals."""
    keys = []
    if guest.libvirt is not None:
        keys.append(attach.Monitor(uri=guest.libvirt.uri, domain=found["uuid"]).key)
    if found["process"] is not None:
        keys.append(locks.process_key(found["process"]["pid"], found["process"]["started"]))
    return keys


def _is_locked(target: Target, config: Config, *keys: str) -> bool:
    """Return whether another mapsave is at the guest, and set by which locks."""
    target.locks = tuple(key for key in keys if locks.is_held(config.state, key))
    return bool(target.locks)


def ran_before(image: store.Entry) -> bool:
    """Return whether the guest of an image ran until it was saved."""
    return image.metadata.get("run_state") in _RUNNING


def _image_of(guest: Guest, config: Config, process: ProcessPart | None) -> store.Entry:
    """Return the image that a guest lies in whose save left it paused.

    That is the newest one of just this QEMU: an older one, or one after which it kept running, is
    not where the guest is. Raises WrongRunState where there is none, BadDirectory, NotPermitted.
    """
    with store.directory(config.images) as held:
        entries = store.entries(held, restored=restored_notes.noted(config.state))
    complete = [entry for entry in entries if entry.state is not store.EntryState.PARTIAL]
    of_it = [entry for entry in complete if process and entry.metadata.get("process") == process]
    newest = max(of_it, key=lambda entry: str(entry.metadata.get("started")), default=None)
    if (
        newest
        and newest.state is store.EntryState.SAVED
        and newest.metadata.get("then") != "resume"
    ):
        return newest
    raise errors.WrongRunState(
        f"guest {guest.name!r} is paused after an earlier save or migration, and no known image "
        f"in {str(config.images)!r} contains it",
        hint="if its image is safe elsewhere, or was saved by an older mapsave, shut down its "
        "QEMU ('quit' at its monitor); otherwise resume it ('cont') and save it",
    )


def name_image(target: Target, taken: set[str]) -> None:
    """Give a guest an image of its own: names may differ in what a file name cannot hold.

    ``taken`` are the paths of the others; the guest's is added.
    """
    if target.request is None or target.image is None or target.request.settings.managed == "on":
        return  # libvirt has a name for a managed one
    path, number = target.image, 1
    while path in taken:
        number += 1
        path = f"{target.image.removesuffix('.mapsave')}-{number}.mapsave"
    taken.add(path)
    target.image = path
    target.request = dataclasses.replace(target.request, image=path)
