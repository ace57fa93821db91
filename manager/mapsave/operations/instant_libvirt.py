"""A destination that libvirt starts, and whose RAM is mapped from the image.

QEMU is given another backend for its main memory, whose file is a link beside the image. libvirt
keeps QEMU's arguments in the live definition, and ``virsh save`` puts them into what it saves: a
restore of that would map the old image below the new one, and show its pages where the new one has
none. So the link is gone for good before the guest is loaded: such a restore fails, and no other
link will ever have that name. What mapsave saves has neither the arguments nor the other name.

The guest's disks are labelled by libvirt's security drivers, a file that its QEMU's arguments name
is not. So while it starts QEMU's user gets leave to read the image, and the image a label of
SELinux that QEMU may read; the user must be able to search the directories on the way. AppArmor
must allow QEMU the path: libvirt makes the guest's profile as it starts it, so no rule can be added
before.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import urllib.parse
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mapsave import errors, instant_names, shielded
from mapsave.image import acl
from mapsave.image.image import Image
from mapsave.image.validation import Contents
from mapsave.key_types import Switch
from mapsave.labels import apparmor_rules, modules
from mapsave.labels.policy import BUILT_IN
from mapsave.labels.system import System
from mapsave.monitor import definition, libvirt_connection
from mapsave.operations import answering, destination_libvirt, instant, locks
from mapsave.operations.destination import Destination
from mapsave.operations.instant import Decision
from mapsave.plan import instant_domain

if TYPE_CHECKING:
    from mapsave.operations.destination_libvirt import Start

_EXPLICIT = "RAM of libvirt guests is mapped with 'instant: on' only"
_BALLOON = (
    "what the guest gives back by its balloon stays in memory (docs/instant.md): its RAM is mapped "
    "from the image"
)
_DENIED = {
    "selinux": "SELinux must allow QEMU to search the directories of the image, and to read the "
    "link beside it (dmesg, 'mapsave setup selinux')",
    "apparmor": "AppArmor must allow QEMU to read it: put the rule {rule} into "
    "/etc/apparmor.d/abstractions/libvirt-qemu.d/mapsave",
    "": "QEMU's user must be able to read the image and to search its directories",
}


def decide(setting: Switch, xml: str, uri: str, opened: Image, contents: Contents) -> Decision:
    """Decide for a domain of ``xml`` at ``uri``: only where ``on`` was asked for. Blocks.

    Raises NotInstant, InvalidImage, TruncatedImage, UnreadableImage.
    """
    if setting == "off":
        return instant.not_launched(setting, "libvirt")
    if setting == "auto":
        return Decision(why_not=(_EXPLICIT,))
    return possible(setting, xml, uri, opened, contents)


def possible(setting: Switch, xml: str, uri: str, opened: Image, contents: Contents) -> Decision:
    """Return how its RAM could be mapped, or why not; raises as ``decide`` does."""
    mapping, reasons = instant_domain.plan(xml, contents)
    if urllib.parse.urlsplit(uri).hostname:
        reasons.append(f"libvirt at {uri!r} is on another host")
    return instant.decided(setting, mapping, reasons, opened)


def check_own(opened: Image, contents: Contents) -> None:
    """Raise Unsupported for an image that libvirt has made of such a guest, and cannot restore."""
    if any(block.has_alias for block in contents.stream.blocks):
        raise errors.Unsupported(
            f"{opened.path!r} was saved by libvirt while the guest's RAM was mapped from another "
            "image, which its domain XML still names: libvirt cannot restore it",
            hint="omit --through-libvirt",
        )


@contextlib.asynccontextmanager
async def created(
    asked: Start, cookie: str | None, decision: Decision, start: instant.Start
) -> AsyncIterator[Destination]:
    """Have libvirt start the domain as was decided; destroy it unless it was kept.

    Raises as ``destination_libvirt.created`` does, LaunchFailed also where QEMU cannot map it.
    """
    mapping = decision.mapping
    if mapping is None:
        memory = instant_domain.read(start.contents)
        async with destination_libvirt.created(asked, cookie, memory) as target:
            yield target
        return
    uid = await user_of(asked.xml, asked.uri)
    path = start.opened.path
    await answering.within(os.path.dirname(path), _check_searchable, path, uid)
    async with contextlib.AsyncExitStack() as stack:
        letting_in = instant.readable(start.opened.fd, uid, start)
        async with start.labelled(), letting_in, _linked(start) as path:
            starting = destination_libvirt.created(asked, cookie, mapping.arguments(path))
            try:
                target = await stack.enter_async_context(starting)
            except errors.LaunchFailed as error:
                raise _explained(error, start.opened.path) from None
        await instant.lives_on(target, decision, start, ())
        if instant_domain.has_balloon(asked.xml):
            target.warnings.append(_BALLOON)
        yield target


async def user_of(xml: str, uri: str) -> int:
    """Return the user that QEMU will run as. Raises LaunchFailed, Unreachable."""
    told = await libvirt_connection.capabilities(uri)
    user = definition.qemu_user(xml, told)
    found = instant.uid_of(user)
    if user is not None and found is None:
        raise errors.LaunchFailed(f"libvirt starts QEMU as user {user!r}, which does not exist")
    return os.geteuid() if found is None else found


def _check_searchable(path: str, uid: int) -> None:
    """Raise LaunchFailed where a directory on the way to the image is closed to QEMU's user."""
    for directory in Path(os.path.realpath(path)).parents:
        if not acl.may_search(str(directory), uid):
            raise errors.LaunchFailed(
                f"QEMU's user {_name(uid)} cannot reach the image: it may not search "
                f"{str(directory)!r}",
                hint=f"setfacl -m u:{_name(uid)}:x {directory}, or restore without --instant on",
            )


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


