"""Digests of the data of images that a real QEMU wrote."""

import os
import signal
from pathlib import Path

import pytest
from mapsave.image import image, syscalls

from tests.kit import cli, files, patterns, qemu, ram, wait
from tests.qemu import helpers
from tests.qemu.scene import saved, state_of


@pytest.mark.parametrize("how", ["before", "after"])
def test_a_bit_that_turned_is_not_restored(site: cli.Site, how: str) -> None:
    site.settings["save"] = {"digests": how}
    site.write()
    with saved(site, ram=patterns.sparse) as scene:
        path = scene.image
        if how == "after":
            text = site.run("verify", "--data", path, check=0).stdout
            assert "no digests yet" in text
            assert "mapsave verify --add-digests" in text
            found = site.run("verify", "--add-digests", path, "--json", check=0).json()
        else:
            found = site.run("verify", "--data", path, "--json", check=0).json()
        assert found["data"]["digests"] == "taken"
        assert found["data"]["verified_bytes"] >= found["data_bytes"]
        with image.opened(path) as opened:
            block = opened.validate().stream.blocks[0]
            page = next(
                at
                for at in range(block.pages_offset, block.end, block.page_size)
                if any(os.pread(opened.fd, 8, at))
            )
        turn(path, page + 17)
        site.run("verify", path, check=0)
        error = site.run("verify", "--data", path, "--json", check=6).error("image.data_damaged")
        (place,) = error["data"]["damaged"]
        assert place["block"] == block.name
        assert place["offset"] <= page + 17 < place["offset"] + place["length"]
        restore = ("restore", "--verify-data", "--instant", "off", path, "--json")
        site.run(*restore, check=6).error("image.data_damaged")
        assert state_of(site, path) == "saved"
        turn(path, page + 17)
        done = site.run(*restore, check=0).json()
        assert done["phases_s"]["verify"] > 0
        assert done["verified_bytes"] >= found["data_bytes"]
        with scene.guest.successor() as guest:
            ram.assert_same(scene.ram, guest.ram)
    site.run("verify", "--data", path, check=0)


def test_polish_and_a_live_save_leave_digests_that_are_right(
    site: cli.Site,
) -> None:
    """Of holes that were dug, gaps that were filled, and pages that became zeros."""
    for number, options in enumerate((("--zero-pages", "none"), ("--live",))):
        with qemu.running(machine="none", memory="32M", ram=patterns.fragmented(1)) as guest:
            name = f"{number}.mapsave"
            save = ("save", guest.address, "-o", name, "--digests", "before", *options)
            assert site.run(*save, "--json", check=0).json()["digests"] == "taken"
            site.run("verify", "--data", name, check=0)


def _page(path: Path, name: str, address: int) -> int:
    """Return where a page of main memory is in the image."""
    with image.opened(path) as opened:
        (block,) = (each for each in opened.validate().stream.blocks if each.name == name)
    return block.pages_offset + address


@pytest.fixture
def slow(site: cli.Site) -> cli.Site:
    """A site where an image is read slowly beside an instant restore."""
    site.settings["save"] = {"digests": "before"}
    site.settings["restore"] = {"instant": "on", "verify_data": True, "warm_rate": "4M"}
    site.write()
    return site


def test_mapped_data_is_verified_while_the_guest_runs(slow: cli.Site) -> None:
    with saved(slow, ram=patterns.dense) as scene:
        done = slow.run("restore", scene.image, "--json", check=0).json()
        assert done["instant"]
        assert done["verified_bytes"] >= done["data_bytes"]
        assert done["duration_s"] < done["verified_bytes"] / (4 << 20)
        with scene.guest.successor() as guest:
            ram.assert_same(scene.ram, guest.ram)
    (line,) = slow.run("list", "--json").json()["images"]
    assert line["verified"]["outcome"] == "verified"


@pytest.mark.parametrize("is_touched", [True, False])
def test_a_guest_of_damaged_data_is_paused(slow: cli.Site, is_touched: bool) -> None:
    """Its restore fails, and says what became of it."""
    address = 24 << 20
    firmware = helpers.counting_firmware(slow.directory)
    with saved(slow, *firmware, ram=patterns.dense) as scene:
        turn(scene.image, _page(scene.image, "pc.ram", address) + 17)
        restore = ("restore", scene.image, "--run", "--json")
        with slow.start(*restore) as process, scene.guest.successor() as guest:
            guest.wait_status("running")
            if is_touched:
                guest.ram.write("pc.ram", address, b"touched")
            error = cli.ended(process, check=6).error("image.data_damaged")
            (place,) = error["data"]["damaged"]
            assert place["address"] <= address + 17 < place["address"] + place["ram_bytes"]
            told = {name: error["data"][name] for name in ("paused", "touched", "monitor")}
            assert told == {"paused": True, "touched": is_touched, "monitor": guest.address}
    assert "DAMAGED" in slow.run("list", check=0).stdout


