"""Say what to change so that a guest can be checkpointed; nothing is changed."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from mapsave import errors
from mapsave.image import descriptors, reflink, reflink_probe, store
from mapsave.plan import instant, shared_memory

if TYPE_CHECKING:
    from libvirt import virConnect

    from mapsave.config import Config, Guest
    from mapsave.plan.shared_memory import Change

_SYSTEM = (Path("/etc/libvirt"), Path("/var/lib/libvirt/qemu/ram"))
_BACKING = re.compile(r'^\s*memory_backing_dir\s*=\s*"([^"]+)"', re.MULTILINE)


class Step(TypedDict):
    """``where`` to put ``after`` in the place of ``before``, either of which may be empty."""

    where: str
    before: str
    after: str


class Advice(TypedDict):
    """What ``mapsave setup memory --json`` prints: what to change, and what is in the way.

    ``file_system`` is None where it is none of those that share. With no ``steps`` and
    ``obstacles`` all is as it has to be.
    """

    guest: str
    directory: str
    file_system: str | None
    steps: list[Step]
    obstacles: list[str]
    notes: list[str]


async def advise(config: Config, guest: Guest) -> Advice:
    """Return that for a guest, by its ``launch:`` or its domain's definition.

    Raises Unsupported where it has neither, BadDirectory, NotPermitted, UnknownGuest, Unreachable.
    """
    with store.directory(config.images) as held:
        system = reflink.file_system(held.fd)
        advice = Advice(
            guest=guest.name,
            directory=held.path,
            file_system=system,
            steps=[],
            obstacles=[],
            notes=[],
        )
        if system is None:
            advice["obstacles"].append(
                f"images: {held.path!r} is on neither XFS nor btrfs, so images there cannot share "
                "the guest's RAM"
            )
        if guest.libvirt is not None:
            from mapsave.monitor import libvirt_connection

            uri, name = guest.libvirt.uri, guest.libvirt.domain
            async with libvirt_connection.connected(uri) as connection:
                life = await libvirt_connection.find_domain(connection, uri, name)
                xml = await libvirt_connection.call(_definition, connection, life.uuid)
            _of_domain(advice, xml, _backing_directory(uri), held)
        elif guest.launch:
            _of_launch(advice, guest, held)
        else:
            raise errors.Unsupported(
                f"guest {guest.name!r} is neither a libvirt guest nor has 'launch:' in the "
                "configuration, so what starts it is not known",
                hint="docs/checkpoints.md shows the options of a QEMU that is started by hand",
            )
        return advice


def _of_launch(advice: Advice, guest: Guest, held: store.Directory) -> None:
    place, where = held.path, f"launch: of guest {guest.name!r}"

    def file_of(backend: str) -> str:
        return os.path.join(place, f"{guest.name}-{backend}.ram")

    changes = shared_memory.of_command(guest.launch, file_of)
    advice["obstacles"] += instant.obstacles(guest.launch, shares=True)
    for change in changes:
        if change.before != change.after:
            advice["steps"].append(_step(where, change))
        elif not _is_beside(os.path.dirname(change.path), held):
            advice["obstacles"].append(
                f"the RAM file {change.path!r} is not on the file system of {place!r}"
            )
    if changes:
        advice["notes"] += [
            f"instead, mapsave makes the file at each restore, of small folios and without a name, "
            f"with 'memory: {{shared_file: auto}}' of guest {guest.name!r} in the configuration",
            "a file of your own needs mode 0600, and has to be removed when the guest is gone",
        ]


def _of_domain(advice: Advice, xml: str, backing: Path, held: store.Directory) -> None:
    where = f"XML of domain {advice['guest']!r} (virsh edit)"
    advice["steps"] += [_step(where, change) for change in shared_memory.of_domain(xml)]
    if not _is_beside(backing, held):
        advice["steps"].append(
            Step(
                where="qemu.conf of libvirt",
                before=f'memory_backing_dir = "{backing}"',
                after='memory_backing_dir = "DIRECTORY", on the file system of '
                f"{held.path!r}, whose path QEMU's user may search; restart libvirt's daemon",
            )
        )
    if advice["steps"]:
        advice["notes"].append("shut the domain down and start it again after that")


def _step(where: str, change: Change) -> Step:
    return Step(where=where, before=change.before, after=change.after)


def _definition(connection: virConnect, uuid: str) -> str:
    """Return what the domain is started from next: its live XML where it is transient. Blocks."""
    from mapsave.monitor import libvirt_connection

    libvirt = libvirt_connection.library()
    handle = connection.lookupByUUIDString(uuid)
    return str(handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE if handle.isPersistent() else 0))


def _backing_directory(uri: str) -> Path:
    """Return where libvirt keeps RAM files, by its qemu.conf (src/qemu/qemu_conf.c)."""
    settings, default = _SYSTEM
    if uri.partition("?")[0].endswith("/session"):
        home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        settings, default = home / "libvirt", home / "libvirt/qemu/lib/ram"
    with contextlib.suppress(OSError):
        if (found := _BACKING.search((settings / "qemu.conf").read_text())) is not None:
            return Path(found[1])
    return default


def _is_beside(directory: str | os.PathLike[str], held: store.Directory) -> bool:
    """Return whether files there are on the file system of the images; it may be made yet."""
    place = Path(directory)
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        # Asked for nothing but this: a subvolume of btrfs has a device number of its own.
        with descriptors.closing(os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
            reflink_probe.probe(fd, held.fd)
    except OSError:
        return False
    return True
