"""What kills a QEMU, loses data silently or leaves it stuck: shown raw, and met by mapsave.

The same hazards on the emulator, side by side with QEMU, are in ``tests/emulator/test_hazards.py``;
``docs/hazards.md`` is the table for operators.
"""

import asyncio
import dataclasses
import os
import random
import shutil
import signal
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from mapsave import config, errors
from mapsave.image import descriptors, image, superblock
from mapsave.operations import restore, restore_request

from tests.faults.waiting import MIB, waiting
from tests.image.fuzz import boundaries
from tests.kit import cli, memory, patterns, qemu, qmp, ram, raw, state

NAME = "web01"


@dataclasses.dataclass(frozen=True)
class Saved:
    """An image that mapsave made of a dense guest of 64 MiB, and that guest's RAM."""

    path: Path
    ram: ram.Snapshot
    argv: list[str]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Save a guest of ``-machine none``, whose stream is short."""
    directory = tmp_path_factory.mktemp("saved")
    site = cli.Site(directory / "site")
    with qemu.guest(site, NAME, machine="none", ram=patterns.dense) as guest:
        before = guest.snapshot_ram(directory / "ram")
        site.run("save", NAME, "--image", "good", check=0)
        guest.wait()
        return Saved(site.images / "good", before, guest.argv)


@pytest.fixture
def copy(saved: Saved, tmp_path: Path) -> Path:
    """A copy of that image, to be damaged."""
    return Path(shutil.copy(saved.path, tmp_path / "copy"))


def refused(site: cli.Site, path: Path, destination: qemu.Qemu, code: int) -> str:
    """Let mapsave refuse to restore ``path`` into ``destination``, which stays untouched."""
    before = destination.state()
    result = site.run("restore", path, "--into", destination.address, "--json", check=code)
    state.assert_left_as_found(before, destination.state())
    assert destination.control.execute("query-migrate") == {}
    return result.error_id()


def assert_takes(site: cli.Site, saved: Saved, destination: qemu.Qemu) -> None:
    """The destination is still good: the undamaged image goes in, whole."""
    site.run("restore", saved.path, "--into", destination.address, "--again", check=0)
    ram.assert_same(saved.ram, destination.ram)


def test_raw_missing_direct_descriptor_kills_the_guest(tmp_path: Path) -> None:
    with qemu.running(machine="none", ram=patterns.dense) as guest:
        raw.configure(guest, direct_io=True)
        with raw.handed_over(guest, tmp_path / "image", os.O_WRONLY | os.O_CREAT, direct=False):
            with suppress(qmp.QmpClosed):  # its answer may not get out any more
                guest.control.execute("migrate", uri=f"file:/dev/fdset/{raw.FDSET},offset={MIB}")
            assert guest.wait() == -signal.SIGSEGV


def test_raw_missing_descriptor_wastes_the_destination(saved: Saved, site: cli.Site) -> None:
    with waiting() as destination:
        raw.configure(destination, direct_io=True)
        uri = f"file:/dev/fdset/{raw.FDSET},offset={MIB}"
        for direct, words in ((False, "matching flags=0x4000"), (True, "Illegal.* state: setup")):
            with (
                raw.handed_over(destination, saved.path, os.O_RDONLY, direct=direct),
                pytest.raises(qmp.QmpError, match=words),
            ):
                destination.control.execute("migrate-incoming", uri=uri)
        # mapsave does not try either, and says what is to be done.
        result = site.run(
            "restore", saved.path, "--into", destination.address, "--again", "--json", check=3
        )
        assert result.error_id() == "check.run_state"
        assert "start a new destination" in result.error()["hint"]


DIRECT = os.O_WRONLY | os.O_DIRECT


@pytest.mark.parametrize(
    ("first", "second", "problem"),
    [
        (os.O_WRONLY, os.O_WRONLY, "O_DIRECT is"),
        (DIRECT, DIRECT, "O_DIRECT is"),
        (DIRECT, os.O_WRONLY, "O_DIRECT is"),
        (os.O_RDWR, DIRECT, "access modes"),
        (os.O_WRONLY, os.O_RDONLY | os.O_DIRECT, "access modes"),
        (os.O_WRONLY | os.O_APPEND, DIRECT, "O_APPEND"),
        (os.O_WRONLY, DIRECT | os.O_DSYNC, "O_DSYNC"),
        (os.O_WRONLY | os.O_SYNC, DIRECT, "O_SYNC"),
        (os.O_WRONLY, None, "O_DIRECT is"),
    ],
)
def test_such_a_pair_never_reaches_qemu(
    tmp_path: Path, first: int, second: int | None, problem: str
) -> None:
    with ExitStack() as stack:
        fds: list[int] = []
        for flags in (first, second):
            fd = os.dup(fds[0]) if flags is None else os.open(tmp_path / "f", flags | os.O_CREAT)
            stack.callback(os.close, fd)
            fds.append(fd)
        with pytest.raises(errors.MapsaveError, match=f"refusing to hand over.*({problem})"):
            descriptors.Pair(fds[0], fds[1], direct_io=True).check(os.O_WRONLY)


@pytest.mark.parametrize("direct_io", [True, False])
def test_duplicates_and_other_files_never_reach_qemu(tmp_path: Path, direct_io: bool) -> None:
    one = os.open(tmp_path / "one", os.O_WRONLY | os.O_CREAT)
    other = os.open(tmp_path / "other", os.O_WRONLY | os.O_CREAT | (direct_io and os.O_DIRECT))
    copy = os.dup(one)
    try:
        with pytest.raises(errors.MapsaveError, match="two different files"):
            descriptors.Pair(one, other, direct_io).check(os.O_WRONLY)
        # With direct-io on, a duplicate has not the flag of the other either.
        duplicates = "O_DIRECT is" if direct_io else "duplicates of one"
        with pytest.raises(errors.MapsaveError, match=duplicates):
            descriptors.Pair(one, copy, direct_io).check(os.O_WRONLY)
    finally:
        for fd in (one, other, copy):
            os.close(fd)


def test_fdsets_of_others_stay(site: cli.Site, tmp_path: Path) -> None:
    with qemu.running(machine="none", ram=patterns.sparse) as guest, open(os.devnull) as file:
        for number in (0, 1, 2, 1_000_000, 1_000_002):
            guest.control.pass_descriptor(file.fileno(), number, "somebody else")
        for number in (3, 1_000_001):
            guest.control.execute("add-fd", descriptor=file.fileno(), fdset_id=number)
        before, contents = guest.state(), guest.snapshot_ram(tmp_path / "before")
        assert len(before.fdsets) == 7
        site.run("save", guest.address, "--image", "one", "--then", "resume", check=0)
        state.assert_left_as_found(before, guest.state(), run_state=guest.status())
    with waiting() as destination, open(os.devnull) as file:
        for number in (0, 1_000_000):
            destination.control.execute("add-fd", descriptor=file.fileno(), fdset_id=number)
        fdsets = destination.state().fdsets
        site.run("restore", "one", "--into", destination.address, check=0)
        assert destination.state().fdsets == fdsets
        ram.assert_same(contents, destination.ram)


def test_raw_truncated_pages_kill_the_destination(copy: Path) -> None:
    os.truncate(copy, 40 * MIB + 100)
    with waiting() as destination:
        raw.configure(destination, direct_io=True)
        with raw.handed_over(destination, copy, os.O_RDONLY, direct=True):
            uri = f"file:/dev/fdset/{raw.FDSET},offset={MIB}"
            with suppress(qmp.QmpClosed):
                destination.control.execute("migrate-incoming", uri=uri, exit_on_error=False)
            assert destination.wait() == -signal.SIGSEGV


def test_raw_missing_end_goes_unnoticed(copy: Path) -> None:
    os.truncate(copy, copy.stat().st_size - 3)
    with waiting() as destination:
        raw.restore(destination, copy)


def structure(path: Path) -> tuple[list[int], int]:
    """Return the places where something begins or ends, and the length of the image."""
    with image.opened(path) as opened:
        found = boundaries(opened.validate().stream) | {0, 4096, 8192}
        return sorted(at for at in found if at < opened.size), opened.size


def test_image_cut_at_every_boundary_is_refused(saved: Saved, copy: Path, site: cli.Site) -> None:
    """By the commands; the waiting destination is not touched and takes the whole image later."""
    cuts, size = structure(copy)
    assert len(cuts) > 10
    with waiting() as destination:
        for number, cut in enumerate(sorted([*cuts, size - 1], reverse=True)):
            os.truncate(copy, cut)
            result = site.run("check", copy, "--json", check=6)
            assert result.error_id() in ("image.truncated", "image.not_an_image", "image.corrupt")
            if number % 3 == 0:
                assert refused(site, copy, destination, 6).startswith("image.")
        assert_takes(site, saved, destination)


def test_image_cut_anywhere_is_refused_even_if_its_superblock_agrees(
    saved: Saved, copy: Path, site: cli.Site
) -> None:
    """So that nothing but the reader of QEMU's stream stands between the file and QEMU."""
    cuts, size = structure(copy)
    generator = random.Random(7)
    places = {generator.randrange(MIB + 1, size) for _ in range(200)} | {c for c in cuts if c > MIB}
    settings = config.load(site.config, {"HOME": str(site.directory)})
    with image.opened(copy) as opened:
        block, metadata = opened.block, opened.metadata
        # With its end mark there, a stream without description is whole for its reader.
        whole = opened.validate().stream.description_offset - 5
    with waiting() as destination:
        request = restore_request.Request(str(copy), into=str(destination.qmp))
        for cut in sorted(places - {whole}, reverse=True):
            os.truncate(copy, cut)
            with copy.open("r+b") as file:
                shorter = dataclasses.replace(block, file_length=cut)
                block = superblock.write(file.fileno(), shorter, metadata, durable=False)
            with pytest.raises(errors.TruncatedImage) as caught:
                asyncio.run(restore.restore(settings, request))
            assert caught.value.exit_code == 6, f"cut at {cut}"
        assert refused(site, copy, destination, 6) == "image.truncated"
        assert_takes(site, saved, destination)


