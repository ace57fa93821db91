"""mapsave killed at every step with a libvirt guest: ``mapsave recover`` tidies up."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults import struck
from tests.kit import cli, domain, ram, wait
from tests.kit.domain import Domain
from tests.kit.libvirtd import Daemon
from tests.kit.outcomes import COMMITTED, LOADED, PUT_BACK, RESTORED, TAKEN_OVER, UNDONE
from tests.libvirt.scene import IMAGE, as_before, nothing_left, slow, small, writing


@pytest.mark.parametrize(("where", "step"), struck.NOT_YET)
def test_killed_before_the_stream_is_whole(
    daemon: Daemon, site: cli.Site, where: str, step: str
) -> None:
    number = struck.NOT_YET.index((where, step))
    with small(daemon, paused=False, transient=number % 2 == 0) as guest:
        before = guest.status()
        then = struck.THEN[number % 3]
        struck.killed(site, where, step, "save", guest.address, "--image", IMAGE, "--then", then)
        struck.recovered(site, PUT_BACK)
        as_before(guest, before)
        nothing_left(site)
        guest.virsh("suspend")
        guest.virsh("resume")
        as_before(guest, before)


def test_paused_guest_stays_paused(daemon: Daemon, site: cli.Site, tmp_path: Path) -> None:
    with small(daemon) as guest:
        before, contents = guest.status(), guest.snapshot_ram(tmp_path / "before")
        struck.killed(site, "after", "migrate", "save", guest.address, "--image", IMAGE)
        struck.recovered(site, PUT_BACK)
        as_before(guest, before, "paused (user)")
        ram.assert_same(contents, guest.ram)


@pytest.mark.parametrize(
    ("where", "step", "then"),
    [
        *((*at, struck.THEN[number % 3]) for number, at in enumerate(struck.WHOLE)),
        ("after", "resume", "resume"),
    ],
)
def test_killed_when_the_stream_is_whole(
    daemon: Daemon, site: cli.Site, where: str, step: str, then: str
) -> None:
    """The image is what mapsave would have made of it: virsh takes it."""
    persistent = struck.THEN.index(then) == 0
    with small(daemon, paused=False, transient=not persistent) as guest:
        before = guest.status()
        struck.killed(site, where, step, "save", guest.address, "--image", IMAGE, "--then", then)
        struck.recovered(site, COMMITTED)
        nothing_left(site, IMAGE)
        if then == "quit":
            guest.wait_state("shut off")
        elif then == "resume":
            as_before(guest, before)
            guest.remove()
        else:
            assert guest.state() == "paused (user)"
            guest.virsh("resume")
            as_before(guest, before)
            guest.remove()
        daemon.virsh("restore", site.images / IMAGE)
        guest.wait_state("running")


def test_adopted_images_hold_the_guest(daemon: Daemon, site: cli.Site, tmp_path: Path) -> None:
    """Of both formats, and restored by virsh and by mapsave."""
    with small(daemon) as guest:
        before = guest.snapshot_ram(tmp_path / "before")
        for step, form in (("complete", "libvirt"), ("commit", "native")):
            save = ("save", guest.address, "--image", form, "--format", form)
            struck.killed(site, "after", step, *save)
            struck.recovered(site, COMMITTED)
            guest.wait_state(domain.GONE)
            if form == "libvirt":
                daemon.virsh("restore", site.images / form)
            else:
                site.run("restore", form, "--guest", guest.address, check=0)
            assert guest.state().startswith("paused")
            ram.assert_same(before, guest.ram)


@pytest.mark.parametrize("then", ["quit", "resume"])
def test_killed_while_qemu_writes(daemon: Daemon, site: cli.Site, then: str) -> None:
    """QEMU goes on without mapsave; recover waits for it."""
    with slow(daemon, paused=False) as guest:
        before = guest.status()
        with writing(site, "save", guest.address, "--image", IMAGE, "--then", then) as dies:
            dies.kill()
            dies.wait(wait.LONG)
        struck.recovered(site, COMMITTED)
        nothing_left(site, IMAGE)
        if then == "resume":
            as_before(guest, before)
        else:
            guest.wait_state(domain.GONE)


def test_libvirtd_is_restarted_before_the_recovery(own_daemon: Daemon, site: cli.Site) -> None:
    """It knows nothing of our save, so it neither cancels it nor resumes the guest on."""
    with small(own_daemon, paused=False) as guest:
        before = guest.status()
        save = ("save", guest.address, "--image", IMAGE, "--then", "resume")
        struck.killed(site, "after", "complete", *save)
        own_daemon.kill()
        own_daemon.start()
        assert guest.state().startswith("paused")
        struck.recovered(site, COMMITTED)
        as_before(guest, before)


@pytest.mark.parametrize(
    ("step", "outcome"),
    [
        (
            "migrate",
            "QEMU had exited before its stream was complete: nothing to commit, partial image "
            "removed",
        ),
        ("complete", "image committed (QEMU had finished before it exited)"),
    ],
)
def test_destroyed_before_the_recovery(
    daemon: Daemon, site: cli.Site, step: str, outcome: str
) -> None:
    with small(daemon, paused=False) as guest:
        struck.killed(site, "after", step, "save", guest.address, "--image", IMAGE)
        guest.virsh("destroy")
        struck.recovered(site, outcome)
        nothing_left(site, *([IMAGE] if step == "complete" else []))


@pytest.mark.parametrize(("step", "outcome"), [("migrate", PUT_BACK), ("complete", PUT_BACK)])
def test_resumed_before_the_recovery(
    daemon: Daemon, site: cli.Site, step: str, outcome: str
) -> None:
    """Somebody found the guest paused: it runs on, and what it was is no image."""
    with small(daemon, paused=False) as guest:
        before = guest.status()
        struck.killed(site, "after", step, "save", guest.address, "--image", IMAGE)
        guest.virsh("resume")
        struck.recovered(site, outcome)
        as_before(guest, before)
        nothing_left(site)


@pytest.mark.parametrize("last", ["resume", "suspend"])
def test_saved_guest_that_was_used_since_is_not_ended(
    daemon: Daemon, site: cli.Site, last: str
) -> None:
    """Killed after the commit; its owner let the guest run on, so the image does not hold it."""
    with small(daemon, paused=False) as guest:
        struck.killed(site, "after", "committed", "save", guest.address, "--image", IMAGE)
        guest.virsh("resume")
        if last == "suspend":
            guest.virsh("suspend")
        found = guest.state()
        struck.recovered(site, TAKEN_OVER)
        assert guest.state() == found
        nothing_left(site, IMAGE)


@contextmanager
def _saved(daemon: Daemon, site: cli.Site, *, transient: bool = True) -> Iterator[Domain]:
    """Save a running guest, which is gone then."""
    with small(daemon, paused=False, transient=transient) as guest:
        site.run("save", guest.address, "--image", IMAGE, check=0)
        guest.wait_state("shut off", domain.GONE)
        yield guest


@pytest.mark.parametrize(("where", "step", "outcome"), struck.RESTORE)
def test_killed_in_a_restore(
    daemon: Daemon, site: cli.Site, where: str, step: str, outcome: str
) -> None:
    persistent = where == "after"
    with _saved(daemon, site, transient=not persistent) as guest:
        restore = ("restore", IMAGE, "--guest", guest.address)
        struck.killed(site, where, step, *restore)
        struck.recovered(site, outcome)
        if outcome == UNDONE:
            guest.wait_state("shut off" if persistent else domain.GONE)
            assert struck.states(site) == {IMAGE: "saved"}
            site.run(*restore, check=0)
        if outcome == LOADED:
            assert guest.state().startswith("paused")
            guest.virsh("resume")
        guest.wait_state("running")
        assert struck.states(site) == {IMAGE: "restored"}
        assert not [path for path in guest.open_files() if IMAGE in path]
        if persistent:
            assert "-incoming" not in guest.xml("--inactive")


@pytest.mark.parametrize(
    ("where", "step", "outcome"),
    [
        ("after", "launch", UNDONE),
        ("before", "mark", LOADED),
        ("before", "run", LOADED),
        ("after", "run", RESTORED),
    ],
)
def test_killed_in_a_restore_through_libvirt(
    daemon: Daemon, site: cli.Site, where: str, step: str, outcome: str
) -> None:
    with _saved(daemon, site) as guest:
        restore = ("restore", IMAGE, "--guest", guest.address, "--through-libvirt")
        struck.killed(site, where, step, *restore)
        struck.recovered(site, outcome)
        if outcome == UNDONE:
            guest.wait_state(domain.GONE)
            assert struck.states(site) == {IMAGE: "saved"}
            site.run(*restore, check=0)
        if outcome == LOADED:
            assert guest.state().startswith("paused")
            guest.virsh("resume")
        guest.wait_state("running")
        assert struck.states(site) == {IMAGE: "restored"}


@pytest.mark.parametrize("where", ["before", "after"])
def test_restored_guest_that_was_used_since_is_not_ended(
    daemon: Daemon, site: cli.Site, where: str
) -> None:
    """Its owner let it run, and paused it: its disks have moved on, and only it has them."""
    with _saved(daemon, site) as guest:
        struck.killed(site, where, "mark", "restore", IMAGE, "--guest", guest.address)
        guest.virsh("resume")
        guest.virsh("suspend")
        pid = guest.pid
        struck.recovered(site, LOADED)
        assert (guest.state(), guest.pid) == ("paused (user)", pid)
        assert struck.states(site) == {IMAGE: "restored"}


@pytest.mark.parametrize("step", ["load", "mark", "run"])
def test_destination_destroyed_in_a_restore(daemon: Daemon, site: cli.Site, step: str) -> None:
    with _saved(daemon, site) as guest:
        restore = ("restore", IMAGE, "--guest", guest.address)
        with struck.stopped(site, step, *restore, "--json") as process:
            guest.virsh("destroy")
            cli.ended(process, check=5)
        assert guest.state() == domain.GONE
        nothing_left(site, IMAGE)
        assert struck.states(site) == {IMAGE: "saved"}
        site.run(*restore, check=0)
        guest.wait_state("running")


def test_domain_started_since_is_left_alone(daemon: Daemon, site: cli.Site) -> None:
    """Its owner started it again: it is not the destination, and must not be ended."""
    with _saved(daemon, site, transient=False) as guest:
        struck.killed(site, "after", "launch", "restore", IMAGE, "--guest", guest.address)
        guest.virsh("start")
        pid = guest.pid
        struck.recovered(site, UNDONE)
        assert guest.state().startswith("running")
        assert guest.pid == pid
