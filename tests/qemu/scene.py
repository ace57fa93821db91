"""A guest that was saved through ``mapsave``: where tests of a restore begin."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.kit import cli, patterns, qemu
from tests.kit.ram import Snapshot, assert_same


@dataclass(frozen=True)
class Saved:
    """A guest that has ended: its QEMU as it was, its image, its RAM at the save."""

    guest: qemu.Qemu
    image: Path
    ram: Snapshot

    def comes_back(self, site: cli.Site, *options: str, **how: Any) -> None:
        """Restore the image; the guest is started again, and its RAM is as it was."""
        site.run("restore", self.image, *options, check=0, **how)
        with self.guest.successor() as restored:
            assert_same(self.ram, restored.ram)


@contextmanager
def saved(
    site: cli.Site, *arguments: str, name: str = "web01", launch: bool = True, **options: Any
) -> Iterator[Saved]:
    """Run a paused guest with dense RAM, save it to ``NAME.mapsave`` and let it end.

    ``arguments`` and ``options`` are those of ``qemu.running``. With ``launch`` the site knows how
    to start it again. Its directory, where a successor's monitors are, lives until the end.
    """
    options = {"memory": "32M", "ram": patterns.dense, **options}
    with qemu.running(*arguments, name=name, **options) as guest:
        site.add_guest(name, guest.qmp, launch=guest.argv if launch else None)
        before = guest.snapshot_ram(site.directory / f"{name}.ram")
        image = site.images / f"{name}.mapsave"
        site.run("save", name, "--image", image.name, check=0)
        guest.wait()
        yield Saved(guest, image, before)


def state_of(site: cli.Site, image: Path) -> str:
    """Return the state of the image as ``mapsave inspect`` tells it."""
    return str(site.run("inspect", image, "--json", check=0).json()["state"])
