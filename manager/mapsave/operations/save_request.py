"""What is asked of a save: the request, completed by configuration, and where the image goes."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from typing import TYPE_CHECKING, Any, Literal

from mapsave import errors
from mapsave.image import store, superblock
from mapsave.labels import labelling, policy
from mapsave.plan.strategy import Wishes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mapsave.config import Config, Guest
    from mapsave.monitor.domain import Domain

_READABLE = 150  # bytes of a guest's name that its images are named by


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of a save. ``image`` is a path or a name in the image directory.

    ``job`` is the name of the save job that asks, and goes into the image's metadata. With
    ``replace_only`` no image is replaced but one of the guest of that name.
    """

    image: str | None = None
    then: Literal["quit", "resume", "leave"] = "quit"
    live: bool = False
    wishes: Wishes = dataclasses.field(default_factory=Wishes)
    policy: str = "auto"
    replace: bool = False
    replace_only: str | None = None
    timeout: float | None = None
    format: Literal["native", "libvirt"] = "native"
    job: str | None = None
    stream_offset: int = superblock.DEFAULT_STREAM_OFFSET


def request(config: Config, guest: Guest, **chosen: Any) -> Request:
    """Return the request for what was ``chosen``, completed by the guest's and general settings.

    ``chosen`` holds ``image``, ``replace``, ``replace_only``, ``timeout``, ``job`` and any of the
    settings of ``config.SaveSettings``; those that are None are filled in.
    """
    general = config.save

    def pick(name: str) -> Any:
        value = chosen.get(name)
        return getattr(general, name) if value is None else value

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
        replace_only=chosen.get("replace_only"),
        timeout=chosen.get("timeout"),
        format=_format(guest, pick("format")),
        job=chosen.get("job"),
    )


def _format(guest: Guest, wanted: str) -> Literal["native", "libvirt"]:
    """Return the image's format: if not said otherwise, the one that ``virsh restore`` takes.

    Raises Unsupported.
    """
    if wanted == "auto":
        return "native" if guest.libvirt is None else "libvirt"
    if wanted == "libvirt" and guest.libvirt is None:
        raise errors.Unsupported(
            f"guest {guest.name!r} is not one of libvirt, so there is no domain XML for an image "
            "of libvirt's format",
            hint="leave format at auto, or use 'native'",
        )
    return "libvirt" if wanted == "libvirt" else "native"


def policy_name(config: Config, guest: str, asked: str | None = None) -> str:
    """Return the label policy: the one asked for, the guest's, the general one, ``auto``."""
    known = config.guests.get(guest)
    own = known.policy if known is not None else None
    return asked or own or config.save.policy or "auto"


def load_policy(config: Config, name: str) -> policy.Policy:
    """Return the policy ``name``. Raises UnknownPolicy, ConfigError."""
    return policy.load(name, [config.policies] if config.policies else [])


def policy_labelling(
    config: Config, name: str, domain: Domain | None = None
) -> labelling.Labelling:
    """Return the policy ``name`` ready to be applied.

    Where the policy leaves SELinux's label open, a domain's image gets the one of its own disks.

    Raises UnknownPolicy, ConfigError.
    """
    found = load_policy(config, name)
    label = domain.image_label if domain is not None else None
    if label and found.selinux.label is None and found.selinux.image_type is None:
        selinux = dataclasses.replace(found.selinux, label=label)
        found = dataclasses.replace(found, selinux=selinux)
    return labelling.Labelling(found)


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
    name = (
        guest.libvirt.domain if guest.libvirt and guest.name.startswith("libvirt") else guest.name
    )
    plain = name.removeprefix("qmp:").replace("/", "_").strip("_")
    if len(raw := os.fsencode(plain)) > _READABLE:
        plain = raw[:_READABLE].decode(errors="ignore")  # the last character may be cut through
    names = (f"{plain}-{stamp}{suffix}.mapsave" for suffix in ("", *range(-2, -1000, -1)))
    return next(name for name in names if not held.exists(name))