@contextlib.asynccontextmanager
async def _linked(start: instant.Start) -> AsyncIterator[str]:
    """Do as ``_link`` off the event loop. Raises BadDirectory, LaunchFailed where it hangs."""
    directory = os.path.dirname(start.opened.path)

    def hangs(link: str) -> None:
        start.on_left()
        raise errors.LaunchFailed(f"cannot remove {link!r}: the storage of it does not answer")

    async with contextlib.AsyncExitStack() as stack:
        with answering.reported(directory):
            link = await stack.enter_async_context(shielded.entered(_link(start), hangs))
        yield link


@contextlib.contextmanager
def _link(start: instant.Start) -> Iterator[str]:
    """Make the link by which QEMU opens the image; at the end it is gone, durably. Blocks."""
    real = os.path.realpath(start.opened.path)
    link = os.path.join(os.path.dirname(real), instant_names.new_link())
    start.on_link(link)
    need = os.W_OK | os.X_OK
    work = f"make {link!r}, by which QEMU opens the image"
    with errors.explained(work, os.path.dirname(link), need, otherwise=errors.LaunchFailed):
        os.symlink(os.path.basename(real), link)
    try:
        yield link
    finally:
        try:
            os.unlink(link)
            locks.sync_directory(Path(link).parent)
        except OSError as error:
            start.on_left()
            words = f"cannot remove {link!r}: {error.strerror}"
            raise errors.of_os_error(
                error, words, os.path.dirname(link), need, otherwise=errors.LaunchFailed
            ) from None


def _explained(error: errors.LaunchFailed, path: str) -> errors.LaunchFailed:
    is_of_link = instant_names.LINK.search(error.message) is not None
    if not is_of_link or "Permission denied" not in error.message:
        return error
    places = apparmor_rules.quote(f"{os.path.dirname(os.path.realpath(path))}/")[:-1]
    rule = f'{places}*" r,'
    named = [each.name for each in modules.active(BUILT_IN["auto"], System())]
    words = [_DENIED[each] for each in (*named, "") if each in _DENIED]
    return errors.LaunchFailed(
        error.message, hint=f"{'; '.join(words).format(rule=rule)} (docs/instant.md)"
    )
