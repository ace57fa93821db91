"""What the guests of the matrix have in their RAM."""

from dataclasses import dataclass
from pathlib import Path

from tests.kit import linux_guest, patterns

MIB = patterns.MIB
# Runs that are so short cost a fixed choice the most: images of them are what "fragmented" means.
FRAGMENTED = (1, 4, 16)


@dataclass(frozen=True)
class Layout:
    """A kind of content; ``run_pages``: how long its alternating runs of data and zeros are."""

    name: str
    pattern: patterns.Pattern | None = None
    run_pages: int = 0

    @property
    def is_fragmented(self) -> bool:
        return self.run_pages in FRAGMENTED


@dataclass(frozen=True)
class Content:
    """The RAM of a guest: ``size`` bytes from the file ``source``, ``used`` of them not zero.

    Without ``source`` all is zero but for what the firmware has.
    """

    layout: Layout
    size: int
    source: Path | None
    used: int

    def end(self) -> bytes:
        """Return the last MiB, by which a restored guest is recognised."""
        if self.source is None:
            return bytes(MIB)
        with self.source.open("rb") as file:
            file.seek(self.size - MIB)
            return file.read()


IDLE = Layout("idle")
DENSE = Layout("dense", patterns.dense)
LINUX = Layout("linux")
RUNS = tuple(
    Layout(f"runs-{pages}", patterns.fragmented(pages), pages) for pages in (1, 4, 16, 64, 512)
)
ALL = {layout.name: layout for layout in (IDLE, DENSE, *RUNS, LINUX)}
DEFAULT = ("idle", "dense", "runs-1", "runs-4")


def made(layout: Layout, size: int, directory: Path) -> Content:
    """Make the content of a layout, in a file in ``directory``.

    That of the Linux guest has the size it has. Raises AssertionError where that does not boot.
    """
    if layout == LINUX:
        source = _of_linux(directory)
        return Content(layout, source.stat().st_size, source, _used(source))
    if layout.pattern is None:
        return Content(layout, size, None, 0)
    source = patterns.write(directory / layout.name, size, layout.pattern)
    return Content(layout, size, source, _used(source))


def dense(size: int, directory: Path) -> Content:
    """Make a dense guest of a size of its own, which its layout's name says."""
    layout = Layout(f"dense-{size // MIB}M", patterns.dense)
    source = patterns.write(directory / "dense-alone", size, patterns.dense)
    return Content(layout, size, source, size)


def unavailable(layout: Layout) -> str | None:
    """Say why a layout cannot be had on this machine, or return None."""
    return linux_guest.unavailable() if layout == LINUX else None


def _of_linux(directory: Path) -> Path:
    """Return what a Linux guest has in its RAM after it has worked for a while."""
    with linux_guest.running(log=directory / "linux.log") as guest:
        guest.serial.wait_ticks(3)
        guest.qemu.control.execute("stop")
        snapshot = guest.qemu.snapshot_ram(directory / "linux")
        return snapshot.files[guest.qemu.ram.largest()]


def _used(source: Path) -> int:
    """Return how many bytes are in pages that are not zero."""
    zero = bytes(patterns.PAGE)
    found = 0
    with source.open("rb") as file:
        while chunk := file.read(MIB):
            view = memoryview(chunk)
            pages = range(0, len(chunk), patterns.PAGE)
            found += sum(view[at : at + patterns.PAGE] != zero for at in pages)
    return found * patterns.PAGE
