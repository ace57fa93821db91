"""Checkpoints: whole images of guests that are paused for a moment, and run on."""

import os
from pathlib import Path

import pytest

from tests.kit import cli, memory, patterns, qemu, ram, raw, reflinks, service, state, storage, wait
from tests.kit.reflinks import NAME, SIZE, checkpoint, guest, ram_file
from tests.kit.storage import MIB
from tests.qemu import helpers

pytestmark = pytest.mark.root

_MARK = 0x9000  # in main memory, where no firmware writes
ZEROED = memory.zeroed("32M")


def _shared(path: Path) -> int:
    """Return how many bytes of the file others have as well, by the file system's own tool."""
    from mapsave.image import extents

    with path.open("rb") as file:
        found = extents.shared(file.fileno(), 0, path.stat().st_size)
    assert found is not None
    return sum(end - start for start, end in found)


@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_ram_is_equal(place: cli.Site, tmp_path: Path, machine: str) -> None:
    """Of a guest that does not run: it is left paused, and its RAM is what QEMU loads."""
    with guest(place, machine=machine, ram=patterns.sparse) as source:
        found = source.state()
        before = source.snapshot_ram(tmp_path / "before")
        done = checkpoint(place, "one")
        state.assert_left_as_found(found, source.state(), run_state="postmigrate")
        ram.assert_same(before, source.ram)
        image = place.images / "one"
        assert (done["then"], done["downtime_s"], done["state"]) == ("leave", 0, "saved")
        assert (
            done["checkpoint"]["shared_bytes"] + done["checkpoint"]["written_bytes"]
            == (done["data_bytes"])
        )
        assert _shared(image) == _shared(ram_file(place)) > 20 * MIB
        place.run("verify", "one", check=0)
        shown = place.run("inspect", "one", "--json", check=0).json()
        assert shown["state"] == "saved"
        with qemu.running(*ZEROED, machine=machine, memory="32M", incoming=True) as destination:
            helpers.restore(place, image, destination)
            ram.assert_same(before, destination.ram)


def test_the_guest_runs_on(place: cli.Site) -> None:
    firmware = helpers.counting_firmware(place.directory)
    with guest(place, *firmware, paused=False, ram=patterns.sparse) as source:
        found = source.state()
        for number in range(3):
            source.ram.write("m", _MARK, bytes([number]))
            done = checkpoint(place, str(number))
            state.assert_left_as_found(found, source.state())
            assert 0 < done["downtime_s"] == done["checkpoint"]["paused_s"] < 20
            then = helpers.counts(source)
            wait.until(lambda then=then: helpers.counts(source) != then, what="it to count on")
        source.control.execute("stop")
        before = {name: source.ram.read(name) for name in source.ram.lengths()}
    for number in range(3):
        image = place.images / str(number)
        arguments = [*ZEROED, *firmware]
        with qemu.running(*arguments, machine="q35", memory="32M", incoming=True) as destination:
            helpers.restore(place, image, destination)
            counts = helpers.counts(destination)
            _assert_of_one_moment(counts)
            assert destination.ram.read("m", _MARK, 1) == bytes([number])
            # Elsewhere the firmware changes nothing.
            assert destination.ram.read("m", MIB) == before["m"][MIB:]
            destination.control.execute("cont")
            wait.until(
                lambda guest=destination, then=counts: helpers.counts(guest) != then,
                what="it to count on",
            )


def _assert_of_one_moment(counts: bytes) -> None:
    """Fail unless the counters are as one pass over them leaves them at some moment."""
    steps = [at for at in range(1, len(counts)) if counts[at] != counts[at - 1]]
    assert len(steps) <= 1, steps
    if steps:
        assert (counts[0] - counts[-1]) % 256 == 1


def test_what_was_shared_before_stays_as_it_was(place: cli.Site, tmp_path: Path) -> None:
    """Each image has the RAM of its own moment, though the guest has written to all since."""
    snapshots = []
    with guest(place, ram=patterns.dense, paused=False) as source:
        for number in range(4):
            source.control.execute("stop")
            for page in range(number, 8192, 61 + number):
                source.ram.write("m", page * 4096 + 100, bytes([number + 1]) * 64)
            snapshots.append(source.snapshot_ram(tmp_path / str(number)))
            done = place.run(
                "save", NAME, "-o", str(number), "--then", "leave", "--method", "checkpoint",
                "--json", check=0,
            ).json()  # fmt: skip
            assert (done["then"], done["checkpoint"]["paused_s"]) == ("leave", 0)
            source.control.execute("cont")
    for number, before in enumerate(snapshots):
        with qemu.running(*ZEROED, machine="q35", memory="32M", incoming=True) as destination:
            helpers.restore(place, place.images / str(number), destination)
            ram.assert_same(before, destination.ram)


