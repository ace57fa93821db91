"""The request of a save: completed by configuration, its names resolved, and the image's place."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from msgspec import structs

from mapsave import errors, shielded
from mapsave.config import Config, Guest, SaveSettings, Then
from mapsave.image import partial_names, store, superblock
from mapsave.labels import labelling, policy
from mapsave.operations import answering, locks

if TYPE_CHECKING:
    from mapsave.monitor.domain import Domain
    from mapsave.operations.managed_place import Managed

_READABLE = 150  # bytes of a guest's name that its images are named by


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of a save. ``image`` is a path or a name in the image directory.

    ``settings`` are complete; ``format`` and ``policy`` are the loaded objects, not their names.
    The user's ``note``, and ``job``, the name of the save job that asks, go into the image's
    metadata. One that ``is_urgent`` does not measure the directory first. One that is
    ``for_shutdown`` is managed by libvirt where it can be, unless the settings say otherwise. With
    ``replace_only`` no image is replaced but one of the guest of that name, with ``in_use`` also
    one that a guest lives on. ``timeout`` in seconds, ``bandwidth`` in bytes per second; 0 is no
    limit.
    """

    image: str | None = None
    settings: SaveSettings = dataclasses.field(default_factory=SaveSettings)
    format: Literal["native", "libvirt"] = "native"
    policy: policy.Policy = policy.BUILT_IN["auto"]
    replace: bool = False
    replace_only: str | None = None
    in_use: bool = False
    timeout: float | None = None
    note: str | None = None
    job: str | None = None
    bandwidth: int = 0
    is_urgent: bool = False
    for_shutdown: bool = False
    stream_offset: int = superblock.DEFAULT_STREAM_OFFSET

    @property
    def wants_checkpoint(self) -> bool:
        """Whether a checkpoint is taken, or with ``auto`` would be if it can."""
        settings = self.settings
        can = settings.then != "quit" and not settings.live and settings.prove != "pages"
        return settings.method == "checkpoint" or (settings.method == "auto" and can)

    def live_instead(self) -> Request:
        """Return a request for a live save instead of a checkpoint, whose pause was too long."""
        settings = structs.replace(self.settings, method="save", live=True)
        return dataclasses.replace(self, settings=settings)

    def then_for(self, *, runs: bool) -> Then:
        """Return what becomes of the guest; one that did not run is not started by a ``resume``."""
        return "leave" if self.settings.then == "resume" and not runs else self.settings.then


def request(
    config: Config,
    guest: Guest,
    *,
    image: str | None = None,
    policy: str | None = None,
    replace: bool = False,
    replace_only: str | None = None,
    in_use: bool = False,
    timeout: float | None = None,
    note: str | None = None,
    job: str | None = None,
    bandwidth: int = 0,
    **chosen: object,
) -> Request:
    """Return the request for the ``SaveSettings`` that are ``chosen``, completed by configuration.

    Raises Unsupported for a format that the guest cannot have, UnknownPolicy, ConfigError.
    """
    known = {name: value for name, value in chosen.items() if value is not None}
    own = guest.save.settings() if guest.save is not None else {}
    settings = structs.replace(config.save, **(own | known))
    if settings.method == "checkpoint":
        _check_checkpoint(settings)
    if settings.managed == "on":
        _check_managed(guest, image, settings)
    return Request(
        image=image,
        settings=settings,
        format=_format(guest, settings.format),
        policy=policy_of(config, guest, policy),
        replace=replace,
        replace_only=replace_only,
        in_use=in_use,
        timeout=timeout,
        note=note,
        job=job,
        bandwidth=bandwidth,
    )


def _format(guest: Guest, wanted: str) -> Literal["native", "libvirt"]:
    """Return the image's format: by default what ``virsh restore`` takes. Raises Unsupported."""
    if wanted == "libvirt" and guest.libvirt is None:
        raise errors.Unsupported(
            f"guest {guest.name!r} is not a libvirt guest, so there is no domain XML for an "
            "image in libvirt format",
            hint="set format to auto or native",
        )
    is_libvirt = wanted == "libvirt" or (wanted == "auto" and guest.libvirt is not None)
    return "libvirt" if is_libvirt else "native"


def _check_checkpoint(settings: SaveSettings) -> None:
    """Raise UsageError where what is asked does not go with a checkpoint."""
    if settings.then == "quit":
        raise errors.UsageError(
            "a checkpoint does not shut the guest down",
            hint="set then to resume or leave, or method to save",
        )
    if settings.live:
        raise errors.UsageError(
            "a checkpoint pauses the guest for a moment: it cannot be a live save",
            hint="omit --live, or set method to save",
        )
    if settings.prove == "pages":
        raise errors.UsageError(
            "the guest runs again before a checkpoint could be compared with its memory",
            hint="set prove to load or none",
        )