@pytest.mark.parametrize("warm", ["none", "all"])
def test_an_interrupted_verification_leaves_the_guest_alone(slow: cli.Site, warm: str) -> None:
    """One interruption ends it, and what is read beside it for the guest."""
    slow.settings["restore"] |= {"warm_rate": "1K", "warm": warm}
    slow.write()
    with saved(slow, *helpers.counting_firmware(slow.directory), ram=patterns.dense) as scene:
        restore = ("restore", scene.image, "--run", "--json")
        with slow.start(*restore) as process, scene.guest.successor() as guest:
            guest.wait_status("running")
            wait.until(lambda: state_of(slow, scene.image) == "restored", what="its mark")
            journals = slow.state / "journal"
            wait.until(lambda: not [*journals.glob("*.jsonl")], what="the end of the restore")
            process.send_signal(signal.SIGINT)
            done = cli.ended(process, check=0).json()
            assert 0 < done["verified_bytes"] < done["data_bytes"]
            assert any("not verified to the end" in text for text in done["warnings"])
            assert guest.status() == "running"


def test_an_interruption_hides_no_damage(slow: cli.Site) -> None:
    """What was found before it is said all the same, and the guest stays paused."""
    slow.settings["restore"] |= {"warm": "all"}
    slow.write()
    with saved(slow, *helpers.counting_firmware(slow.directory), ram=patterns.dense) as scene:
        turn(scene.image, _page(scene.image, "pc.ram", 24 << 20) + 17)
        restore = ("restore", scene.image, "--run", "--json")
        with slow.start(*restore) as process, scene.guest.successor() as guest:
            guest.wait_status("paused")
            wait.until(lambda: state_of(slow, scene.image) == "restored", what="its mark")
            journals = slow.state / "journal"
            wait.until(lambda: not [*journals.glob("*.jsonl")], what="the end of the restore")
            process.send_signal(signal.SIGINT)
            error = cli.ended(process, check=6).error("image.data_damaged")
            assert error["data"]["paused"]


@pytest.mark.parametrize("what", ["a ROM", "a hole"])
def test_what_is_loaded_and_what_is_missing_is_verified_before(site: cli.Site, what: str) -> None:
    """The guest of an image whose ROM differs, or has lost a piece, never runs."""
    site.settings["save"] = {"digests": "before"}
    site.write()
    with saved(site, *helpers.counting_firmware(site.directory), ram=patterns.dense) as scene:
        block = "pc.bios" if what == "a ROM" else "pc.ram"
        if what == "a ROM":
            turn(scene.image, _page(scene.image, block, 0) + 17)
        else:
            with files.opened(scene.image, os.O_RDWR) as fd:
                syscalls.punch_hole(fd, _page(scene.image, block, 8 << 20), 1 << 20)
        restore = ("restore", scene.image, "--instant", "on", "--json")
        error = site.run(*restore, "--verify-data", check=6).error("image.data_damaged")
        assert block in {place["block"] for place in error["data"]["damaged"]}
        assert "paused" not in error["data"]
        assert state_of(site, scene.image) == "saved"
        assert site.run(*restore, "--force", check=0).json()["instant"]
        with scene.guest.successor():
            pass


def turn(path: Path, at: int) -> None:
    with files.opened(path, os.O_RDWR) as fd:
        (was,) = os.pread(fd, 1, at)
        os.pwrite(fd, bytes([was ^ 4]), at)


def test_a_scrub_finds_it_and_the_image_is_not_restored_until_it_is_repaired(
    site: cli.Site,
) -> None:
    site.settings["save"] = {"digests": "before"}
    site.write()
    job = site.add_job("weekly", kind="scrub", every="1ms")
    with saved(site, ram=patterns.sparse) as scene:
        path = scene.image
        assert site.run("job", "run", job, "--json", check=0).json()["verified"] == 1
        with image.opened(path) as opened:
            page = opened.validate().stream.blocks[0].pages_offset
        turn(path, page + 17)
        done = site.run("job", "run", job, "--json", check=6).json()
        (place,) = done["images"][0]["error"]["data"]["damaged"]
        assert place["offset"] <= page + 17 < place["offset"] + place["length"]
        assert "DAMAGED" in site.run("list", check=0).stdout
        site.run("restore", path, "--json", check=6).error("image.data_damaged")
        assert state_of(site, path) == "saved"
        turn(path, page + 17)
        site.run("restore", path, "--json", check=6).error("image.data_damaged")
        assert site.run("job", "run", job, "--json", check=0).json()["verified"] == 1
        site.run("restore", path, "--json", check=0)
        with scene.guest.successor() as guest:
            ram.assert_same(scene.ram, guest.ram)
    lines = site.run("list", "--json").json()["images"]
    assert [each["verified"]["outcome"] for each in lines] == ["verified"]
