"""Clones: several guests from one image, each restored instantly into a QEMU of its own.

How one is started is ``clone:`` of its guest in the configuration. They share the image's pages in
the page cache. The image stays as it is: its own guest may still be restored from it.
"""

import asyncio
import collections
import dataclasses
import itertools
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Literal, TypedDict

from mapsave import errors
from mapsave.config import Config, Guest
from mapsave.evacuation import guests
from mapsave.image import image
from mapsave.jobs import outcome
from mapsave.migration.progress import Progress, Report, silent
from mapsave.operations import (
    answering,
    attach,
    bounds,
    guard,
    images,
    locks,
    restore_request,
    restored_notes,
)
from mapsave.operations.results import RestoreResult
from mapsave.strict_json import Facts

Restorer = Callable[[restore_request.Request, Report], Awaitable[RestoreResult]]

PARALLEL = 8
_MOST_NAMES = 10_000


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked: clones with the first ``count`` numbers that are free, or those of ``names``.

    One where neither is said.

    ``guest`` is whose ``clone:`` is used, if it is not the image's own; ``parallel`` says how many
    are started at once (8 if not said). The others are as in ``restore_request.Request``.
    """

    image: str
    count: int | None = None
    names: tuple[str, ...] = ()
    guest: str | None = None
    parallel: int | None = None
    run: Literal["as-saved", "run", "paused"] = "as-saved"
    again: bool = False
    force: bool = False
    trust_image: bool = False
    for_operator: bool = False

    def of_one(self, name: str) -> restore_request.Request:
        """Return the request of the restore that makes the clone ``name``."""
        return restore_request.Request(
            image=self.image,
            guest=name,
            run=self.run,
            again=self.again,
            force=self.force,
            trust_image=self.trust_image,
            for_operator=self.for_operator,
            instant="on",
            is_clone=True,
        )


class Line(TypedDict):
    """One clone, as the summary has it."""

    guest: str
    outcome: Literal["cloned", "failed"]
    result: Facts | None
    error: errors.ErrorDict | None


class Cloned(TypedDict):
    """What ``mapsave clone --json`` prints; ``clone_of`` is the guest whose template was used."""

    image: str
    clone_of: str
    clones: list[Line]
    cloned: int
    failed: int
    duration_s: float
    exit_code: int


@dataclasses.dataclass
class _Clone:
    name: str
    result: RestoreResult | None = None
    error: errors.MapsaveError | None = None

    def line(self) -> Line:
        return {
            "guest": self.name,
            "outcome": "failed" if self.result is None else "cloned",
            "result": self.result.as_dict() if self.result is not None else None,
            "error": self.error.as_dict() if self.error is not None else None,
        }


async def clone(
    config: Config, request: Request, restorer: Restorer, report: Report = silent
) -> Cloned:
    """Start the clones, and return what became of each; one that fails prevents no other.

    ``restorer`` restores one. Raises UsageError, NoDestination where no template says how one is
    started, RoleMissing, AlreadyRestored, and what is wrong with the image; nothing is touched
    then. Cancelled, it raises Interrupted, which names the clones that run.
    """
    began = asyncio.get_running_loop().time()
    if request.names and request.count is not None:
        raise errors.UsageError("either how many clones is said, or their names, not both")
    path = images.resolve(request.image, config)
    request = dataclasses.replace(request, image=path)
    guest = await answering.within(os.path.dirname(path), _template, config, request)
    names = request.names or await answering.within(
        config.images, _free_names, config, guest, request.count or 1
    )
    _check_names(config, guest, names)
    clones = [_Clone(name) for name in names]
    slots = asyncio.Semaphore(request.parallel or PARALLEL)

    async def one(each: _Clone) -> None:
        async with slots:
            try:
                obstacle = await answering.within(config.images, _obstacle, config, each.name)
                if obstacle is not None:
                    raise obstacle
                each.result = await restorer(request.of_one(each.name), silent)
            except Exception as error:
                # Not even a bug with one clone must cost the others theirs.
                each.error = errors.as_ours(error)
        ended = sum(clone.result is not None or clone.error is not None for clone in clones)
        report(Progress(f"{ended} of {len(clones)} clones"))

    try:
        async with asyncio.TaskGroup() as group:
            for each in clones:
                group.create_task(one(each))
    except asyncio.CancelledError:
        raise _interrupted(clones) from None
    counts = collections.Counter(each.result is not None for each in clones)
    return {
        "image": path,
        "clone_of": guest.name,
        "clones": [each.line() for each in clones],
        "cloned": counts[True],
        "failed": counts[False],
        "duration_s": round(asyncio.get_running_loop().time() - began, 6),
        "exit_code": outcome.worst(each.error.exit_code for each in clones if each.error),
    }


def _interrupted(clones: Sequence[_Clone]) -> errors.Interrupted:
    names = [each.name for each in clones if each.result is not None]
    so_far = f"started before that: {', '.join(names)}" if names else "no clone had been started"
    return errors.Interrupted(
        f"interrupted; the clones in progress were rolled back, {so_far}",
        hint="those that were started stay" if names else None,
        cloned=names,
    )


def template_of(config: Config, owner: str | None, asked: str | None) -> Guest:
    """Return the guest whose template makes clones of an image of ``owner``, or the one ``asked``.

    Raises NoDestination, UnknownGuest.
    """
    guest = config.guest(asked) if asked is not None else config.named(owner or "")
    if guest is not None and guest.clone_of:  # an image of a clone
        guest = config.named(guest.clone_of)
    if guest is None or guest.clone is None:
        name = asked or owner
        raise errors.NoDestination(
            f"nothing says how clones of guest {name!r} are started",
            hint="add 'clone:' to the guest in the configuration (docs/instant.md), or name "
            "another guest with --guest",
        )
    return guest


def _template(config: Config, request: Request) -> Guest:
    """Return whose template is used, once the image is fit for clones. Blocks."""
    with image.opened(request.image) as opened:
        guest = template_of(config, bounds.owner(opened.metadata), request.guest)
        if request.for_operator:
            bounds.check_template(guest, request.image)
        if not request.again:
            restored_notes.check_unused(config.state, opened)
    return guest


def _check_names(config: Config, guest: Guest, names: Sequence[str]) -> None:
    assert guest.clone is not None
    for name, count in collections.Counter(names).items():
        if count > 1:
            raise errors.UsageError(f"the name {name!r} is given {count} times")
        known = config.named(name)
        if known is None or known.clone_of != guest.name:
            pattern = guest.clone.names(guest.name)
            number = ", a number" if guest.clone.is_numbered else ""
            raise errors.UsageError(
                f"{name!r} cannot be a clone of guest {guest.name!r}: their names are {pattern!r}"
                f"{number}",
                hint="'clone: {name: ...}' of the guest in the configuration says so",
            )


def _free_names(config: Config, guest: Guest, count: int) -> tuple[str, ...]:
    """Return the first names that no guest has, be it running or in an image. Blocks."""
    free = (name for name in _names(guest) if _is_free(config, guest, name))
    found = tuple(itertools.islice(free, count))
    if len(found) < count:
        raise errors.Refused(
            f"only {len(found)} of {_MOST_NAMES} clones of guest {guest.name!r} could be started: "
            "the others run, are in images, or their monitors cannot be looked at",
            hint="name them with --name",
        )
    return found


def _names(guest: Guest) -> Iterator[str]:
    assert guest.clone is not None
    before, _, after = guest.clone.names(guest.name).rpartition("{n}")
    return (f"{before}{number}{after}" for number in range(1, _MOST_NAMES + 1))


def _is_free(config: Config, guest: Guest, name: str) -> bool:
    found = config.named(name)  # it may be a guest of its own, or a clone of another
    is_clone = found is not None and found.clone_of == guest.name
    return is_clone and _obstacle(config, name) is None


def _obstacle(config: Config, name: str) -> errors.MapsaveError | None:
    """Return why a clone of that name cannot be started: it runs, or its memory is in an image.

    A hook before its restore, such as one that makes its disk, must not run then. Blocks.
    """
    guest = config.guest(name)
    socket = attach.socket_path(guest, config)
    if guests.listens(socket) or locks.is_held(config.state, attach.Monitor.at(socket).key):
        return errors.Busy(
            f"guest {name!r} is already running at qmp:{socket}",
            hint="choose another name, or let --count choose one",
        )
    try:
        guard.check(config, guest)
    except errors.GuestSaved as error:
        return error
    return None
