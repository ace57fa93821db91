"""Clones of a real guest: RAM equal, and what one changes neither the image nor another sees."""

import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.kit import cli, linux_guest, patterns, qemu, ram
from tests.kit.linux_guest import Serial, assert_same_memory
from tests.qemu.scene import saved

MIB = 1 << 20
_GUID = "324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87"


@contextmanager
def _cloned(
    site: cli.Site, image: Path, guest: qemu.Qemu, *words: str, logs: Path | None = None
) -> Iterator[list[qemu.Qemu]]:
    """Start clones and take them over: as the guest was started, but with their own files."""
    argv = guest.argv
    for place in (guest.directory, logs):
        argv = [word.replace(f"{place}/web01", f"{place}/{{name}}") for word in argv]
    site.guests["web01"]["clone"] = {
        "name": "clone-{n}",
        "qmp": f"{guest.directory}/{{name}}.qmp",
        "launch": argv,
    }
    site.write()
    done = site.run("clone", image, *words, "--json", check=0).json()
    with ExitStack() as stack:
        yield [
            stack.enter_context(qemu.adopted(guest.directory, each["guest"]))
            for each in done["clones"]
        ]


def _generation(guest: qemu.Qemu) -> uuid.UUID:
    return uuid.UUID(guest.control.execute("query-vm-generation-id")["guid"])


def test_memory_is_their_own(site: cli.Site) -> None:
    with saved(site, ram=patterns.sparse) as scene:
        before = scene.image.read_bytes()[MIB:]
        with _cloned(site, scene.image, scene.guest, "--count", "2") as (first, second):
            ram.assert_same(scene.ram, first.ram)
            first.ram.write("pc.ram", 2 * MIB, b"of the first alone")
            ram.assert_same(scene.ram, second.ram)
            second.ram.write("pc.ram", 2 * MIB, b"of the second alone")
            assert first.ram.read("pc.ram", 2 * MIB, 18) == b"of the first alone"
            scene.comes_back(site, "--instant", "off")
        assert scene.image.read_bytes()[MIB:] == before


def test_linux_guests_go_on_and_know_that_they_are_copies(site: cli.Site, tmp_path: Path) -> None:
    """Each has its own VM generation ID in memory, where the firmware has told its system."""
    device = ("-device", f"vmgenid,guid={_GUID}")
    with linux_guest.running(*device, log=tmp_path / "web01.log", name="web01") as guest:
        site.add_guest("web01", guest.qemu.qmp)
        guest.serial.wait_ticks(1)
        site.run("save", "web01", "-o", "golden", check=0)
        guest.qemu.wait()
        before = guest.serial.ticks()
        image = site.images / "golden"
        words = ("--count", "2", "--paused")
        with _cloned(site, image, guest.qemu, *words, logs=tmp_path) as clones:
            assert len({_GUID, *(str(_generation(each)) for each in clones)}) == 3
            for each in clones:
                size = linux_guest.MEMORY_BYTES
                assert _generation(each).bytes_le in each.ram.read("pc.ram", 0, size)
                each.control.execute("cont")
            for each in clones:
                serial = Serial(tmp_path / f"{each.name}.log")
                assert_same_memory(before[-1:], serial.wait_ticks(1))
