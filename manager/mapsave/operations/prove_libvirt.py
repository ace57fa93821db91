"""What a libvirt guest is proven by: the command line that libvirt would start it with.

libvirt makes it of the definition in the image, which is looked at as before a restore. What QEMU
opens of the host is replaced after that, so of the definition only the shape of the machine, the
program and its firmware count.
"""

import os
import pwd
import re
import shlex
from pathlib import Path

from mapsave import errors
from mapsave.monitor import definition, libvirt_connection
from mapsave.operations import domain_trust, instant_libvirt, provable
from mapsave.operations.destination import Command
from mapsave.operations.destination_choice import Definition
from mapsave.proof import command_line

_VARIABLE = re.compile(r"\w+=")


async def means(found: Definition, program: str | None) -> tuple[Command, command_line.Start]:
    """Return the command that libvirt would start a domain by, and how that is taken.

    Raises NotProvable, ForeignResource, InvalidImage, Unreachable and its like.
    """
    libvirt = libvirt_connection.library()
    text = definition.waiting(found.xml, found.cookie, ())
    async with libvirt_connection.connected(found.uri) as connection:
        if found.vetting is not None:
            await domain_trust.check(connection, found.xml, found.vetting)
        try:
            told = await libvirt_connection.call(
                lambda: str(connection.domainXMLToNative("qemu-argv", text, 0))
            )
        except libvirt.libvirtError as error:
            raise errors.NotProvable(
                f"the image cannot be proven: libvirt makes no command of its definition: {error}"
            ) from None
    words = shlex.split(told.replace("\\\n", " "))
    first = next((at for at, word in enumerate(words) if not _VARIABLE.match(word)), len(words))
    variables = dict(word.split("=", 1) for word in words[:first])
    user = _becoming(await instant_libvirt.user_of(found.xml, found.uri))
    if user is not None:
        provable.check_becoming(user)
    command = Command(words[first:], "", Path(os.devnull), variables)
    return command, command_line.Start(program=program, user=user)


def _becoming(uid: int) -> str | None:
    """Return what ``-run-with user=`` takes; None where QEMU is to be our own user."""
    if uid == os.geteuid():
        return None
    try:
        return f"{uid}:{pwd.getpwuid(uid).pw_gid}"
    except KeyError:
        return f"{uid}:{uid}"
