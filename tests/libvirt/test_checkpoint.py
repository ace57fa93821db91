"""Checkpoints of domains whose RAM is in files of libvirt's, beside their images."""

import shutil
import signal
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from mapsave.operations.ram_remedies import MEMORY_BACKING

from tests.faults import struck
from tests.kit import cli, libvirtd, qemu, ram, state, storage
from tests.kit.domain import Domain
from tests.kit.libvirtd import Daemon
from tests.kit.outcomes import COMMITTED, PUT_BACK
from tests.kit.storage import MIB
from tests.libvirt.scene import IMAGE, NAME, as_before, nothing_left, small
from tests.libvirt.ways import Restore, restore

pytestmark = pytest.mark.root

# Two nodes and a DIMM, each of which has a file of its own.
NUMA = (
    "<cpu><numa><cell id='0' cpus='0' memory='16' unit='MiB'/><cell id='1' memory='16' unit='MiB'/>"
    "</numa></cpu><features><acpi/></features><maxMemory slots='2' unit='MiB'>512</maxMemory>"
)
DIMM = "<memory model='dimm'><target><size unit='MiB'>16</size><node>1</node></target></memory>"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with storage.loop_filesystem("xfs", 600 * MIB, tmp_path_factory.mktemp("reflinks")) as found:
        yield found


@pytest.fixture(scope="module")
def sharing(place: Path) -> Iterator[Daemon]:
    """A libvirtd that keeps RAM files on the file system of the images."""
    with libvirtd.running(qemu_conf=f'memory_backing_dir = "{place}/ram"\n') as found:
        yield found


@pytest.fixture
def site(place: Path) -> Iterator[cli.Site]:
    found = cli.Site(place / "site")
    yield found
    shutil.rmtree(found.directory)


def shared(daemon: Daemon, more: str = "", **options: Any) -> AbstractContextManager[Domain]:
    """Run a guest whose RAM is in shared files; it halts while it runs."""
    return small(daemon, more=MEMORY_BACKING + more, kvm=qemu.has_kvm(), **options)


def checkpoint(site: cli.Site, guest: Domain, name: str) -> dict[str, Any]:
    words = ("checkpoint", guest.address, "--image", name, "--json")
    found: dict[str, Any] = site.run(*words, check=0).json()
    assert 0 < found["checkpoint"]["written_bytes"] < 4 * MIB < found["checkpoint"]["shared_bytes"]
    return found


def ram_files(place: Path) -> list[Path]:
    return [each for each in sorted((place / "ram").rglob("*")) if each.is_file()]


@pytest.mark.parametrize(
    ("options", "ways"),
    [
        pytest.param({}, ("virsh", "own"), id="one file"),
        pytest.param(
            {"more": NUMA, "devices": DIMM, "memory": 48 * MIB}, ("virsh",), id="nodes and a DIMM"
        ),
    ],
)
def test_ram_is_equal(
    sharing: Daemon,
    place: Path,
    site: cli.Site,
    tmp_path: Path,
    options: dict[str, Any],
    ways: tuple[Restore, ...],
) -> None:
    """Of a guest that is paused, and stays so; restored by both, which make other RAM files."""
    with shared(sharing, **options) as guest:
        before = guest.snapshot_ram(tmp_path / "before")
        found, was = guest.status(), guest.state()
        assert len(ram_files(place)) == (3 if options else 1)
        for number, way in enumerate(ways):
            done = checkpoint(site, guest, way)
            assert (done["then"], done["downtime_s"]) == ("leave", 0)
            if not number:
                state.assert_left_as_found(found, guest.status(), run_state="postmigrate")
                assert guest.state() == was
            ram.assert_same(before, guest.ram)
            guest.virsh("destroy")
            assert ram_files(place) == []  # libvirt removes them
            restore(way, guest, site, site.images / way)
            assert guest.state().startswith("paused")
            ram.assert_same(before, guest.ram)


def test_no_one_else_reads_the_ram_file(sharing: Daemon, place: Path) -> None:
    """It has the guest's secrets; the directory that libvirt makes for it is QEMU's alone."""
    with shared(sharing):
        (file,) = ram_files(place)
        assert stat.S_IMODE(file.parent.stat().st_mode) & 0o077 == 0


