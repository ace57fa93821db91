"""Every way to a destination, what the guest does then, and what is refused before it is loaded."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from mapsave.image import superblock

from tests.kit import cli, files, inject, memory, patterns, qemu, ram, state
from tests.qemu.scene import saved, state_of

# Ways to a destination.


def test_launch_of_the_configuration(site: cli.Site) -> None:
    with saved(site) as scene:
        done = site.run("restore", "web01.mapsave", "--json", check=0).json()
        with scene.guest.successor() as restored:
            assert done["pid"] == restored.pid
            ram.assert_same(scene.ram, restored.ram)
            assert restored.state().fdsets == []
        assert state_of(site, scene.image) == "restored"


def test_into_a_qemu_that_waits(site: cli.Site) -> None:
    with saved(site, launch=False) as scene, qemu.running(memory="32M", incoming=True) as waiting:
        before = waiting.state()
        done = site.run("restore", scene.image, "--into", waiting.address, "--json", check=0).json()
        assert done["monitor"] == waiting.address
        ram.assert_same(scene.ram, waiting.ram)
        state.assert_left_as_found(before, waiting.state(), run_state=done["run_state"])


def test_recorded_command_only_if_trusted(site: cli.Site) -> None:
    with saved(site, launch=False) as scene:
        site.guests.clear()
        site.write()
        error = site.run("restore", scene.image, "--json", check=3).error("check.no_destination")
        assert "--trust-recorded-command" in error["hint"]
        assert state_of(site, scene.image) == "saved"

        scene.comes_back(site, "--trust-recorded-command")


def test_guest_option_starts_another_guest(site: cli.Site, tmp_path: Path) -> None:
    with saved(site, launch=False) as scene, qemu.directory_for() as directory:
        argv = qemu.command(directory=directory, name="copy", memory="32M")
        site.add_guest("copy", directory / "copy.qmp", launch=argv)
        done = site.run("restore", scene.image, "--guest", "copy", "--json", check=0).json()
        assert done["guest"] == "copy"
        with qemu.adopted(directory, "copy") as restored:
            ram.assert_same(scene.ram, restored.ram)


@pytest.mark.parametrize("whose", ["guest", "general", "both"])
def test_label_policy_of_the_configuration(site: cli.Site, whose: str) -> None:
    """The guest's own first, then the general one; what is asked for comes before both."""
    with saved(site) as scene:
        if whose != "general":
            site.guests["web01"]["policy"] = "of-guest"
        if whose != "guest":
            site.settings["save"] = {"policy": "general"}
        site.write()
        error = site.run("restore", scene.image, "--json", check=2).error("policy.unknown")
        assert error["data"]["policy"] == ("general" if whose == "general" else "of-guest")
        assert state_of(site, scene.image) == "saved"
        with qemu.running(memory="32M", incoming=True) as waiting:
            into = ("restore", scene.image, "--into", waiting.address, "--json")
            assert site.run(*into, check=2).error()["data"] == error["data"]
            assert waiting.status() == "inmigrate"
        scene.comes_back(site, "--policy", "none")


# What the guest does afterwards.


@pytest.mark.parametrize(
    ("was_running", "option", "runs"),
    [(True, None, True), (True, "--paused", False), (False, None, False), (False, "--run", True)],
)
def test_run_state_afterwards(
    site: cli.Site, was_running: bool, option: str | None, runs: bool
) -> None:
    with qemu.guest(site, "web01", memory="32M", paused=not was_running) as guest:
        image = site.run("save", "web01", "--json", check=0).json()["image"]
        guest.wait()
        options = [option] if option else []
        done = site.run("restore", image, *options, "--json", check=0).json()
        with guest.successor() as restored:
            assert restored.status() == done["run_state"]
            assert (restored.status() == "running") is runs
            assert (done["downtime_s"] is not None) is (was_running and runs)
            if not runs:  # and it is only paused: an operator can let it run
                restored.control.execute("cont")
                assert restored.status() == "running"


def test_paused_guest_stays_paused(site: cli.Site) -> None:
    with qemu.running(name="web01", memory="32M", paused=False) as guest:
        guest.control.execute("stop")
        assert guest.status() == "paused"
        site.add_guest("web01", guest.qmp, launch=guest.argv)
        saved_as = site.run("save", "web01", "--json", check=0).json()
        assert saved_as["downtime_s"] == 0
        guest.wait()
        done = site.run("restore", saved_as["image"], "--json", check=0).json()
        with guest.successor() as restored:
            assert (done["run_state"], restored.status()) == ("paused", "paused")


