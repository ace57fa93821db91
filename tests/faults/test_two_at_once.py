"""Two at the same guest or image: one does its work, the other is told so at once."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults import struck
from tests.faults.slow import slow_guest
from tests.kit import cli, patterns, qemu, raw, state, wait

NAME = "web01"
IMAGE = "one.mapsave"
# Seconds within which the second gives up, on a busy host: who waits for a lock waits for sixty.
_AT_ONCE = 40.0


def _refused(site: cli.Site, *arguments: str | os.PathLike[str]) -> str:
    """Run what must be busy at once; return the id of the error."""
    begun = time.monotonic()
    result = site.run(*arguments, "--json", check=8)
    assert time.monotonic() - begun < _AT_ONCE
    return result.error_id()


def test_second_save_by_every_name_of_the_socket(site: cli.Site, tmp_path: Path) -> None:
    with slow_guest(site) as path:
        link = tmp_path / "link.qmp"
        link.symlink_to(path)
        indirect = path.parent / "images" / ".." / path.name
        site.add_guest("other", link)
        with struck.stopped(site, "migrate", "save", NAME, "--image", IMAGE) as first:
            for guest in (NAME, "other", f"qmp:{path}", f"qmp:{link}", f"qmp:{indirect}"):
                assert _refused(site, "save", guest, "--image", "two.mapsave") == "guest.busy"
            # And no one takes its partial image for a dead manager's.
            assert site.run("recover", "--json", check=0).json()["operations"] == []
        assert first.returncode == 0
        assert [each.name for each in site.images.iterdir()] == [IMAGE]
        site.run("verify", IMAGE, check=0)


@contextmanager
def _guest_of_two_monitors(site: cli.Site, tmp_path: Path) -> Iterator[tuple[qemu.Qemu, str]]:
    """Run a guest with a further monitor for mapsave; yield both."""
    further = tmp_path / "further.qmp"
    monitor = f"unix:{further},server=on,wait=off"
    with qemu.guest(
        site, NAME, "-qmp", monitor, memory="16M", ram=patterns.dense, paused=False
    ) as guest:
        yield guest, f"qmp:{further}"


def test_second_save_by_another_monitor(site: cli.Site, tmp_path: Path) -> None:
    """The other monitor answers, so that only the lock of the process stands against it."""
    with _guest_of_two_monitors(site, tmp_path) as (guest, further):
        before = guest.state()
        save = ("save", NAME, "--image", IMAGE, "--then", "resume")
        with struck.stopped(site, "hand-over", *save) as first:
            assert _refused(site, "save", further, "--image", "two.mapsave") == "guest.busy"
        assert first.returncode == 0
        assert [each.name for each in site.images.iterdir()] == [IMAGE]
        state.assert_left_as_found(before, guest.state())


def test_recovery_waits_for_a_save_by_another_monitor(site: cli.Site, tmp_path: Path) -> None:
    """Putting the guest back for a dead mapsave would tear the save of a living one apart."""
    with _guest_of_two_monitors(site, tmp_path) as (guest, further):
        before = guest.state()
        struck.run(site, "after", "label", "KILL", "save", NAME, "--image", IMAGE)
        save = ("save", further, "--image", "two.mapsave", "--then", "leave")
        with struck.stopped(site, "complete", *save) as second:
            busy = site.run("recover", "--json", check=8).json()["operations"]
            assert [line["error"]["id"] for line in busy] == ["guest.busy"]
        assert second.returncode == 0
        site.run("recover", check=0)
        # What the second left is not the first one's to undo.
        state.assert_left_as_found(before, guest.state(), run_state="postmigrate")
        assert [each.name for each in site.images.iterdir()] == ["two.mapsave"]


def test_two_restores_of_one_image(site: cli.Site) -> None:
    with qemu.guest(site, NAME, memory="16M", ram=patterns.dense, paused=False) as guest:
        site.run("save", NAME, "--image", IMAGE, check=0)
        guest.wait()
        # The second has a destination of its own, so that only the image stands between them.
        with qemu.running(name="spare", memory="16M", incoming=True) as spare:
            second = ("restore", IMAGE, "--into", f"qmp:{spare.qmp}")
            with struck.stopped(site, "load", "restore", IMAGE) as first:
                assert _refused(site, *second) == "guest.busy"
                assert _refused(site, "discard", IMAGE, "--yes") == "guest.busy"
            assert first.returncode == 0
            with guest.successor() as restored:
                assert restored.status() == "running"
            assert site.run(*second, "--json", check=3).error_id() == "check.already_restored"
            assert spare.status() == "inmigrate"


def test_somebody_else_migrates_the_guest(site: cli.Site, tmp_path: Path) -> None:
    """A migration that mapsave did not start is left alone, and goes on to its end."""
    target = tmp_path / "theirs"
    with qemu.running(name=NAME, ram=patterns.dense) as guest:
        guest.control.execute("migrate-set-parameters", max_bandwidth=raw.MIB // 16)
        guest.control.execute("migrate", uri=f"file:{target}")
        wait.until(lambda: target.exists() and target.stat().st_size > 0, what="their file")
        before = guest.state()
        assert _refused(site, "save", guest.address, "--image", IMAGE) == "guest.migrating"
        assert not list(site.images.iterdir())
        state.assert_left_as_found(before, guest.state())
        assert guest.control.execute("query-migrate")["status"] == "active"