def test_the_guest_runs_on(sharing: Daemon, site: cli.Site, tmp_path: Path) -> None:
    """Each image has the RAM of its moment, and libvirt saves the guest itself after that."""
    with shared(sharing, paused=False, transient=False) as guest:
        found, snapshots = guest.status(), []
        for number in range(3):
            for place in (2, 9, 17):
                guest.ram.write("pc.ram", (place + number) * MIB + 100, bytes([number]) * 6000)
            snapshots.append(ram.snapshot(guest.ram, tmp_path / str(number)))
            done = checkpoint(site, guest, str(number))
            assert done["then"] == "resume"
            assert 0 < done["downtime_s"] == done["checkpoint"]["paused_s"] < 20
            as_before(guest, found)
        guest.virsh("suspend")
        guest.virsh("resume")
        guest.virsh("save", site.images / "theirs", "--image-format", "sparse")
        for number, before in enumerate(snapshots):
            sharing.virsh("restore", site.images / str(number))
            assert guest.state() == "running (restored)"
            ram.assert_same(before, guest.ram)
            guest.virsh("destroy")


def test_the_native_format(sharing: Daemon, site: cli.Site, tmp_path: Path) -> None:
    with shared(sharing) as guest:
        before = guest.snapshot_ram(tmp_path / "before")
        words = ("--method", "checkpoint", "--then", "leave", "--format", "native", "--json")
        done = site.run("save", guest.address, "-o", IMAGE, *words, check=0).json()
        assert done["checkpoint"]["shared_bytes"] > 8 * MIB
        guest.virsh("destroy")
        restore("own", guest, site, site.images / IMAGE)
        ram.assert_same(before, guest.ram)


@pytest.mark.parametrize(
    ("where", "step"),
    [("after", "hand-over"), ("after", "migrate"), ("at", "share"), ("before", "complete")],
)
def test_killed_before_it_is_whole(sharing: Daemon, site: cli.Site, where: str, step: str) -> None:
    with shared(sharing, paused=False) as guest:
        before = guest.status()
        words = ("checkpoint", guest.address, "--image", IMAGE)
        result = site.run(*words, command=struck.killer(where, step))
        assert result.returncode == -signal.SIGKILL, result
        assert step != "share" or guest.state() == "paused (user)"
        (line,) = site.run("recover", "--json", check=0).json()["operations"]
        assert line["outcome"].startswith(PUT_BACK)
        as_before(guest, before)
        nothing_left(site)
        checkpoint(site, guest, IMAGE)


def test_killed_once_it_is_whole(sharing: Daemon, site: cli.Site) -> None:
    with shared(sharing, paused=False) as guest:
        before = guest.status()
        struck.killed(site, "after", "resume", "checkpoint", guest.address, "--image", IMAGE)
        struck.recovered(site, COMMITTED)
        as_before(guest, before)
        nothing_left(site, IMAGE)
        guest.virsh("destroy")
        sharing.virsh("restore", site.images / IMAGE)
        guest.wait_state("running")


def _refusal(site: cli.Site, guest: Domain, before: state.State) -> dict[str, str]:
    """Return the error of a checkpoint that is refused, and see that the guest is as before."""
    words = ("checkpoint", guest.address, "--image", IMAGE, "--json")
    error = site.run(*words, check=3).error("check.checkpoint")
    checked = site.run("check", guest.address, "--checkpoint", "--json", check=3).json()
    (line,) = (each for each in checked["checks"] if each["check"] == "checkpoint")
    assert line["error"] == error
    as_before(guest, before)
    nothing_left(site)
    return error