def test_guest_that_is_left_can_be_continued(site: cli.Site) -> None:
    with qemu.guest(site, "web01", memory="32M", paused=False, ram=patterns.dense) as guest:
        found = guest.state()
        site.run("save", "web01", "-o", "first", "--then", "leave", check=0)
        state.assert_left_as_found(found, guest.state(), run_state="postmigrate")
        again = site.run("save", "web01", "--json", check=3).error()
        assert again["id"] == "check.run_state"
        guest.control.execute("cont")
        assert guest.status() == "running"
        site.run("save", "web01", "-o", "second", "--then", "resume", check=0)
        state.assert_left_as_found(found, guest.state())


# Images are neither used twice nor overwritten by mistake.


def test_second_restore_needs_again(site: cli.Site) -> None:
    with saved(site) as scene:
        site.run("restore", scene.image, check=0)
        with scene.guest.successor() as restored:
            first = restored.status()
        error = site.run("restore", scene.image, "--json", check=3).error("check.already_restored")
        assert "--again" in error["hint"]
        site.run("restore", scene.image, "--again", check=0)
        with scene.guest.successor() as restored:
            assert restored.status() == first
            ram.assert_same(scene.ram, restored.ram)


def test_existing_image_goes_only_with_replace(site: cli.Site) -> None:
    with saved(site) as scene, qemu.running(memory="32M", ram=patterns.sparse) as other:
        old = scene.image.read_bytes()
        found = other.state()
        command = ("save", other.address, "-o", scene.image.name, "--then", "resume", "--json")
        error = site.run(*command, check=3).error("check.image_exists")
        assert "--replace" in error["hint"]
        assert scene.image.read_bytes() == old
        assert other.state() == found

        before = other.snapshot_ram(site.directory / "other.ram")
        site.run(*command, "--replace", check=0)
        assert [path.name for path in site.images.iterdir()] == [scene.image.name]
        site.run("restore", scene.image, "--guest", "web01", check=0)
        with scene.guest.successor() as restored:
            ram.assert_same(before, restored.ram)


def test_replace_that_fails_keeps_the_older_image(site: cli.Site) -> None:
    full = inject.environment(inject.FULL)
    with saved(site) as scene, qemu.running(memory="32M", ram=patterns.dense, env=full) as other:
        old = scene.image.read_bytes()
        found = other.state()
        command = ("save", other.address, "-o", scene.image.name, "--replace", "--json")
        # Of a failure beside other channels QEMU dies once in a thousand times (hazards.md).
        done = site.run(*command, "--channels", "1", check=4)
        assert done.error_id() == "save.failed"
        assert other.state() == found
        assert [path.name for path in site.images.iterdir()] == [scene.image.name]
        assert scene.image.read_bytes() == old
        scene.comes_back(site)


# Destinations that do not fit: QEMU would load them, or die of them.

_SMALL = ["-m", "32M"]
_MISMATCHES = {
    "ram-size": (_SMALL, ["-m", "48M"], "33554432 bytes of RAM"),
    "machine-type": (_SMALL, [*_SMALL, "-machine", "q35"], "machine type"),
    "missing-block": ([*_SMALL, "-device", "VGA"], _SMALL, "missing in the destination"),
    "block-size": (
        [*_SMALL, "-device", "VGA,vgamem_mb=16"],
        [*_SMALL, "-device", "VGA,vgamem_mb=8"],
        "vga.vram",
    ),
    "missing-dimm": ([*_SMALL, *memory.dimm("16M")], [*_SMALL, *memory.dimm("32M")], "hotplugged"),
    "other-backend": (_SMALL, [*_SMALL, *memory.zeroed("32M")], "'pc.ram'"),
}


