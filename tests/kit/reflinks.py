"""Guests whose RAM is a shared file beside their images, on a file system that reflinks."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.kit import cli, memory, qemu, storage
from tests.kit.storage import MIB

NAME = "web01"
SIZE = "32M"


@contextmanager
def site_on(
    kind: storage.Kind, directory: Path, size: int = 600 * MIB, **how: Any
) -> Iterator[cli.Site]:
    """Yield a site whose files are all on such a file system, of ``size`` bytes."""
    with storage.loop_filesystem(kind, size, directory, **how) as place:
        yield cli.Site(place / "site")


def ram_file(site: cli.Site) -> Path:
    return site.directory / "web01.ram"


@contextmanager
def guest(site: cli.Site, *arguments: str, **options: Any) -> Iterator[qemu.Qemu]:
    """Run a guest whose main memory is a shared file; the site knows it as ``NAME``."""
    shared = memory.from_file(ram_file(site), SIZE, shared=True)
    options = {"memory": SIZE, "machine": "q35", **options}
    with qemu.guest(site, NAME, *shared, *arguments, **options) as found:
        yield found


def checkpoint(site: cli.Site, name: str, *options: str, guest: str = NAME) -> dict[str, Any]:
    """Take a checkpoint; return what the command has printed."""
    done = site.run("checkpoint", guest, "--image", name, "--json", *options, check=0).json()
    assert done["image"] == str(site.images / name)
    return done
