"""Full disks, directories that go, odd names, refused O_DIRECT, missing permissions."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.faults import struck
from tests.kit import cli, memory, patterns, qemu, ram, state, storage, wait
from tests.kit.nobody import as_nobody

MIB = 1 << 20
NAME = "web01"
NOBODY = 65534


def guest_of(site: cli.Site, *arguments: str, **options: Any) -> AbstractContextManager[qemu.Qemu]:
    """Run a guest that is in the configuration, and runs."""
    options = {"ram": patterns.sparse, "machine": "none", "paused": False, **options}
    return qemu.guest(site, NAME, *arguments, **options)


@pytest.fixture
def guest(site: cli.Site) -> Iterator[qemu.Qemu]:
    """A running guest of 64 MiB."""
    with guest_of(site) as found:
        yield found


def refused(site: cli.Site, guest: qemu.Qemu, code: int, *arguments: str | Path) -> str:
    """Let a save be refused or fail; the guest is as it was. Return the error's id."""
    before = guest.state()
    assert before.run_state == "running"
    result = site.run("save", NAME, "--json", *arguments, check=code)
    state.assert_left_as_found(before, guest.state())
    return result.error_id()


def assert_whole(site: cli.Site, guest: qemu.Qemu, tmp_path: Path, image: str | Path) -> None:
    """Save to ``image`` and restore it: the same RAM."""
    site.run("save", NAME, "--image", image, "--then", "leave", check=0)
    before = guest.snapshot_ram(tmp_path / "ram")
    with qemu.running(machine="none", name="destination", incoming=True) as destination:
        site.run("restore", image, "--into", destination.address, check=0)
        ram.assert_same(before, destination.ram)


@pytest.mark.root
@pytest.mark.parametrize(("kind", "size"), [("ext4", 48 * MIB), ("xfs", 300 * MIB)])
def test_no_room_that_preflight_knows_of(
    site: cli.Site, tmp_path: Path, kind: storage.Kind, size: int
) -> None:
    with (
        storage.loop_filesystem(kind, size, tmp_path) as place,
        guest_of(site) as guest,
        storage.filled(place, leave=30 * MIB),
    ):
        # Every page is to be written, so what is needed is known exactly.
        arguments = ("--image", place / "image", "--zero-pages", "none")
        assert refused(site, guest, 3, *arguments) == "check.room"
        assert not list(place.glob("image*"))