@pytest.mark.parametrize(
    ("source", "destination", "words"), _MISMATCHES.values(), ids=_MISMATCHES.keys()
)
def test_destination_that_differs_is_refused_and_stays_usable(
    site: cli.Site, source: list[str], destination: list[str], words: str
) -> None:
    with (
        saved(site, *source, name="other", launch=False) as wrong,
        saved(site, *destination, name="right", launch=False) as right,
        qemu.running(*destination, incoming=True) as waiting,
    ):
        found = waiting.state()
        error = site.run(
            "restore", wrong.image, "--into", waiting.address, "--json", check=3
        ).error("check.destination")
        assert words in error["message"]
        assert waiting.state() == found
        assert found.run_state == "inmigrate"
        assert state_of(site, wrong.image) == "saved"

        site.run("restore", right.image, "--into", waiting.address, check=0)
        ram.assert_same(right.ram, waiting.ram)


def test_destination_that_does_not_wait_is_refused(site: cli.Site) -> None:
    with saved(site, launch=False) as scene, qemu.running(memory="32M", paused=False) as busy:
        found = busy.state()
        error = site.run("restore", scene.image, "--into", busy.address, "--json", check=3).error(
            "check.run_state"
        )
        assert "-incoming defer" in error["hint"]
        assert busy.state() == found


def test_older_qemu_needs_force(site: cli.Site) -> None:
    with saved(site) as scene:
        _rewrite_metadata(scene.image, qemu={"version": "99.0.0", "package": ""})
        error = site.run("restore", scene.image, "--json", check=3).error("check.older_qemu")
        assert "99.0.0" in error["message"]
        scene.comes_back(site, "--force")


def _rewrite_metadata(image: Path, **changes: Any) -> None:
    with files.opened(image, os.O_RDWR) as fd:
        block = superblock.read(fd)
        superblock.write(fd, block, {**superblock.read_metadata(fd, block), **changes})


def test_into_a_qemu_that_waits_without_metadata(site: cli.Site) -> None:
    """The stream says machine and RAM, which are compared; the rest is said not to be."""
    with saved(site, launch=False) as scene:
        with files.opened(scene.image, os.O_RDWR) as fd:
            block = superblock.read(fd)
            for offset in block.place.areas(block.stream_offset)[:2]:
                os.pwrite(fd, b"[", offset)
        site.run("restore", scene.image, check=6)
        words = ("restore", scene.image, "--without-metadata", "--json", "--into")
        with qemu.running(memory="48M", incoming=True) as other:
            error = site.run(*words, other.address, check=3).error("check.destination")
            assert "RAM" in error["message"]
            assert other.status() == "inmigrate"
        with qemu.running(memory="32M", incoming=True) as waiting:
            done = site.run(*words, waiting.address, check=0).json()
            said = " ".join(done["warnings"])
            for words_of_it in ("both copies", "version of QEMU", "processors and machine options"):
                assert words_of_it in said
            ram.assert_same(scene.ram, waiting.ram)


def test_what_virtio_mem_has_plugged_in_comes_with_the_guest(site: cli.Site) -> None:
    """A destination has nothing of it plugged in before it is loaded, but room for it."""
    with saved(site, *memory.virtio_mem("32M"), machine="q35", ram=None) as scene:
        _rewrite_metadata(scene.image, memory={"base": 32 << 20, "plugged": 34 << 20})
        site.run("restore", scene.image, "--json", check=3).error("check.destination")
        _rewrite_metadata(scene.image, memory={"base": 32 << 20, "plugged": 32 << 20})
        scene.comes_back(site)


def test_stale_memory_of_the_destination_is_refused(site: cli.Site, tmp_path: Path) -> None:
    stale = patterns.write(tmp_path / "ram", 32 << 20)
    backed = memory.from_file(stale, "32M", shared=True)
    with saved(site, *memory.zeroed("32M"), ram=patterns.sparse, launch=False) as scene:
        with qemu.running(*backed, memory="32M", incoming=True) as waiting:
            into = ("--into", waiting.address, "--json")
            error = site.run("restore", scene.image, *into, check=3).error(
                "check.destination_not_zero"
            )
            assert str(stale) in error["message"]
            assert waiting.status() == "inmigrate"
        os.truncate(stale, 0)
        os.truncate(stale, 32 << 20)
        with qemu.running(*backed, memory="32M", incoming=True) as waiting:
            site.run("restore", scene.image, "--into", waiting.address, check=0)
            ram.assert_same(scene.ram, waiting.ram)


