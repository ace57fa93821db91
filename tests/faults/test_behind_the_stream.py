"""What may happen once QEMU has written its stream: others at work, its end, a failing disk."""

import resource
import signal
import sys

import pytest

from tests.faults import struck
from tests.kit import cli, qemu, wait

NAME = "web01"
IMAGE = "one.mapsave"
SAVE = ("save", NAME, "--image", IMAGE, "--json")
_PIDFD_GETFD = 438  # pidfd_getfd(2), since Linux 5.6; Python has no name for it


# Somebody else continues the guest, which does not run any more when mapsave looks.


def _continue_and_stop(guest: qemu.Qemu) -> None:
    guest.control.execute("cont")
    guest.wait_status("running")
    guest.control.execute("stop")


def _continue_and_kill(guest: qemu.Qemu) -> None:
    guest.control.execute("cont")
    guest.wait_status("running")
    guest.kill()
    guest.wait()


@pytest.mark.parametrize("then", ["quit", "leave"])
@pytest.mark.parametrize("step", ["complete", "commit", "committed"])
def test_a_guest_continued_and_stopped_again_is_left(
    site: cli.Site, guest: qemu.Qemu, step: str, then: str
) -> None:
    """Its disks are newer than the image, which must not pass for the guest."""
    with struck.stopped(site, step, *SAVE, "--then", then) as process:
        _continue_and_stop(guest)
        error = cli.ended(process, check=4).error("save.guest_continued")
    assert error["data"]["run_state"] == guest.status() == "paused"
    assert not struck.journals(site)
    assert not struck.partials(site)
    if step == "complete":
        assert not list(site.images.iterdir())
        return
    assert error["data"]["image"] == str(site.images / IMAGE)
    assert "stale" in error["message"]
    _is_stale(site)


def _is_stale(site: cli.Site) -> None:
    """See that no one restores the image by mistake, though it is whole."""
    site.run("verify", IMAGE, check=0)
    assert struck.states(site) == {IMAGE: "restored"}
    refused = site.run("restore", IMAGE, "--json", check=3).error()
    assert refused["id"] == "check.already_restored"
    assert "resumed its guest" in refused["message"]


@pytest.mark.parametrize("step", ["complete", "commit"])
def test_a_guest_continued_and_ended_is_not_in_the_image(
    site: cli.Site, guest: qemu.Qemu, step: str
) -> None:
    with struck.stopped(site, step, *SAVE) as process:
        _continue_and_kill(guest)
        error = cli.ended(process, check=4).error("save.guest_continued")
    assert error["data"]["run_state"] == "ended"
    assert not struck.journals(site)
    assert not struck.partials(site)
    if step == "complete":
        assert not list(site.images.iterdir())
    else:
        _is_stale(site)


def test_what_happens_to_a_guest_that_goes_on_anyway_is_no_matter(
    site: cli.Site, guest: qemu.Qemu
) -> None:
    with struck.stopped(site, "complete", *SAVE, "--then", "resume") as process:
        _continue_and_stop(guest)
        process.send_signal(signal.SIGCONT)
        assert process.wait(wait.LONG) == 0
    assert guest.status() == "running"
    assert struck.states(site) == {IMAGE: "saved"}


# QEMU ends, though the guest was to live on.


@pytest.mark.parametrize(
    ("step", "then"),
    [("complete", "resume"), ("resume", "resume"), ("commit", "resume"), ("committed", "leave")],
)
def test_a_guest_that_was_to_live_on_and_is_gone(
    site: cli.Site, guest: qemu.Qemu, step: str, then: str
) -> None:
    """The image is good, but no one may believe that the guest runs."""
    result = struck.run(site, "after", step, f"{guest.pid}:KILL", *SAVE, "--then", then)
    assert result.returncode == 4, result
    error = result.error("save.qemu_died")
    assert error["data"]["image"] == str(site.images / IMAGE)
    assert f"{IMAGE}' is committed" in error["message"]
    assert not struck.journals(site)
    assert struck.states(site) == {IMAGE: "saved"}
    guest.wait()
    site.run("restore", IMAGE, check=0)
    with guest.successor() as restored:
        assert restored.status() == "running"


def test_a_guest_that_was_to_run_on_and_is_not_reached(site: cli.Site, guest: qemu.Qemu) -> None:
    """Its image is good, but it is paused: recover lets it run."""
    with struck.stopped(site, "resume", *SAVE, "--then", "resume") as process:
        struck.cut_off(process, guest.qmp)
        error = cli.ended(process, check=4).error("save.failed")
    assert error["data"]["image"] == str(site.images / IMAGE)
    assert f"(pid {guest.pid}) is still running" in error["message"]
    assert guest.status() == "postmigrate"
    (line,) = site.run("recover", "--json", check=0).json()["operations"]
    assert (line["error"], line["outcome"]) == (None, "image committed")
    assert guest.status() == "running"
    assert struck.states(site) == {IMAGE: "saved"}


def _failing(site: cli.Site, what: str, *arguments: str) -> cli.Result:
    """Run a save on a disk that fails after the rename; see ``failing.py``."""
    command = [sys.executable, "-m", "tests.faults.failing", what]
    return site.run(*SAVE, *arguments, command=command)


def test_a_journal_that_is_full_behind_the_rename(site: cli.Site, guest: qemu.Qemu) -> None:
    """The image has its name, so that the guest must not run: it is ended as was asked."""
    result = _failing(site, "journal")
    assert result.returncode == 0, result
    assert f"cannot write the journal '{site.state}/journal/save-" in result.stderr
    assert "No space left on device" in result.stderr
    guest.wait()
    assert struck.states(site) == {IMAGE: "saved"}
    assert not struck.journals(site)


@pytest.mark.parametrize("then", ["quit", "resume", "leave"])
def test_a_name_that_may_not_be_on_the_disk(site: cli.Site, guest: qemu.Qemu, then: str) -> None:
    """Neither does the guest go on beside an image, nor is it ended without one: recover does."""
    result = _failing(site, "directory", "--then", then)
    assert result.returncode == 4, result
    error = result.error()
    assert (error["id"], error["data"]["image"]) == ("save.commit", str(site.images / IMAGE))
    assert guest.status() == ("running" if then == "resume" else "postmigrate")
    assert struck.journals(site), "what recover works from"
    (line,) = site.run("recover", "--json", check=0).json()["operations"]
    assert (line["error"], line["outcome"]) == (None, "image committed")
    if then == "quit":
        guest.wait()
    assert struck.states(site) == {IMAGE: "saved"}
    assert not struck.journals(site)


def test_a_journal_that_cannot_be_written_is_named(site: cli.Site, guest: qemu.Qemu) -> None:
    """Before the commit everything is undone; the message does not blame the image."""
    with struck.stopped(site, "complete", *SAVE) as process:
        (journal,) = struck.journals(site)
        # No file may grow beyond what the journal has (setrlimit(2)), as if the disk were full.
        limit = (journal.stat().st_size, resource.RLIM_INFINITY)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, limit)
        error = cli.ended(process, check=4).error()
    assert error["message"].startswith(f"cannot write the journal {str(journal)!r}")
    assert guest.status() == "running"
    assert not list(site.images.iterdir())
    assert not struck.journals(site)