def set_page_size(path: Path, size: int) -> None:
    """Overwrite the page size of the first RAM block's header (after its version, be32)."""
    with image.opened(path) as opened:
        at = opened.validate().stream.blocks[0].bitmap_offset - 24
    with path.open("r+b") as file:
        file.seek(at)
        assert file.read(8) == (4096).to_bytes(8, "big")
        file.seek(at)
        file.write(size.to_bytes(8, "big"))


def test_page_size_zero(saved: Saved, copy: Path, site: cli.Site) -> None:
    set_page_size(copy, 0)
    with waiting() as destination:
        assert refused(site, copy, destination, 6) == "image.corrupt"
        assert_takes(site, saved, destination)
    with waiting() as destination:
        raw.configure(destination, direct_io=False)
        uri = f"file:{copy},offset={MIB}"
        with suppress(qmp.QmpClosed):
            destination.control.execute("migrate-incoming", uri=uri, exit_on_error=False)
        assert destination.wait() == -signal.SIGFPE


def test_raw_failed_load_ends_the_destination_and_mapsave_keeps_it(
    site: cli.Site, tmp_path: Path
) -> None:
    """The destination lacks a device: only QEMU can notice, half way through."""
    with qemu.running("-device", "virtio-rng-pci", name=NAME, ram=patterns.sparse) as guest:
        site.run("save", guest.address, "--image", "rng", check=0)
    path = site.images / "rng"
    content = path.read_bytes()
    with waiting(machine="pc") as destination:
        raw.configure(destination)
        with raw.handed_over(destination, path, os.O_RDONLY, direct=True):
            uri = f"file:/dev/fdset/{raw.FDSET},offset={MIB}"
            with suppress(qmp.QmpClosed):
                destination.control.execute("migrate-incoming", uri=uri)
            assert destination.wait() == 1
    with waiting(machine="pc") as destination:
        before = destination.state()
        error = site.run("restore", path, "--into", destination.address, "--json", check=5).error(
            "restore.failed"
        )
        assert "load of migration failed" in error["message"]
        state.assert_left_as_found(before, destination.state())
        # The failed destination is of no further use, and mapsave knows.
        again = site.run("restore", path, "--into", destination.address, "--json", check=3)
        assert again.error_id() == "check.run_state"
    assert path.read_bytes() == content
    with waiting("-device", "virtio-rng-pci", machine="pc") as destination:
        site.run("restore", path, "--into", destination.address, check=0)


