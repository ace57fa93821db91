"""Images as QEMU itself writes them, made once."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.image import build
from tests.kit import files, patterns, qemu, raw

MACHINES = ("none", "microvm", "pc", "q35")


@pytest.fixture
def held(tmp_path: Path) -> Iterator[int]:
    """The temporary directory, open."""
    with files.opened(tmp_path, os.O_DIRECTORY) as fd:
        yield fd


@dataclass(frozen=True)
class Real:
    """An image that a QEMU wrote, with mapsave's header, and that QEMU's RAM blocks in bytes."""

    path: Path
    blocks: dict[str, int]
    used: dict[str, tuple[int, ...]]

    def copy(self, to: Path) -> Path:
        with self.path.open("rb") as source, to.open("wb") as target:
            target.truncate(self.path.stat().st_size)
            while data := source.read(build.MIB):
                if data.count(0) < len(data):
                    target.seek(source.tell() - len(data))
                    target.write(data)
        return to


def _used(guest: qemu.Qemu) -> dict[str, tuple[int, ...]]:
    """Return the pages of each RAM block that are not zero."""
    found: dict[str, tuple[int, ...]] = {}
    for name, length in guest.ram.lengths().items():
        content = guest.ram.read(name)
        pages = range(0, length, 4096)
        found[name] = tuple(at // 4096 for at in pages if any(content[at : at + 4096]))
    return found


def _saved(machine: str, directory: Path) -> Real:
    path = directory / f"{machine}.mapsave"
    with qemu.running(machine=machine, memory="16M", ram=patterns.sparse) as guest:
        raw.save(guest, path)
        blocks, used = guest.ram.lengths(), _used(guest)
    metadata = b'{"guest": {"name": "toy"}}'
    with path.open("r+b") as file:
        size = path.stat().st_size
        file.write(build.slot(stream_offset=build.MIB, metadata=metadata, file_length=size))
        file.seek(2 * build.SLOT)
        file.write(metadata)
    return Real(path, blocks, used)


@pytest.fixture(scope="session")
def real_images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Real]:
    """Images of 16 MiB guests of each machine type."""
    directory = tmp_path_factory.mktemp("real")
    return {machine: _saved(machine, directory) for machine in MACHINES}


@pytest.fixture(params=MACHINES)
def real(request: pytest.FixtureRequest, real_images: dict[str, Real]) -> Real:
    return real_images[request.param]
