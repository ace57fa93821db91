"""What is asked of a save: the request, completed by configuration, and where the image goes."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from typing import TYPE_CHECKING, Any, Literal

from manager import errors
from manager.image import store, superblock
from manager.labels import labelling, policy
from manager.plan.strategy import Wishes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from manager.config import Config, Guest

_READABLE = 150  # characters of a guest's name that its images are named by


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of a save. ``image`` is a path or a name in the image directory."""

    image: str | None = None
    then: Literal["quit", "resume", "leave"] = "quit"
    live: bool = False
    wishes: Wishes = dataclasses.field(default_factory=Wishes)
    policy: str = "auto"
    replace: bool = False
    timeout: float | None = None
    stream_offset: int = superblock.DEFAULT_STREAM_OFFSET


def request(config: Config, guest: Guest, **chosen: Any) -> Request:
    """Return the request for what was ``chosen``, completed by the guest's and general settings.

    ``chosen`` holds ``image``, ``replace``, ``timeout`` and any of the settings of
    ``config.SaveSettings``; those that are None are filled in.
    """
    general = config.save

    def pick(name: str) -> Any:
        value = chosen.get(name)
        return getattr(general, name) if value is None else value

    if pick("format") != "native":
        raise errors.Unsupported(
            f"format {pick('format')!r} is not written by this version", hint="use 'native'"
        )
    channels = pick("channels")
    return Request(
        image=chosen.get("image"),
        then=pick("then"),
        live=pick("live"),
        wishes=Wishes(
            direct_io=pick("direct_io"),
            zero_pages=pick("zero_pages"),
            channels=None if channels == "auto" else channels,
            preallocate=pick("preallocate"),
        ),
        policy=chosen.get("policy") or guest.policy or general.policy or "auto",
        replace=bool(chosen.get("replace")),
        timeout=chosen.get("timeout"),
    )


def policy_labelling(config: Config, name: str) -> labelling.Labelling:
    """Return the policy ``name`` ready to be applied. Raises UnknownPolicy, ConfigError."""
    search = [config.policies] if config.policies else []
    return labelling.Labelling(policy.load(name, search))


@contextlib.contextmanager
def place(guest: Guest, config: Config, request: Request) -> Iterator[tuple[store.Directory, str]]:
    """Yield the directory and the name of the image to be.

    Without a name from the user it is the guest's with the time, made unique.
    """
    if request.image is None:
        with store.directory(config.images, create=True) as held:
            yield held, _unused_name(guest, held)
        return
    path, name = os.path.split(request.image)
    store.check_name(name)
    with store.directory(path or config.images, create=not path) as held:
        yield held, name


def _unused_name(guest: Guest, held: store.Directory) -> str:
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    plain = guest.name.removeprefix("qmp:").replace("/", "_").strip("_")[:_READABLE]
    names = (f"{plain}-{stamp}{suffix}.mapsave" for suffix in ("", *range(-2, -1000, -1)))
    return next(name for name in names if not held.exists(name))