@pytest.mark.parametrize(
    ("backing", "remedy"),
    [
        ("", f"in the domain's XML, set {MEMORY_BACKING}, and in libvirt's qemu.conf"),
        (MEMORY_BACKING.replace("'file'", "'memfd'"), f"in the domain's XML, set {MEMORY_BACKING}"),
        (MEMORY_BACKING.replace("shared", "private"), "set <access mode='shared'/>"),
    ],
    ids=["plain", "memfd", "private"],
)
def test_memory_that_is_no_shared_file(
    sharing: Daemon, site: cli.Site, backing: str, remedy: str
) -> None:
    """``auto`` saves such a guest."""
    with small(sharing, more=backing, paused=False) as guest:
        before = guest.status()
        error = _refusal(site, guest, before)
        assert "'pc.ram' (24.0 MiB) is not a shared file" in error["message"]
        assert remedy in error["hint"]
        words = ("--method", "auto", "--then", "resume", "--json")
        done = site.run("save", guest.address, "-o", IMAGE, *words, check=0).json()
        assert done["checkpoint"] is None
        assert "is not a shared file" in done["reasons"]["method"]
        as_before(guest, before)


def test_ram_files_elsewhere(daemon: Daemon, site: cli.Site) -> None:
    with shared(daemon, paused=False) as guest:
        error = _refusal(site, guest, guest.status())
        assert "is not on the file system of" in error["message"]
        assert "set memory_backing_dir in libvirt's qemu.conf" in error["hint"]


def test_a_file_system_without_reflinks(tmp_path: Path) -> None:
    no_reflinks = ("-m", "reflink=0")
    with (
        storage.loop_filesystem("xfs", 300 * MIB, tmp_path, mkfs=no_reflinks) as place,
        libvirtd.running(qemu_conf=f'memory_backing_dir = "{place}/ram"\n') as own,
        shared(own, paused=False) as guest,
    ):
        error = _refusal(cli.Site(place / "site"), guest, guest.status())
        assert "cannot share its blocks with a file in" in error["message"]
        assert "mkfs.xfs -m reflink=1" in error["hint"]


def test_images_elsewhere(sharing: Daemon, tmp_path: Path) -> None:
    site = cli.Site(tmp_path / "elsewhere")
    with shared(sharing, paused=False) as guest:
        error = _refusal(site, guest, guest.status())
        assert "is not on XFS or btrfs" in error["message"]


def test_what_a_host_that_went_down_has_left(
    sharing: Daemon, place: Path, site: cli.Site, tmp_path: Path
) -> None:
    """libvirt counts ids from 1 again after it, and takes a file of that name for the RAM.

    QEMU writes no pages that the image lacks: what was there stays. mapsave looks for it.
    """
    with shared(sharing, ram=None) as guest:
        guest.ram.write("pc.ram", 8 * MIB, b"the guest's own")
        before = guest.snapshot_ram(tmp_path / "before")
        site.run("checkpoint", guest.address, "--image", IMAGE, check=0)
        number = int(guest.virsh("domid").stdout)
        guest.virsh("destroy")
        stale = _stale(place, number + 1)
        sharing.virsh("restore", site.images / IMAGE, "--paused")
        assert guest.ram.read("pc.ram", 16 * MIB, 4096) == STALE
        guest.virsh("destroy")
        assert not stale.exists()

        stale = _stale(place, number + 2)
        words = ("restore", IMAGE, "--guest", guest.address, "--json")
        error = site.run(*words, check=3).error("check.destination_not_zero")
        assert f"{stale}" in error["message"]
        restore("own", guest, site, site.images / IMAGE)
        ram.assert_same(before, guest.ram)


STALE = b"what was in the RAM of another guest".ljust(4096, b".")


def _stale(place: Path, number: int) -> Path:
    """Make the file that libvirt will use for the domain with that id."""
    path = place / f"ram/libvirt/qemu/{number}-{NAME}/pc.ram"
    path.parent.mkdir(mode=0o700)
    path.write_bytes(STALE * (24 * MIB // 4096))
    return path


def test_by_a_job(sharing: Daemon, site: cli.Site) -> None:
    site.add_guest("web", libvirt={"uri": sharing.uri, "domain": NAME})
    site.add_job("hourly", guests=["web"], save={"method": "checkpoint", "then": "resume"})
    with shared(sharing, paused=False) as guest:
        before = guest.status()
        site.run("job", "run", "hourly", check=0)
        (name,) = (path.name for path in site.images.iterdir())
        shown = site.run("inspect", name, "--json", check=0).json()
        assert shown["checkpoint"]["pauses"] in (1, 2)
        as_before(guest, before)
