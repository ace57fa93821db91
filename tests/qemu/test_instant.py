"""RAM that is mapped from the image instead of read: equal to the byte, whatever it consists of."""

import json
import os
from pathlib import Path

import pytest
from mapsave.image import image

from tests.kit import cli, memory, patterns, qemu, ram
from tests.qemu import helpers
from tests.qemu.scene import saved, state_of

MIB = 1 << 20

_JSON = {"qom-type": "memory-backend-ram", "id": "m", "size": 32 * MIB, "dump": True}
_AS_JSON = ["-object", json.dumps(_JSON), "-machine", "memory-backend=m"]
# Arguments and machine of a guest, and the RAM blocks that are mapped.
_GUESTS = {
    "pc": ([], "pc", ["pc.ram"]),
    "q35": ([], "q35", ["pc.ram"]),
    "old-type": ([], "pc-i440fx-3.1", ["pc.ram"]),
    "nodes": (memory.nodes("16M", "16M"), "q35", ["n0", "n1"]),
    "dimm": (memory.dimm("16M"), "q35", ["pc.ram", "d0"]),
    "json": (_AS_JSON, "pc", ["m"]),
}


def _mapped(guest: qemu.Qemu, image: Path) -> int:
    """Return how many bytes of the image the process maps."""
    total = 0
    for line in Path(f"/proc/{guest.pid}/maps").read_text().splitlines():
        addresses, access, *_, path = line.split(maxsplit=5)
        if path == str(image):
            assert access == "rw-p"
            first, _, end = addresses.partition("-")
            total += int(end, 16) - int(first, 16)
    return total


@pytest.mark.parametrize(("arguments", "machine", "blocks"), _GUESTS.values(), ids=_GUESTS.keys())
def test_ram_is_equal(
    site: cli.Site, arguments: list[str], machine: str, blocks: list[str]
) -> None:
    if machine == "pc-i440fx-3.1" and qemu.version(qemu.BINARY) >= (10, 1):
        pytest.skip("this QEMU has no machine type that is so old")
    with saved(site, *arguments, machine=machine, ram=patterns.sparse) as scene:
        before = scene.image.read_bytes()[MIB:]
        restored = site.run("restore", scene.image, "--instant", "on", "--json", check=0).json()
        assert restored["instant"] is True
        with scene.guest.successor() as guest:
            ram.assert_same(scene.ram, guest.ram)
            assert guest.state().fdsets == []
            lengths = guest.ram.lengths()
            assert _mapped(guest, scene.image) == sum(lengths[name] for name in blocks)
            for name in blocks:
                guest.ram.write(name, 2 * MIB, b"the guest's own")
        assert scene.image.read_bytes()[MIB:] == before
        assert state_of(site, scene.image) == "restored"


def test_memory_of_virtio_mem_is_loaded(site: cli.Site) -> None:
    """Main memory is mapped beside it. Nothing is plugged in, which is in no image."""
    with saved(site, *memory.virtio_mem("32M"), machine="q35", ram=None) as scene:
        site.run("restore", scene.image, "--instant", "on", check=0)
        with scene.guest.successor() as guest:
            ram.assert_same(scene.ram, guest.ram)
            assert _mapped(guest, scene.image) == 32 * MIB
            (device,) = guest.control.execute("query-memory-devices")
            assert (device["data"]["size"], device["data"]["requested-size"]) == (0, 32 * MIB)


