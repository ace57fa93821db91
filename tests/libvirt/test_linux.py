"""A live Linux libvirt guest goes on where it was saved, whoever saves and restores it."""

from pathlib import Path

from tests.kit import cli, domain
from tests.kit.libvirtd import Daemon
from tests.kit.linux_guest import assert_same_memory
from tests.libvirt import ways

# Saved and restored, and the options of the save.
STAGES: list[tuple[ways.Save, ways.Restore, tuple[str, ...]]] = [
    ("libvirt", "virsh", ()),
    ("virsh", "own", ()),
    ("libvirt", "own", ("--live",)),
    ("virsh", "through", ()),
]


def test_guest_counts_on_through_all_ways(daemon: Daemon, site: cli.Site, tmp_path: Path) -> None:
    with domain.linux(daemon, log=tmp_path / "serial.log", transient=False) as guest:
        guest.serial.wait_ticks(2)
        for number, (save, restore, options) in enumerate(STAGES):
            path = ways.save(save, guest.domain, site, f"{number}", *options)
            guest.domain.wait_state("shut off")
            before = guest.serial.ticks()
            ways.restore(restore, guest.domain, site, path)
            # Its serial line goes on in the same file.
            assert_same_memory(before, guest.serial.wait_ticks(2))


def test_guest_that_resumes_counts_on(daemon: Daemon, site: cli.Site, tmp_path: Path) -> None:
    with domain.linux(daemon, log=tmp_path / "serial.log") as guest:
        before = guest.serial.wait_ticks(2)
        path, address = site.images / "first", guest.domain.address
        done = site.run(
            "save", address, "-o", path, "--live", "--then", "resume", "--json", check=0
        )
        assert 0 < done.json()["downtime_s"] < done.json()["duration_s"]
        assert guest.domain.state() == "running (unpaused)"
        going_on = guest.serial.wait_ticks(2)
        assert_same_memory(before, going_on)
        # The image holds the guest of its own time, which libvirt brings back.
        guest.domain.virsh("destroy")
        so_far = guest.serial.ticks()
        ways.restore("virsh", guest.domain, site, path)
        guest.serial.wait_ticks(2)
        brought_back = guest.serial.ticks()[len(so_far) :]
        assert_same_memory(before[-1:], brought_back)
        assert brought_back[0].number <= so_far[-1].number
