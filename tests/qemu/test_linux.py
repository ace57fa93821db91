"""A live Linux guest goes on where it was saved: same memory, and its counter counts on."""

import os
from pathlib import Path

import pytest

from tests.kit import cli, linux_guest, memory, reflinks
from tests.kit.linux_guest import assert_same_memory

# MAPSAVE_TEST_CHECKPOINTS=100 takes as many, and restores ten of them.
_IN_A_ROW = int(os.environ.get("MAPSAVE_TEST_CHECKPOINTS", "10"))
_RESTORED = range(0, _IN_A_ROW, max(_IN_A_ROW // 10, 4))


def test_restored_guest_counts_on_and_can_be_saved_live(site: cli.Site, tmp_path: Path) -> None:
    with linux_guest.running(log=tmp_path / "serial.log", name="web01") as guest:
        site.add_guest("web01", guest.qemu.qmp, launch=guest.qemu.argv)
        guest.serial.wait_ticks(2)
        saved = site.run("save", "web01", "--json", check=0).json()
        guest.qemu.wait()
        assert saved["downtime_s"] > 0
        before = guest.serial.ticks()

        restored = site.run("restore", saved["image"], "--json", check=0).json()
        assert restored["run_state"] == "running"
        assert restored["downtime_s"] > 0
        with guest.successor() as second:
            assert_same_memory(before, second.serial.wait_ticks(2))

            # The restored guest is as good as the first: it can be saved, and this time live.
            live = site.run("save", "web01", "--live", "--json", check=0).json()
            second.qemu.wait()
            before = second.serial.ticks()
            assert 0 < live["downtime_s"] < live["duration_s"]
        site.run("restore", live["image"], check=0)
        with guest.successor() as third:
            assert_same_memory(before, third.serial.wait_ticks(2))


def test_guest_that_resumes_can_be_saved_again(site: cli.Site, tmp_path: Path) -> None:
    with linux_guest.running(log=tmp_path / "serial.log", name="web01") as guest:
        site.add_guest("web01", guest.qemu.qmp, launch=guest.qemu.argv)
        before = guest.serial.wait_ticks(2)
        state = guest.qemu.state()
        site.run("save", "web01", "-o", "first", "--then", "resume", check=0)
        assert guest.qemu.state() == state
        going_on = guest.serial.wait_ticks(2)
        assert_same_memory(before, going_on)

        site.run("save", "web01", "-o", "second", "--live", "--then", "resume", check=0)
        assert guest.qemu.state() == state
        guest.serial.wait_ticks(2)
        site.run("save", "web01", "-o", "third", check=0)
        guest.qemu.wait()
        last = guest.serial.ticks()
        assert_same_memory(before, last[-1:])

        # Each image holds the guest of its own time: the first counts on from its own tick.
        site.run("restore", "third", check=0)
        with guest.successor() as restored:
            assert_same_memory(last, restored.serial.wait_ticks(2))
        for name, earliest in (("first", before[-1]), ("second", going_on[-1])):
            site.run("restore", name, check=0)
            with guest.successor() as restored:
                restored.serial.wait_ticks(2)
                ticks = restored.serial.ticks()  # from the first one on
            assert_same_memory([earliest], ticks)
            assert ticks[0].number < last[-1].number


@pytest.mark.root
def test_checkpoints_in_a_row_each_count_on(tmp_path: Path) -> None:
    """Under a guest that works with its memory all the time, and from what was taken of it."""
    with reflinks.site_on("xfs", tmp_path, (1 + _IN_A_ROW // 5) << 30) as site:
        file, size = site.directory / "web01.ram", linux_guest.MEMORY
        shared = memory.from_file(file, size, shared=True)
        with linux_guest.running(*shared, log=tmp_path / "serial.log", name="web01") as guest:
            fresh = memory.zeroed(size)[1]
            launch = [fresh if word == shared[1] else word for word in guest.qemu.argv]
            site.add_guest("web01", guest.qemu.qmp, launch=launch)
            before = guest.serial.wait_ticks(2)
            found = guest.qemu.state()
            for number in range(_IN_A_ROW):
                done = site.run(
                    "checkpoint", "web01", "-o", str(number), "--digests", "off", "--json", check=0
                ).json()
                assert 0 < done["downtime_s"] < 30
            assert guest.qemu.state() == found
            going_on = guest.serial.wait_ticks(2)
            assert_same_memory(before, going_on)
            guest.qemu.control.execute("quit")
            guest.qemu.wait()
            last = guest.serial.ticks()
            for number in _RESTORED:
                site.run("restore", str(number), check=0)
                with guest.successor() as restored:
                    restored.serial.wait_ticks(2)
                    ticks = restored.serial.ticks()
                assert_same_memory(before[-1:], ticks)
                assert ticks[0].number <= last[-1].number