@pytest.mark.root
@pytest.mark.parametrize("user", [NOBODY, None])
def test_blocks_reserved_for_root(site: cli.Site, tmp_path: Path, user: int | None) -> None:
    """QEMU writes, not mapsave: as another user it does not get them."""
    with storage.loop_filesystem("ext4", 256 * MIB, tmp_path) as place:
        number = os.stat(place).st_dev
        block = os.path.realpath(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
        reserving = ["tune2fs", "-r", "32000", f"/dev/{os.path.basename(block)}"]
        subprocess.run(reserving, check=True, timeout=wait.LONG, capture_output=True)
        with guest_of(site, user=user) as guest:
            arguments = ("--image", place / "image", "--zero-pages", "none", "--then", "leave")
            if user is None:
                site.run("save", NAME, *arguments, check=0)
            else:
                assert refused(site, guest, 3, *arguments) == "check.room"


@pytest.mark.root
@pytest.mark.parametrize("direct_io", ["on", "off"])
@pytest.mark.parametrize(("kind", "size"), [("ext4", 64 * MIB), ("xfs", 300 * MIB)])
def test_disk_full_half_way(
    site: cli.Site, tmp_path: Path, kind: storage.Kind, size: int, direct_io: str
) -> None:
    """The guest's RAM is a private mapping of a file that is not resident: no one can know.

    With one channel: of several, QEMU 10.0 dies now and then where one fails (docs/hazards.md).
    """
    content = patterns.write(tmp_path / "ram-file", 64 * MIB, patterns.dense)
    private = memory.from_file(content, "64M")
    with (
        storage.loop_filesystem(kind, size, tmp_path) as place,
        guest_of(site, *private, ram=None) as guest,
    ):
        guest.control.execute("cont")
        before = guest.state()
        with storage.filled(place, leave=30 * MIB):
            arguments = ("--image", place / "image", "--direct-io", direct_io, "--channels", "1")
            error = site.run("save", NAME, "--json", *arguments, check=4).error("save.failed")
            assert "No space left on device" in error["message"]
            state.assert_left_as_found(before, guest.state())
            assert not list(place.glob("image*")), "the partial image was left"
        # A second save, elsewhere, works at once.
        site.run("save", NAME, "--image", "elsewhere", "--then", "leave", check=0)
        snapshot = guest.snapshot_ram(tmp_path / "before")
    with qemu.running(
        *memory.zeroed("64M"), machine="none", name="destination", incoming=True
    ) as destination:
        site.run("restore", "elsewhere", "--into", destination.address, check=0)
        ram.assert_same(snapshot, destination.ram)


@pytest.mark.root
def test_read_only_directory(site: cli.Site, guest: qemu.Qemu, tmp_path: Path) -> None:
    with storage.tmpfs(200 * MIB, tmp_path) as place, storage.read_only(place):
        assert refused(site, guest, 3, "--image", place / "image") == "check.directory"


def test_directory_that_is_gone_or_none(site: cli.Site, guest: qemu.Qemu, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    for place in (tmp_path / "none", tmp_path / "file"):
        assert refused(site, guest, 3, "--image", place / "image") == "check.directory"


def test_directory_deleted_once_the_partial_image_is_there(site: cli.Site, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with guest_of(site, ram=patterns.dense) as guest:
        before = guest.state()
        save = ("save", NAME, "--json", "--image", place / "image")
        with struck.stopped(site, "migrate", *save) as process:
            assert list(place.glob("*.partial"))
            shutil.rmtree(place)
            cli.ended(process, check=4)
        state.assert_left_as_found(before, guest.state())
        assert_whole(site, guest, tmp_path, "second")


def test_symbolic_link_to_a_directory(site: cli.Site, guest: qemu.Qemu, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert_whole(site, guest, tmp_path, tmp_path / "link" / "image")
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["image"]


@pytest.mark.parametrize("replace", [(), ("--replace",)], ids=["", "replace"])
def test_what_is_no_image_is_not_written_over(
    site: cli.Site, guest: qemu.Qemu, tmp_path: Path, replace: tuple[str, ...]
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (site.images / "link").symlink_to(victim)
    (site.images / "dangling").symlink_to(tmp_path / "none")
    (site.images / "directory").mkdir()
    os.mkfifo(site.images / "fifo")
    for name in ("link", "dangling", "directory", "fifo"):
        assert refused(site, guest, 3, "--image", name, *replace) == "check.image_exists", name
    assert (site.images / "link").is_symlink()
    assert (site.images / "directory").is_dir()
    (site.images / "new.partial").symlink_to(victim)
    assert refused(site, guest, 8, "--image", "new", *replace) == "guest.busy"
    assert victim.read_text() == "precious"
    assert not (tmp_path / "none").exists()


def test_name_that_exists(site: cli.Site, guest: qemu.Qemu, tmp_path: Path) -> None:
    (site.images / "image").write_text("precious")
    assert refused(site, guest, 3, "--image", "image") == "check.image_exists"
    assert (site.images / "image").read_text() == "precious"
    assert list(site.images.iterdir()) == [site.images / "image"]
    site.run("save", NAME, "--image", "image", "--replace", check=0)
    site.run("verify", "image", check=0)


# Names.


NAMES = [
    b"two words and a trailing blank ",
    b"'quotes\" and $HOME `id` \\ * ?",
    b"new\nline\ttab",
    "Ümläut→日本".encode(),
    b"latin-1 \xfc and \xff\xfe",
    b"\x1b[31m-red",
    b"-looks-like-an-option",
    "é".encode() * 127 + b"e",
    b"\xff" * 255,
]


def test_odd_names(site: cli.Site, guest: qemu.Qemu, tmp_path: Path) -> None:
    guest.control.execute("stop")
    before = guest.snapshot_ram(tmp_path / "ram")
    guest.control.execute("cont")
    names = [os.fsdecode(name) for name in NAMES]
    for name in names:
        site.run("save", NAME, "--image", name, "--then", "resume", check=0)
    assert sorted(os.listdir(os.fsencode(site.images))) == sorted(NAMES)
    listed = site.run("list", "--json", check=0).json()["images"]
    assert sorted(os.path.basename(entry["image"]) for entry in listed) == sorted(names)
    site.run("list", check=0)
    for name in names:
        found = site.run("inspect", "--json", "--", name, check=0).json()
        assert found["image"] == os.path.join(site.images, name)
        with qemu.running(machine="none", name="destination", incoming=True) as destination:
            site.run("restore", "--into", destination.address, "--", name, check=0)
            ram.assert_same(before, destination.ram)


def test_impossible_names(site: cli.Site, guest: qemu.Qemu) -> None:
    for name in ("x" * 256, "é" * 128, ".", "..", "x.partial", f"{site.images}/"):
        assert refused(site, guest, 2, "--image", name) == "usage", name
    assert list(site.images.iterdir()) == []


@pytest.mark.parametrize("command", ["check", "inspect", "verify", "restore"])
def test_fifo_socket_and_device_are_no_images(site: cli.Site, command: str) -> None:
    os.mkfifo(site.images / "fifo")
    (site.images / "directory").mkdir()
    for name in (site.images / "fifo", site.images / "directory", Path("/dev/null")):
        result = site.run(command, name, "--json")
        assert result.returncode in (2, 6), result
        assert result.error_id().startswith("image.")
    assert site.run("list", "--json", check=0).json()["images"] == []


@pytest.mark.root
def test_file_system_without_direct_io(site: cli.Site, guest: qemu.Qemu, tmp_path: Path) -> None:
    with storage.without_direct_io(tmp_path) as place:
        assert refused(site, guest, 3, "--image", place / "i", "--direct-io", "on") == (
            "check.direct_io"
        )
        assert list(place.iterdir()) == []
        result = site.run(
            "save", NAME, "--json", "--image", place / "image", "--then", "leave", check=0
        )
        strategy = result.json()["strategy"]
        assert strategy["direct_io"] is False
        check = site.run("check", NAME, "--json", "--image", place / "other")
        (line,) = (line for line in check.json()["checks"] if line["check"] == "direct_io")
        assert line["detail"] == "the file system refuses O_DIRECT"
        before = guest.snapshot_ram(tmp_path / "ram")
        with qemu.running(machine="none", name="destination", incoming=True) as destination:
            site.run("restore", place / "image", "--into", destination.address, check=0)
            ram.assert_same(before, destination.ram)


@pytest.fixture
def shared_site() -> Iterator[cli.Site]:
    """A set-up that others may enter, below a directory that they may enter."""
    with qemu.directory_for() as place:
        place.chmod(0o755)
        site = cli.Site(place / "site")
        for path in (site.directory, site.images):
            path.chmod(0o755)
        site.state.chmod(0o777)
        yield site


@pytest.mark.root
def test_monitor_that_may_not_be_used(shared_site: cli.Site) -> None:
    with guest_of(shared_site) as guest:
        guest.qmp.parent.chmod(0o755)
        before = guest.state()
        as_nobody(shared_site, "save", NAME, check=7).error("permission.denied")
        state.assert_left_as_found(before, guest.state())


@pytest.mark.root
def test_directory_that_may_not_be_written(shared_site: cli.Site) -> None:
    with guest_of(shared_site) as guest:
        guest.qmp.parent.chmod(0o755)
        guest.qmp.chmod(0o777)
        before = guest.state()
        as_nobody(shared_site, "save", NAME, check=7).error("permission.denied")
        shared_site.images.chmod(0o700)
        result = as_nobody(shared_site, "save", NAME, check=7)
        assert result.error_id() == "permission.denied", result
        state.assert_left_as_found(before, guest.state())
        assert list(shared_site.images.iterdir()) == []


@pytest.mark.root
def test_image_that_may_not_be_read(shared_site: cli.Site) -> None:
    with guest_of(shared_site):
        shared_site.run("save", NAME, "--image", "image", check=0)
    for command in ("check", "inspect", "verify", "restore"):
        as_nobody(shared_site, command, shared_site.images / "image", check=7).error(
            "permission.denied"
        )


@pytest.mark.root
def test_state_directory_that_may_not_be_written(shared_site: cli.Site) -> None:
    shared_site.state.chmod(0o755)
    shared_site.images.chmod(0o777)
    with guest_of(shared_site) as guest:
        guest.qmp.parent.chmod(0o755)
        guest.qmp.chmod(0o777)
        before = guest.state()
        error = as_nobody(shared_site, "save", NAME, check=7).error("permission.denied")
        assert str(shared_site.state) in error["message"]
        state.assert_left_as_found(before, guest.state())