def _check_managed(guest: Guest, image: str | None, settings: SaveSettings) -> None:
    """Raise Unsupported, UsageError where what is asked does not go with a managed save."""
    if guest.libvirt is None:
        raise errors.Unsupported(
            f"guest {guest.name!r} is not a libvirt guest, so libvirt keeps no managed save of it",
            hint="omit --managed, or set managed to auto",
        )
    if image is not None:
        raise errors.UsageError(
            "libvirt chooses place and name of a managed save", hint="omit --image or --managed"
        )
    if settings.format == "native":
        raise errors.UsageError(
            "libvirt does not read the native format", hint="omit --format or --managed"
        )
    if settings.then != "quit":
        raise errors.UsageError(
            f"with then: {settings.then} the guest could change its disks, and libvirt would "
            "restore the managed save over them at its next start",
            hint="a managed save needs then: quit",
        )


def policy_of(config: Config, guest: Guest | None, name: str | None = None) -> policy.Policy:
    """Return the label policy ``name``, else the guest's, the general one, or ``auto``.

    Raises UnknownPolicy, ConfigError.
    """
    own = guest.policy if guest is not None else None
    search = [config.policies] if config.policies else []
    return policy.load(name or own or config.save.policy or "auto", search)


def policy_labelling(policy: policy.Policy, domain: Domain | None = None) -> labelling.Labelling:
    """Return the policy ready to be applied. Raises LabelUnavailable.

    Where the policy leaves SELinux's label open, a domain's image gets the one of its own disks.
    """
    label = domain.image_label if domain is not None else None
    if label and policy.selinux.label is None and policy.selinux.image_type is None:
        selinux = structs.replace(policy.selinux, label=label)
        policy = structs.replace(policy, selinux=selinux)
    return labelling.Labelling(policy)


@contextlib.asynccontextmanager
async def placed(
    guest: Guest,
    config: Config,
    request: Request,
    managed: Managed | None = None,
    *,
    reserve: bool = False,
) -> AsyncIterator[tuple[store.Directory, str]]:
    """Do as ``place``, off the event loop. Raises BadDirectory where the storage hangs."""
    directory = os.path.dirname(request.image or "") or config.images
    if managed is not None:
        directory = managed.directory
    await answering.check(directory, writable=True)
    placing = place(guest, config, request, managed, reserve=reserve)
    with answering.reported(directory):
        async with shielded.entered(placing) as found:
            yield found


@contextlib.contextmanager
def place(
    guest: Guest,
    config: Config,
    request: Request,
    managed: Managed | None = None,
    *,
    reserve: bool = False,
) -> Iterator[tuple[store.Directory, str]]:
    """Yield directory and name of the image; by default the guest's with the time, made unique.

    A ``managed`` one has its place. With ``reserve`` no other save gets such a name in the
    meantime. Raises as ``locks.held``.
    """
    if managed is not None:
        store.check_name(managed.name)
        with store.directory(managed.directory) as held:
            yield held, managed.name
        return
    if request.image is None:
        with store.directory(config.images, create=True) as held, contextlib.ExitStack() as stack:
            yield held, _unused_name(guest, held, config.state if reserve else None, stack)
        return
    path, name = os.path.split(request.image)
    store.check_name(name)
    with store.directory(path or config.images, create=not path) as held:
        yield held, name


def _unused_name(
    guest: Guest, held: store.Directory, state: Path | None, stack: contextlib.ExitStack
) -> str:
    """Return a name that is free; with ``state`` it is locked there until ``stack`` is closed.

    Names of several guests may be alike: those of two libvirt daemons, or ``qmp:/a/b`` and ``a_b``.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    name = (
        guest.libvirt.domain if guest.libvirt and guest.name.startswith("libvirt") else guest.name
    )
    plain = name.removeprefix("qmp:").replace("/", "_").strip("_")
    if len(raw := os.fsencode(plain)) > _READABLE:
        plain = raw[:_READABLE].decode(errors="ignore")  # the last character may be cut through
    for number in itertools.count(1):
        name = f"{plain}-{stamp}" + (f"-{number}" if number > 1 else "") + ".mapsave"
        # A lock a number, not a name: its file stays, and there are only so many a second.
        key = f"name:{held.path}/{plain}:{number}"
        with contextlib.ExitStack() as lock, contextlib.suppress(errors.Busy):
            if state is not None:
                lock.enter_context(locks.held(state, f"the name {name!r}", key))
            if not held.exists(name) and not held.exists(partial_names.partial_name(name)):
                stack.enter_context(lock.pop_all())
                return name
    raise AssertionError  # the numbers do not end