def test_truncated_image_starts_no_destination(site: cli.Site, tmp_path: Path) -> None:
    with saved(site) as scene:
        marker = tmp_path / "started"
        launch = ["sh", "-c", f'touch {marker}; exec "$@"', "sh", *scene.guest.argv]
        site.add_guest("web01", scene.guest.qmp, launch=launch)
        os.truncate(scene.image, scene.image.stat().st_size - 4096)
        error = site.run("restore", scene.image, "--json", check=6).error("image.truncated")
        assert not marker.exists()
        assert site.run("verify", scene.image, "--json", check=6).error_id() == error["id"]


def test_launch_that_fails_is_quoted(site: cli.Site) -> None:
    with saved(site) as scene:
        image = scene.image.read_bytes()
        for launch, words in (
            ([*scene.guest.argv, "-device", "nosuch"], "'nosuch' is not a valid device model name"),
            (["/nonexistent/qemu"], "/nonexistent/qemu"),
        ):
            site.add_guest("web01", scene.guest.qmp, launch=launch)
            error = site.run("restore", scene.image, "--json", check=5).error("restore.launch")
            assert words in error["message"]
        assert scene.image.read_bytes() == image


# Listens where QEMU will, and answers neither who only looks nor who connects after that.
_SILENT_AT_FIRST = """
import os, socket, sys
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(sys.argv[1])
    listener.listen()
    for _ in range(2):
        client, _ = listener.accept()
        with client:
            client.recv(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""
_IMPATIENT = """
from mapsave.cli import start
from mapsave.monitor import qmp
qmp.GREETING_TIMEOUT = 0.5
start.command()
"""


def test_launch_that_does_not_answer_at_first(site: cli.Site) -> None:
    with saved(site) as scene:
        qmp = str(scene.guest.qmp)
        launch = [sys.executable, "-c", _SILENT_AT_FIRST, qmp, *scene.guest.argv]
        site.add_guest("web01", scene.guest.qmp, launch=launch)
        scene.guest.qmp.unlink(missing_ok=True)
        scene.comes_back(site, command=[sys.executable, "-c", _IMPATIENT])


def test_failed_load_ends_the_destination_and_keeps_the_image(site: cli.Site) -> None:
    with saved(site, "-device", "virtio-rng-pci") as scene:
        image = scene.image.read_bytes()
        without = [word for word in scene.guest.argv if word not in ("-device", "virtio-rng-pci")]
        site.add_guest("web01", scene.guest.qmp, launch=without)
        # That no process stays is checked by the fixture that watches over every test.
        error = site.run("restore", scene.image, "--json", check=5).error("restore.failed")
        assert "virtio-rng" in error["message"], "QEMU's own words are missing"
        assert scene.image.read_bytes() == image

        site.add_guest("web01", scene.guest.qmp, launch=scene.guest.argv)
        scene.comes_back(site)


def test_destination_that_is_not_used_is_ended(site: cli.Site) -> None:
    with saved(site) as scene:
        # As above, the fixture sees to it that nothing of these is left.
        other_size = [*scene.guest.argv, "-m", "48M"]
        for launch, options, code, identifier in (
            (other_size, [], 3, "check.destination"),
            (["sh", "-c", "exec sleep 60"], ["--timeout", "1s"], 5, "restore.timeout"),
        ):
            site.add_guest("web01", scene.guest.qmp, launch=launch)
            result = site.run("restore", scene.image, *options, "--json", check=code)
            assert result.error_id() == identifier
            assert state_of(site, scene.image) == "saved"


def test_qemu_that_failed_once_is_not_tried_again(site: cli.Site) -> None:
    with (
        saved(site, "-device", "virtio-rng-pci", launch=False) as scene,
        qemu.running(memory="32M", incoming=True) as waiting,
    ):
        before = waiting.state()
        command = ("restore", scene.image, "--into", waiting.address, "--json")
        assert site.run(*command, check=5).error_id() == "restore.failed"
        after = waiting.state()
        state.assert_left_as_found(before, after, run_state=after.run_state)
        error = site.run(*command, check=3).error("check.run_state")
        assert "tried on it before" in error["message"]
        assert "start a new destination" in error["hint"]
        assert waiting.alive()
        assert state_of(site, scene.image) == "saved"
        assert json.loads(site.run("recover", "--json", check=0).stdout)["operations"] == []
