"""Digests of the data of images that a real QEMU wrote."""

import os
from pathlib import Path

import pytest
from mapsave.image import image

from tests.kit import cli, files, patterns, qemu, ram
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
        refused = site.run("restore", "--verify-data", path, "--json", check=6)
        refused.error("image.data_damaged")
        assert state_of(site, path) == "saved"
        turn(path, page + 17)
        restore = ("restore", "--verify-data", path, "--json")
        done = site.run(*restore, check=0).json()
        assert done["phases_s"]["verify"] > 0
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