def test_several_shared_blocks_and_others(xfs: cli.Site, tmp_path: Path) -> None:
    """Two NUMA nodes and a DIMM in shared files, one of them twice; a DIMM of fresh memory."""
    one, two = xfs.directory / "one.ram", xfs.directory / "two.ram"

    def arguments(*, shared: bool) -> list[str]:
        found = ["-m", "slots=2,maxmem=1G"]
        files = {"n0": (one, 16 * MIB, 16 * MIB), "n1": (one, 0, 16 * MIB), "d0": (two, 0, 8 * MIB)}
        for name, (path, offset, size) in files.items():
            kind = f"memory-backend-file,mem-path={path},offset={offset},share=on"
            kind = kind if shared else "memory-backend-ram"
            found += ["-object", f"{kind},id={name},size={size}"]
        for number in (0, 1):
            found += ["-numa", f"node,nodeid={number},memdev=n{number}"]
        found += ["-device", "pc-dimm,memdev=d0"]
        found += ["-object", f"memory-backend-ram,id=d1,size={8 * MIB}"]
        return [*found, "-device", "pc-dimm,memdev=d1", "-vga", "std"]

    one.touch(mode=0o600)
    os.truncate(one, 32 * MIB)
    with qemu.guest(
        xfs, NAME, *arguments(shared=True), machine="q35", memory="32M", ram=patterns.sparse
    ) as source:
        before = source.snapshot_ram(tmp_path / "before")
        done = checkpoint(xfs, "one")
    assert done["checkpoint"]["written_bytes"] < 24 * MIB
    assert done["checkpoint"]["shared_bytes"] <= 40 * MIB
    with qemu.running(
        *arguments(shared=False), machine="q35", memory="32M", incoming=True
    ) as destination:
        raw.restore(destination, xfs.images / "one")
        ram.assert_same(before, destination.ram)


def test_instant_restore_of_a_checkpoint(place: cli.Site, tmp_path: Path) -> None:
    with guest(place, ram=patterns.sparse) as source:
        before = source.snapshot_ram(tmp_path / "before")
        checkpoint(place, "one")
        shared, fresh = memory.from_file(ram_file(place), SIZE, shared=True)[1], ZEROED[1]
        launch = [fresh if word == shared else word for word in source.argv]
        source.control.execute("quit")
        source.wait()
        place.add_guest(NAME, source.qmp, launch=launch)
        done = place.run("restore", "one", "--instant", "on", "--paused", "--json", check=0)
        assert done.json()["instant"] is True
        with source.successor() as restored:
            ram.assert_same(before, restored.ram)


def _refusal(site: cli.Site, *options: str) -> dict[str, str]:
    """Return the error of a checkpoint that is refused, and see that nothing was left."""
    before = sorted(site.images.iterdir())
    result = site.run("checkpoint", NAME, "-o", "it", "--json", *options, check=3)
    assert sorted(site.images.iterdir()) == before
    checked = site.run("check", NAME, "--checkpoint", "--json", check=3).json()
    (line,) = (each for each in checked["checks"] if each["check"] == "checkpoint")
    assert line["error"] == result.error()
    return result.error("check.checkpoint")


@pytest.mark.parametrize(
    ("arguments", "message", "remedy"),
    [
        (
            [],
            "'pc.ram' (320.0 MiB) is not a shared file",
            "by '-object memory-backend-file,id=pc.ram,size=320M,mem-path=",
        ),
        (
            ["-object", "memory-backend-file,id=m,size=320M,mem-path={}/ram,share=off"],
            "'m' (320.0 MiB) is not a shared file",
            "set share=on in '-object …,id=m'",
        ),
        (
            ["-object", "memory-backend-memfd,id=m,size=320M,share=on"],
            "'m' (320.0 MiB) is not a shared file",
            "by '-object memory-backend-file,id=m,size=320M,mem-path=",
        ),
        (
            ["-object", "memory-backend-file,id=m,size=320M,mem-path=/dev/shm/{pid},share=on"],
            "is not on the file system of",
            "set mem-path= of '-object memory-backend-file,id=m'",
        ),
    ],
    ids=["plain", "private", "memfd", "elsewhere"],
)
def test_memory_that_is_no_shared_file_there(
    xfs: cli.Site, arguments: list[str], message: str, remedy: str
) -> None:
    words = [word.format(xfs.directory, pid=os.getpid()) for word in arguments]
    words += ["-machine", "memory-backend=m"] if words else []
    try:
        with qemu.guest(xfs, NAME, *words, machine="q35", memory="320M") as source:
            found = source.state()
            error = _refusal(xfs)
            state.assert_left_as_found(found, source.state())
    finally:
        Path(f"/dev/shm/{os.getpid()}").unlink(missing_ok=True)
    assert message in error["message"]
    assert remedy in error["hint"]


