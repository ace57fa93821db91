"""QEMU arguments that give a guest its memory. Each function returns arguments for ``running()``.

QEMU merges repeated ``-machine`` and ``-m`` options, so these may follow the usual ones.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kit import qemu

_HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")
_COMPACT = Path("/proc/sys/vm/compact_memory")
_PATIENCE = 30.0  # seconds


def zeroed(size: str, *, name: str = "m") -> list[str]:
    """Main memory in a block ``name``, zero at the start: a destination for ``from_file``."""
    backend = f"memory-backend-ram,id={name},size={size}"
    return ["-object", backend, "-machine", f"memory-backend={name}"]


def from_file(path: Path, size: str, *, shared: bool = False, name: str = "m") -> list[str]:
    """Main memory that begins as ``path``'s content: a private copy, or the file itself."""
    share = "on" if shared else "off"
    backend = f"memory-backend-file,id={name},size={size},mem-path={path},share={share}"
    return ["-object", backend, "-machine", f"memory-backend={name}"]


def nodes(*sizes: str) -> list[str]:
    """NUMA nodes of these sizes, blocks ``n0``, ``n1``…; ``memory=`` must be their sum."""
    arguments: list[str] = []
    for number, size in enumerate(sizes):
        arguments += ["-object", f"memory-backend-ram,id=n{number},size={size}"]
        arguments += ["-numa", f"node,nodeid={number},memdev=n{number}"]
    return arguments


def dimm(size: str = "16M", *, name: str = "d0", limit: str = "1G") -> list[str]:
    """One plugged DIMM, block ``name`` (machine types pc and q35)."""
    backend = f"memory-backend-ram,id={name},size={size}"
    slots = ["-m", f"slots=2,maxmem={limit}"]
    return [*slots, "-object", backend, "-device", f"pc-dimm,memdev={name}"]


def virtio_mem(size: str = "32M", *, name: str = "v", limit: str = "1G") -> list[str]:
    """A virtio-mem device, of which nothing is plugged in without a driver in the guest."""
    backend = f"memory-backend-ram,id={name},size={size}"
    device = f"virtio-mem-pci,memdev={name},requested-size={size}"
    return ["-m", f"slots=1,maxmem={limit}", "-object", backend, "-device", device]


def huge(size: str, *, name: str = "m") -> list[str]:
    """Main memory on 2 MiB pages; reserve them with ``huge_pages()`` around it."""
    backend = f"memory-backend-memfd,id={name},size={size},hugetlb=on,hugetlbsize=2M"
    return ["-object", backend, "-machine", f"memory-backend={name}"]


@contextmanager
def huge_pages(count: int) -> Iterator[None]:
    """Reserve ``count`` more 2 MiB pages and give them back; skip the test if not granted."""
    try:
        before = int(_HUGE_PAGES.read_text())
        _HUGE_PAGES.write_text(str(before))
    except OSError as error:
        pytest.skip(f"this machine grants no huge pages: {error}")

    def granted() -> int:
        # Where free memory is in small pieces the kernel brings together what it can each time.
        _HUGE_PAGES.write_text(str(before + count))
        return int(_HUGE_PAGES.read_text()) - before

    try:
        deadline = time.monotonic() + _PATIENCE
        while (found := granted()) < count:
            if time.monotonic() > deadline:
                pytest.skip(f"this machine grants {found} of {count} huge pages")
            _COMPACT.write_text("1")
            time.sleep(0.1)
        yield
    finally:
        _HUGE_PAGES.write_text(str(before))


def unnamed_files(guest: qemu.Qemu) -> dict[Path, os.stat_result]:
    """Return the files without a name that QEMU maps, shared, by paths that open them."""
    found = {}
    for line in Path(f"/proc/{guest.pid}/maps").read_text().splitlines():
        addresses, access, _, _, _, *path = line.split(maxsplit=5)
        if access.endswith("s") and path and path[0].endswith("(deleted)"):
            first, last = (int(each, 16) for each in addresses.split("-"))
            place = Path(f"/proc/{guest.pid}/map_files/{first:x}-{last:x}")
            found[place] = place.stat()
    return found
