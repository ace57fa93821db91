"""The names by which a libvirt guest maps its main memory from an image.

libvirt gives QEMU a backend of its own for main memory, by the name of the RAM block. An instant
restore adds another one, so that has to be called otherwise, and the link by which QEMU opens the
image too. What is saved of such a guest has that name as well, unless mapsave saves it.
"""

import os
import re

_MAIN = ".ram"
_LINK = ".mapsave-instant-"
# Opened once, then removed: what names it later, as the definition in an image of libvirt's, fails.
LINK = re.compile(rf"{re.escape(_LINK)}[0-9a-f]{{32}}")


def is_main(name: str) -> bool:
    """Return whether a RAM block is main memory without a backend: machine types call it so.

    ``pc.ram``, ``mach-virt.ram``, ``microvm.ram``, ``ppc_spapr.ram``, ``ram`` of ``-machine none``.
    """
    return name.endswith(_MAIN) or name == _MAIN[1:]


def alias(name: str) -> str:
    """Return what main memory is called that is mapped: as long as its name, so bytes fit."""
    return name[:1].upper() + name[1:]


def original(name: str) -> str:
    """Return the name of a RAM block that may have an alias."""
    plain = name[:1].lower() + name[1:]
    return plain if plain != name and is_main(plain) else name


def new_link() -> str:
    """Return a name for a link to an image that no other had or will have."""
    return _LINK + os.urandom(16).hex()
