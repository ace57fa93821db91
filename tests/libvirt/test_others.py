"""Somebody else at a libvirt guest while mapsave saves it, or before: no guest is lost."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.faults import struck
from tests.kit import cli, domain, inject, patterns, processes, qemu, wait
from tests.kit.domain import Domain
from tests.kit.libvirtd import Daemon
from tests.kit.nobody import as_nobody
from tests.libvirt.scene import IMAGE, MIB, NAME, as_before, nothing_left, slow, small, writing

THEIRS = "theirs"


def _destroy(guest: Domain, site: cli.Site) -> None:
    guest.virsh("destroy")


def _kill(guest: Domain, site: cli.Site) -> None:
    guest.kill()
    guest.wait_state(domain.GONE)


def _save(guest: Domain, site: cli.Site) -> None:
    guest.virsh("save", site.directory / THEIRS)


def _managed_save(guest: Domain, site: cli.Site) -> None:
    guest.virsh("managedsave")


def _shut_down(guest: Domain, site: cli.Site) -> None:
    # Whether its answer arrives before its end is another matter.
    guest.virsh("qemu-monitor-command", '{"execute": "quit"}', check=False)
    guest.wait_state(domain.GONE)


@contextmanager
def _at(site: cli.Site, guest: Domain, step: str, *more: str) -> Iterator[subprocess.Popen[str]]:
    save = ("save", guest.address, "--image", IMAGE, "--json", *more)
    at = writing(site, *save) if step == "writing" else struck.stopped(site, step, *save)
    with at as process:
        yield process


# While it is being saved.


@pytest.mark.parametrize(
    ("step", "act", "words"),
    [
        *((step, _destroy, "was destroyed") for step in ("label", "pause", "migrate", "writing")),
        *((step, _kill, "") for step in ("hand-over", "migrate", "writing")),
        *((step, _save, "was saved by another client") for step in ("label", "pause", "migrate")),
        ("writing", _shut_down, ""),
    ],
)
def test_guest_ended_by_somebody_else(
    daemon: Daemon, site: cli.Site, step: str, act: Callable[[Domain, cli.Site], None], words: str
) -> None:
    """Nothing of ours stays; what they have saved is theirs, and whole."""
    with (slow if step == "writing" else small)(daemon, paused=False) as guest:
        with _at(site, guest, step) as process:
            act(guest, site)
            error = cli.ended(process, check=4).error("save.qemu_died")
        assert words in error["message"]
        nothing_left(site)
        assert guest.state() == domain.GONE
        if act is _save:
            daemon.virsh("restore", site.directory / THEIRS)
            guest.wait_state("running" if step != "migrate" else "paused")


@pytest.mark.parametrize(
    ("step", "act"),
    [("complete", _destroy), ("complete", _kill), ("commit", _destroy), ("committed", _kill)],
)
def test_guest_ended_by_somebody_else_behind_its_stream(
    daemon: Daemon, site: cli.Site, step: str, act: Callable[[Domain, cli.Site], None]
) -> None:
    """What QEMU has written whole becomes the image: the guest is nowhere else."""
    with small(daemon, paused=False) as guest:
        with _at(site, guest, step) as process:
            act(guest, site)
            cli.ended(process, check=0)
        nothing_left(site, IMAGE)
        daemon.virsh("restore", site.images / IMAGE)
        guest.wait_state("running")


@pytest.mark.parametrize("step", ["label", "migrate"])
def test_managed_save_by_somebody_else(daemon: Daemon, site: cli.Site, step: str) -> None:
    with small(daemon, paused=False, transient=False) as guest:
        with _at(site, guest, step) as process:
            _managed_save(guest, site)
            result = cli.ended(process, check=4)
        assert "was saved by another client" in result.error()["message"]
        nothing_left(site)
        assert guest.state() == "shut off (saved)"
        guest.virsh("start")
        guest.wait_state("running" if step != "migrate" else "paused")


@pytest.mark.cancels
@pytest.mark.parametrize(
    ("step", "then"),
    [("migrate", "leave"), ("writing", "quit"), ("complete", "quit"), ("complete", "leave")],
)
def test_guest_resumed_by_somebody_else(
    daemon: Daemon, site: cli.Site, step: str, then: str
) -> None:
    """The guest runs on, and there is no image of it as it was before."""
    with (slow if step == "writing" else small)(daemon, paused=False) as guest:
        before = guest.status()
        with _at(site, guest, step, "--then", then) as process:
            guest.virsh("resume")
            error = cli.ended(process, check=4).error("save.guest_continued")
        assert "another client resumed" in error["message"]
        as_before(guest, before)
        nothing_left(site)


@pytest.mark.parametrize("command", ["save", "managedsave", "dump"])
def test_libvirt_told_to_save_while_we_write(daemon: Daemon, site: cli.Site, command: str) -> None:
    """Theirs fails; ours goes on."""
    theirs = {"save": (site.directory / THEIRS,), "dump": (site.directory / THEIRS,)}
    with slow(daemon, paused=False, transient=False) as guest:
        before = guest.status()
        with _at(site, guest, "writing", "--then", "resume") as process:
            done = guest.virsh(command, *theirs.get(command, ()), check=False)
            assert done.returncode != 0, done
            result = cli.ended(process)
        assert not daemon.crashed
        assert result.returncode == 0, result
        nothing_left(site, IMAGE)
        site.run("verify", IMAGE, check=0)
        as_before(guest, before)


@pytest.mark.cancels
def test_migration_cancelled_by_somebody_else(daemon: Daemon, site: cli.Site) -> None:
    with slow(daemon, paused=False) as guest:
        before = guest.status()
        with _at(site, guest, "writing") as process:
            guest.execute("migrate_cancel")
            result = cli.ended(process, check=4)
        assert "cancelled" in result.error()["message"]
        as_before(guest, before)
        nothing_left(site)


def test_migration_begun_by_somebody_else(daemon: Daemon, site: cli.Site, tmp_path: Path) -> None:
    """Behind our preflight: ours gives way, theirs goes on."""
    with small(daemon, paused=False) as guest:
        before = guest.status()
        with _at(site, guest, "label") as process:
            guest.execute("migrate-set-parameters", max_bandwidth=MIB)
            guest.execute("migrate", uri=f"file:{tmp_path / THEIRS}")
            result = cli.ended(process, check=4)
        message = result.error()["message"]
        # The latter where theirs, slow as it is, has ended before ours begins.
        refusals = ("migration process in progress", "due to previous migration")
        assert any(words in message for words in refusals), message
        nothing_left(site)
        theirs = guest.execute("query-migrate")["status"]
        assert theirs in ("active", "completed")
        guest.execute("migrate_cancel")
        wait.until(lambda: guest.execute("query-migrate")["status"] != "active", what="its end")
        guest.execute("migrate-set-parameters", max_bandwidth=before.parameters["max-bandwidth"])
        if guest.execute("query-migrate")["status"] == "cancelled":
            as_before(guest, before)


# Two at one guest.


def _refused(site: cli.Site, code: int, *arguments: str | Path) -> dict[str, Any]:
    """Return the error of a ``mapsave`` that is refused, whose state stays as it is."""
    files = struck.contents(site)
    error = site.run(*arguments, "--json", check=code).json()["error"]
    assert struck.contents(site) == files
    assert isinstance(error, dict)
    return error


def test_second_save_by_every_name(daemon: Daemon, site: cli.Site, tmp_path: Path) -> None:
    further = tmp_path / "further.qmp"
    monitor = ("-qmp", f"unix:{further},server=on,wait=off")
    with small(daemon, paused=False, arguments=monitor) as guest:
        site.add_guest("other", libvirt={"uri": daemon.uri, "domain": guest.uuid})
        before = guest.status()
        number = guest.virsh("domid").stdout.strip()
        others = ("other", f"libvirt+{daemon.uri}#{number}", guest.address, f"qmp:{further}")
        with _at(site, guest, "hand-over", "--then", "resume") as process:
            for other in others:
                error = _refused(site, 8, "save", other, "--image", "two.mapsave")
                assert error["id"] == "guest.busy", other
            assert site.run("recover", "--json", check=0).json()["operations"] == []
            cli.ended(process, check=0)
        nothing_left(site, IMAGE)
        as_before(guest, before)
        site.run("save", f"qmp:{further}", "--image", "two.mapsave", "--then", "resume", check=0)
        as_before(guest, before)


def test_second_restore_of_one_image(daemon: Daemon, site: cli.Site) -> None:
    with small(daemon, paused=False) as guest:
        site.run("save", guest.address, "--image", IMAGE, check=0)
        restore = ("restore", IMAGE, "--guest", guest.address)
        with struck.stopped(site, "load", *restore) as process:
            assert _refused(site, 8, *restore)["id"] == "guest.busy"
            cli.ended(process, check=0)
        guest.wait_state("running")
        assert _refused(site, 3, *restore)["id"] == "check.already_restored"
        error = _refused(site, 8, *restore, "--again")
        assert "is already running" in error["message"]
        assert guest.state().startswith("running")


@pytest.mark.parametrize(("command", "left"), [("save", domain.GONE), ("dump", "running")])
def test_libvirt_saves_already(
    daemon: Daemon, site: cli.Site, tmp_path: Path, command: str, left: str
) -> None:
    writes, go = tmp_path / "writes", tmp_path / "go"
    # QEMU writes into a pipe, of which libvirt's helper makes the file. Early, and not at the end,
    # when it answers no one until it is done.
    held = inject.environment(
        inject.Rule("writev", "hold", path="pipe:", first=-1, skip=4), met=writes, go=go
    )
    with small(daemon, paused=False, env=held) as guest:
        with processes.running(
            ["virsh", "--connect", daemon.uri, command, guest.uuid, tmp_path / THEIRS],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            wait.until(writes.exists, what="QEMU to write")
            error = _refused(site, 8, "save", guest.address, "--image", IMAGE)
            assert error["id"] == "guest.migrating"
            assert f"active job on domain '{NAME}': {command}" in error["message"]
            go.touch()
            said = process.communicate(timeout=wait.LONG)[0]
        assert process.returncode == 0, said
        guest.wait_state(left)
        if command == "save":
            daemon.virsh("restore", tmp_path / THEIRS)
            guest.wait_state("running")


def test_block_job_under_way(daemon: Daemon, site: cli.Site, tmp_path: Path) -> None:
    disk = patterns.write(tmp_path / "disk", 4 * MIB, patterns.dense)
    device = (
        f"<disk type='file'><driver name='qemu' type='raw'/><source file='{disk}'/>"
        "<target dev='vda' bus='virtio'/></disk>"
    )
    with small(daemon, paused=False, devices=device) as guest:
        before = guest.status()
        # Having copied all, it goes on mirroring until it is told to end.
        guest.virsh("blockcopy", "vda", "--dest", tmp_path / "copy", "--format", "raw")
        error = _refused(site, 3, "save", guest.address, "--image", IMAGE)
        assert error["id"] == "check.not_migratable"
        assert "active block jobs on vda" in error["message"]
        guest.virsh("blockjob", "vda", "--abort")
        as_before(guest, before)
        site.run("save", guest.address, "--image", IMAGE, "--then", "resume", check=0)
        as_before(guest, before)


# Refused before anything is touched.


def test_domain_that_is_shut_off(daemon: Daemon, site: cli.Site) -> None:
    with small(daemon, transient=False) as guest:
        guest.virsh("destroy")
        error = _refused(site, 3, "save", guest.address)
        assert error["id"] == "check.run_state"
        assert "is shut off" in error["message"]
        assert f"virsh start {NAME}" in error["hint"]
        assert guest.state() == "shut off (destroyed)"


def test_managed_save_that_is_older_than_the_guest(
    daemon: Daemon, site: cli.Site, tmp_path: Path
) -> None:
    with small(daemon, paused=False, transient=False) as guest:
        guest.virsh("managedsave")
        copy = tmp_path / THEIRS
        kept = daemon.directory / f"var/lib/libvirt/qemu/save/{NAME}.save"
        copy.write_bytes(kept.read_bytes())
        daemon.virsh("restore", copy)
        before = guest.status()
        error = _refused(site, 3, "save", guest.address)
        assert f"virsh managedsave-remove {NAME}" in error["hint"]
        assert guest.status() == before
        guest.virsh("managedsave-remove")
        site.run("save", guest.address, "--image", IMAGE, "--then", "resume", check=0)


@pytest.mark.parametrize(
    ("address", "code", "identifier", "words"),
    [
        ("libvirt+{uri}#none", 2, "guest.unknown", "has no domain 'none'"),
        ("libvirt+qemu+unix:///system?socket=/nonexistent/s#x", 3, "check.unreachable", "/nonex"),
        ("libvirt+qemu+unix:///nowhere?socket={socket}#x", 2, "usage", "/nowhere"),
        ("libvirt+no uri#x", 2, "usage", "no uri"),
        ("libvirt+test:///default#test", 2, "usage", "driver 'TEST'"),
        ("libvirt+{uri}#\udcff", 2, "usage", "not UTF-8"),
        ("libvirt+{uri}\udcff#x", 2, "usage", "not UTF-8"),
        ("libvirt:\udcff", 2, "usage", "not UTF-8"),
    ],
)
def test_address_that_leads_nowhere(
    daemon: Daemon, site: cli.Site, address: str, code: int, identifier: str, words: str
) -> None:
    for command in ("save", "check"):
        error = _refused(site, code, command, address.format(uri=daemon.uri, socket=daemon.socket))
        assert error["id"] == identifier
        assert words in error["message"]
        assert error["hint"]


@pytest.mark.root
def test_socket_that_is_of_root_only(daemon: Daemon) -> None:
    with small(daemon, paused=False) as guest, qemu.directory_for() as place:
        place.chmod(0o755)
        site = cli.Site(place / "site")
        for path in (site.directory, site.images):
            path.chmod(0o755)
        site.state.chmod(0o777)
        daemon.socket.chmod(0o700)
        before = guest.status()
        error = as_nobody(site, "save", guest.address, check=7).error("permission.denied")
        assert "libvirt group" in error["hint"]
        as_before(guest, before)