def test_images_elsewhere(xfs: cli.Site, tmp_path: Path) -> None:
    with guest(xfs):
        error = _refused_into(xfs, tmp_path)
        assert "is not on XFS or btrfs" in error["message"]
        with storage.loop_filesystem("btrfs", 200 * MIB, tmp_path) as other:
            other.chmod(0o700)
            error = _refused_into(xfs, other)
            assert f"is not on the file system of '{other}'" in error["message"]


def _refused_into(site: cli.Site, directory: Path) -> dict[str, str]:
    result = site.run("checkpoint", NAME, "-o", directory / "it", "--json", check=3)
    return result.error("check.checkpoint")


def test_too_little_room(tmp_path: Path) -> None:
    """There must be as much as the guest may write from now on: else the kernel kills QEMU."""
    with reflinks.site_on("xfs", tmp_path, 300 * MIB) as site, guest(site):
        room = os.statvfs(site.images)
        site.settings["images"] = str(site.images)
        free = room.f_bavail * room.f_frsize
        filler = site.directory / "filler"
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free - 80 * MIB)
        error = site.run("checkpoint", NAME, "-o", "it", "--json", check=3).error("check.room")
        # The RAM, as much that XFS reserves, and 64 MiB besides.
        assert 128 * MIB < error["data"]["needed_bytes"] < 130 * MIB
        filler.unlink()
        checkpoint(site, "it")


def test_what_does_not_go_together(xfs: cli.Site) -> None:
    with guest(xfs):
        for options in (("--then", "quit"), ("--live", "--then", "resume")):
            words = ("save", NAME, "-o", "it", "--method", "checkpoint", *options)
            assert xfs.run(*words, check=2).stderr
        assert not list(xfs.images.iterdir())


def test_the_file_that_qemu_maps_is_shared_whatever_its_name(xfs: cli.Site, tmp_path: Path) -> None:
    with guest(xfs, ram=patterns.dense) as source:
        before = source.snapshot_ram(tmp_path / "before")
        ram_file(xfs).unlink()
        ram_file(xfs).write_bytes(os.urandom(32 * MIB))
        checkpoint(xfs, "one")
        with qemu.running(*ZEROED, machine="q35", memory="32M", incoming=True) as destination:
            helpers.restore(xfs, xfs.images / "one", destination)
            ram.assert_same(before, destination.ram)


def test_through_the_service_and_by_a_job(xfs: cli.Site) -> None:
    save = {"method": "checkpoint", "then": "resume", "image": "{guest}-{job}.mapsave"}
    xfs.add_job("hourly", guests=[NAME], save=save, keep={"last": 2})
    with guest(xfs, paused=False, ram=patterns.dense) as source, service.running(xfs) as running:
        found = source.state()
        checked = xfs.run("check", NAME, "--checkpoint", "--json", check=0).json()
        assert checked["can_save"] is True
        done = checkpoint(xfs, "one")
        assert done["checkpoint"]["paused_s"] > 0
        (operation,) = running.get("/v1/operations?kind=save&limit=1")["operations"]
        assert operation["result"]["checkpoint"] == done["checkpoint"]
        xfs.run("job", "run", "hourly", check=0)
        state.assert_left_as_found(found, source.state())
    names = [each["name"] for each in xfs.run("list", "--json", check=0).json()["images"]]
    assert sorted(names) == ["one", "web01-hourly.mapsave"]


def test_auto_takes_one_where_it_can(xfs: cli.Site) -> None:
    auto = ("save", NAME, "--method", "auto", "--json")
    with guest(xfs, ram=patterns.dense, paused=False) as source:
        found = source.state()
        done = xfs.run(*auto, "--then", "resume", "-o", "one", check=0).json()
        assert done["checkpoint"]["paused_s"] > 0
        state.assert_left_as_found(found, source.state())
        done = xfs.run(*auto, "--then", "resume", "--live", "-o", "two", check=0).json()
        assert done["checkpoint"] is None
        with xfs.directory.joinpath("filler").open("wb") as file:
            room = os.statvfs(xfs.images)
            os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - 90 * MIB)
        done = xfs.run(*auto, "--then", "resume", "-o", "three", check=0).json()
        assert done["checkpoint"] is None
        assert "needed: as much as the guest can change" in done["reasons"]["method"]
        state.assert_left_as_found(found, source.state())
        xfs.run(*auto, "-o", "four", check=0)
        source.wait()


def test_auto_saves_a_guest_whose_memory_is_no_shared_file(xfs: cli.Site) -> None:
    with qemu.guest(xfs, NAME, memory="16M", paused=False) as source:
        found = source.state()
        done = xfs.run(
            "save", NAME, "--method", "auto", "--then", "resume", "-o", "one", "--json", check=0
        ).json()
        assert done["checkpoint"] is None
        assert "is not a shared file" in done["reasons"]["method"]
        state.assert_left_as_found(found, source.state())