def _host_memory() -> int:
    """Return the bytes of memory and swap of this host."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    return sum(int(words[1]) << 10 for words in lines if words[0] in ("MemTotal:", "SwapTotal:"))


def test_more_ram_than_the_host_has(site: cli.Site) -> None:
    """Nothing is reserved for it; to read it, as the same command does else, fails."""
    size = 64 << 30
    while size < 2 * _host_memory():
        size *= 2
    backend = ["-object", f"memory-backend-ram,id=pc.ram,size={size},reserve=off"]
    with qemu.running(
        *backend, "-machine", "memory-backend=pc.ram", name="web01", memory=f"{size >> 30}G"
    ) as guest:
        guest.ram.write("pc.ram", 33 << 30, b"far away")
        launch = [word for word in guest.argv if word not in (*backend, "memory-backend=pc.ram")]
        launch.reverse()
        launch.remove("-machine")
        launch.reverse()
        site.add_guest("web01", guest.qmp, launch=launch)
        site.run("save", "web01", "-o", "large", check=0)
        guest.wait()
        site.run("restore", "large", "--instant", "off", check=5)
        done = site.run("restore", "large", "--instant", "on", "--json", check=0).json()
        assert done["ram_bytes"] > size
        with guest.successor() as restored:
            assert restored.ram.read("pc.ram", 33 << 30, 4096) == b"far away".ljust(4096, b"\0")
            assert not any(restored.ram.read("pc.ram", 40 << 30, MIB))


@pytest.mark.parametrize("live", [False, True], ids=["paused", "live"])
def test_saved_again(site: cli.Site, live: bool) -> None:
    """The image of such a guest is whole, and restores where the first one is gone."""
    firmware = helpers.counting_firmware(site.directory)
    with saved(site, *firmware, ram=patterns.sparse) as scene:
        site.run("restore", scene.image, "--instant", "on", "--run", check=0)
        with scene.guest.successor() as guest:
            guest.ram.write("pc.ram", 8 * MIB, b"changed since")
            again = ("save", "web01", "-o", "again", "--then", "leave", "--json")
            site.run(*again, *(["--live"] if live else []), check=0)
            before = guest.snapshot_ram(site.directory / "again.ram")
        recorded = site.run("inspect", "again", "--json", check=0).json()["command"]["argv"]
        assert not any("/proc/" in word for word in recorded)
        site.run("discard", scene.image, check=0)
        for how in ("on", "off"):
            site.run("restore", "again", "--again", "--instant", how, "--paused", check=0)
            with scene.guest.successor() as guest:
                ram.assert_same(before, guest.ram)


def test_live_images_have_old_pages(site: cli.Site) -> None:
    """What was written by a live save, and was zero in the end, is zero."""
    with saved(site, ram=patterns.sparse) as scene:
        with image.opened(scene.image) as opened:
            block = opened.validate().stream.blocks[0]
        with scene.image.open("r+b") as file:
            page = next(
                at
                for at in range(MIB, 31 * MIB, 4096)
                if os.pread(file.fileno(), 4096, block.pages_offset + at) == bytes(4096)
            )
            os.pwrite(file.fileno(), b"old", block.pages_offset + page)
        scene.comes_back(site, "--instant", "on")


def test_what_cannot_be_mapped_is_read(site: cli.Site, tmp_path: Path) -> None:
    """And the result says why; with ``on`` nothing is started."""
    file = patterns.write(tmp_path / "ram", 32 * MIB)
    os.truncate(file, 0)
    os.truncate(file, 32 * MIB)
    with saved(site, *memory.from_file(file, "32M", shared=True)) as scene:
        os.truncate(file, 0)
        os.truncate(file, 32 * MIB)
        error = site.run("restore", scene.image, "--instant", "on", "--json", check=3).error()
        assert error["id"] == "check.instant"
        assert "share=on" in error["message"]
        done = site.run("restore", scene.image, "--instant", "auto", "--json", check=0).json()
        assert done["instant"] is False
        assert "share=on" in done["reasons"]["instant"]
        with scene.guest.successor() as guest:
            ram.assert_same(scene.ram, guest.ram)


def test_a_command_that_closes_descriptors(site: cli.Site) -> None:
    """QEMU says that there is no such file; without ``on`` it is started again to read it."""
    with saved(site) as scene:
        script = 'for fd in /proc/self/fd/*; do n=${fd##*/}; [ "$n" -gt 60 ] && eval "exec $n>&-";'
        closing = ["bash", "-c", f'{script} done; exec "$@"', "bash", *scene.guest.argv]
        site.add_guest("web01", scene.guest.qmp, launch=closing)
        error = site.run("restore", scene.image, "--instant", "on", "--json", check=5).error()
        assert "No such file" in error["message"]
        assert "closes descriptors" in error["hint"]
        done = site.run("restore", scene.image, "--instant", "auto", "--json", check=0).json()
        assert "No such file" in done["reasons"]["instant"]
        with scene.guest.successor() as guest:
            ram.assert_same(scene.ram, guest.ram)


def test_a_command_that_has_another_file_there(site: cli.Site, tmp_path: Path) -> None:
    """QEMU maps it without a word: its guest would run on the memory of another."""
    with saved(site, ram=patterns.sparse) as scene:
        other = patterns.write(tmp_path / "other", scene.image.stat().st_size)
        taking = ["bash", "-c", f'exec 64<{other}; exec "$@"', "bash", *scene.guest.argv]
        site.add_guest("web01", scene.guest.qmp, launch=taking)
        error = site.run("restore", scene.image, "--instant", "on", "--json", check=5).error()
        assert "'pc.ram'" in error["message"]
        assert state_of(site, scene.image) == "saved"
        done = site.run("restore", scene.image, "--instant", "auto", "--json", check=0).json()
        assert "'pc.ram'" in done["reasons"]["instant"]
        with scene.guest.successor() as guest:
            ram.assert_same(scene.ram, guest.ram)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts a QEMU as another user")
def test_a_qemu_of_another_user(site: cli.Site) -> None:
    """It is let in while it starts, and the image is as private as before after that.

    A later save records how QEMU was called, without what had started it as that user.
    """
    nobody = 65534
    with qemu.directory_for(nobody) as directory:
        under = ["setpriv", f"--reuid={nobody}", f"--regid={nobody}", "--clear-groups"]
        with saved(site, directory=directory, under=under) as scene:
            mode = scene.image.stat().st_mode
            assert mode & 0o077 == 0
            site.run("restore", scene.image, "--instant", "on", check=0)
            assert scene.image.stat().st_mode == mode
            assert os.listxattr(scene.image) == []
            with scene.guest.successor() as guest:
                ram.assert_same(scene.ram, guest.ram)
                site.run("save", "web01", "-o", "again", check=0)
            recorded = site.run("inspect", "again", "--json", check=0).json()["command"]["argv"]
            added = ["-S", "-incoming", "defer"]
            called = [*scene.guest.argv[len(under) + 1 :], *added]
            assert recorded[-len(called) :] == called
            assert os.path.basename(recorded[0]).startswith("qemu-system-")  # a script starts it
