"""The ways in which a libvirt guest is saved and restored: mapsave's, and virsh's."""

from pathlib import Path
from typing import Literal
from xml.sax import saxutils

from tests.kit import cli
from tests.kit.domain import Domain

Save = Literal["native", "libvirt", "virsh"]
Restore = Literal["own", "through", "virsh"]

# At the reset vector: cli; hlt; jmp to the hlt. The guest runs, but never touches its RAM.
_HALT = bytes.fromhex("faf4ebfd")
_FIRMWARE_SIZE = 64 << 10


def halting(directory: Path) -> str:
    """Return the ``<loader>`` of a guest that halts: it runs, and its RAM stays as it is."""
    path = directory / "halt.bin"
    content = bytearray(_FIRMWARE_SIZE)
    content[-16 : len(_HALT) - 16] = _HALT
    path.write_bytes(content)
    return f"<loader type='rom'>{saxutils.escape(str(path))}</loader>"


def save(how: Save, guest: Domain, site: cli.Site, name: str = "image", *more: str) -> Path:
    """Save the guest, which ends, to an image of ``site``; return its path.

    ``more`` are options of ``mapsave save``.
    """
    path = site.images / name
    if how == "virsh":
        assert not more
        guest.virsh("save", path, "--image-format", "sparse")
    else:
        site.run("save", guest.address, "-o", path, "--format", how, *more, check=0)
    return path


def restore(how: Restore, guest: Domain, site: cli.Site, path: Path, *more: str) -> None:
    """Restore the guest from ``path``; ``more`` are options that all ways have."""
    if how == "virsh":
        guest.daemon.virsh("restore", path, *more)
    else:
        through = ["--through-libvirt"] if how == "through" else []
        site.run("restore", path, "--guest", guest.address, *through, *more, check=0)