def test_ram_of_another_size(site: cli.Site) -> None:
    with qemu.running(machine="none", memory="32M", ram=patterns.dense) as guest:
        site.run("save", guest.address, "--image", "small", check=0)
    path = site.images / "small"
    with waiting(size="48M") as destination:
        raw.restore(destination, path)  # QEMU says completed
    for size in ("48M", "31M"):
        with waiting(size=size) as destination:
            assert refused(site, path, destination, 3) == "check.destination"
    with waiting(size="32M") as destination:
        site.run("restore", path, "--into", destination.address, check=0)


def test_ram_that_is_not_zero(site: cli.Site, tmp_path: Path) -> None:
    with qemu.running(*memory.zeroed("64M"), machine="none") as guest:
        site.run("save", guest.address, "--image", "empty", check=0)
    path = site.images / "empty"
    used = patterns.write(tmp_path / "used", 64 * MIB, patterns.dense)
    stale = used.read_bytes()
    shared = memory.from_file(used, "64M", shared=True)
    with waiting(*shared) as destination:
        raw.restore(destination, path)  # QEMU says completed
        assert destination.ram.read("m") == stale
    with waiting(*shared) as destination:
        assert refused(site, path, destination, 3) == "check.destination_not_zero"
    used.write_bytes(b"")
    with waiting(*shared) as destination:
        site.run("restore", path, "--into", destination.address, check=0)
        assert not any(destination.ram.read("m"))
