"""Checkpoints that fail, are cancelled, or whose mapsave or QEMU is killed: the guest runs on."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from mapsave import config
from mapsave.monitor import qmp
from mapsave.operations import checkpoint, save, save_request

from tests.faults import struck
from tests.faults.in_time import printed, waits_for_thaw
from tests.kit import cli, patterns, qemu, ram, reflinks, state, storage, wait
from tests.kit.outcomes import COMMITTED, PUT_BACK
from tests.kit.reflinks import NAME, guest
from tests.kit.storage import MIB
from tests.qemu import helpers

pytestmark = pytest.mark.root

CHECKPOINT = ("checkpoint", NAME, "--image", "one")
NOT_YET = (
    ("after", "label"),
    ("after", "hand-over"),
    ("before", "pause"),
    ("after", "pause"),
    ("after", "migrate"),
    ("before", "complete"),
    ("after", "complete"),
)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[cli.Site]:
    with reflinks.site_on("xfs", tmp_path) as found:
        yield found


def _nothing_left(site: cli.Site) -> None:
    assert (struck.journals(site), list(site.images.iterdir())) == ([], [])


@pytest.mark.parametrize(("where", "step"), NOT_YET[:-1])
def test_killed_before_the_image_is_composed(site: cli.Site, where: str, step: str) -> None:
    with guest(site, paused=False, ram=patterns.dense) as source:
        found = source.state()
        struck.killed(site, where, step, *CHECKPOINT)
        dry = site.run("recover", "--dry-run", "--json", check=0).json()
        assert len(dry["operations"]) == 1
        (outcome,) = (
            line["outcome"] for line in site.run("recover", "--json", check=0).json()["operations"]
        )
        assert outcome.startswith(PUT_BACK)
        state.assert_left_as_found(found, source.state())
        _nothing_left(site)
        reflinks.checkpoint(site, "one")


@pytest.mark.parametrize("step", ["mirror", "pause", "share", "settle", "compose"])
def test_killed_between_steps(site: cli.Site, step: str) -> None:
    """While the guest is paused no step is recorded: that would take too long."""
    with guest(site, paused=False, ram=patterns.dense) as source:
        found = source.state()
        command = struck.killer("at", step)
        result = site.run(*CHECKPOINT, command=command)
        assert result.returncode == -signal.SIGKILL, result
        assert source.status() == {"share": "postmigrate"}.get(step, "running")
        site.run("recover", check=0)
        state.assert_left_as_found(found, source.state())
        _nothing_left(site)
        reflinks.checkpoint(site, "one")


@pytest.mark.parametrize(
    ("where", "step"),
    [("after", "resume"), ("after", "commit"), ("after", "committed"), ("after", "end")],
)
def test_killed_once_it_is_whole(site: cli.Site, tmp_path: Path, where: str, step: str) -> None:
    with guest(site, paused=False, ram=patterns.dense) as source:
        found = source.state()
        struck.killed(site, where, step, *CHECKPOINT)
        struck.recovered(site, COMMITTED)
        state.assert_left_as_found(found, source.state())
        assert struck.states(site) == {"one": "saved"}
        shown = site.run("inspect", "one", "--json", check=0).json()
        assert shown["state"] == "saved"
        source.control.execute("stop")
        before = source.ram.read("m", MIB)
    _assert_restores(site, before)


def _assert_restores(site: cli.Site, after_first_mib: bytes) -> None:
    arguments = ["-object", "memory-backend-ram,id=m,size=32M", "-machine", "memory-backend=m"]
    with qemu.running(*arguments, machine="q35", memory="32M", incoming=True) as destination:
        helpers.restore(site, site.images / "one", destination)
        assert destination.ram.read("m", MIB) == after_first_mib


def test_the_whole_host_goes_down(site: cli.Site) -> None:
    """What is composed and not synced is no image after that."""
    with guest(site, paused=False, ram=patterns.dense):
        struck.killed(site, "after", "resume", *CHECKPOINT)
    (journal,) = struck.journals(site)
    struck.rewrite(journal, lambda record: {**record, "boot": "another-boot"})
    (line,) = site.run("recover", "--json", check=0).json()["operations"]
    assert line["outcome"].startswith("the host went down before the image was on stable storage")
    _nothing_left(site)


@pytest.mark.parametrize("step", ["label", "migrate"])
def test_qemu_is_killed(site: cli.Site, step: str) -> None:
    with guest(site, paused=False, ram=patterns.dense) as source:
        result = struck.run(site, "after", step, f"{source.pid}:KILL", *CHECKPOINT, "--json")
        assert result.returncode == 4, result
        assert result.error_id() == "save.qemu_died", result.error()
        _nothing_left(site)


def test_qemu_dies_once_the_guest_runs_again(site: cli.Site) -> None:
    """The image is whole by then, and stays."""
    with guest(site, paused=False, ram=patterns.dense) as source:
        struck.run(site, "after", "complete", f"{source.pid}:KILL", *CHECKPOINT)
        assert struck.states(site) == {"one": "saved"}
        site.run("verify", "one", check=0)


@pytest.mark.parametrize("step", ["label", "pause", "migrate", "complete"])
@pytest.mark.parametrize("name", ["TERM", "INT+INT"])
def test_signal_at_a_step(site: cli.Site, step: str, name: str) -> None:
    with guest(site, paused=False, ram=patterns.dense) as source:
        found = source.state()
        result = struck.run(site, "after", step, name, *CHECKPOINT)
        assert result.returncode == 9, result
        state.assert_left_as_found(found, source.state())
        _nothing_left(site)


def test_storage_that_hangs_is_not_waited_for(site: cli.Site) -> None:
    """The guest is not even paused: its RAM file cannot be brought to the disk."""
    with guest(site, paused=False, ram=patterns.dense) as source:
        found = source.state()
        with (
            struck.stopped(site, "label", *CHECKPOINT, "--json") as taking,
            storage.frozen(site.directory.parent),
        ):
            taking.send_signal(signal.SIGCONT)
            wait.until(lambda: waits_for_thaw(taking.pid), what="mapsave to wait for the disk")
            taking.send_signal(signal.SIGTERM)
            assert printed(taking)["error"]["id"] == "interrupted"
        taking.wait(wait.LONG)
        site.run("recover", check=0)
        state.assert_left_as_found(found, source.state())
        _nothing_left(site)


def test_time_limit(site: cli.Site) -> None:
    with guest(site, paused=False, ram=patterns.dense) as source:
        found = source.state()
        result = site.run(*CHECKPOINT, "--timeout", "0.01", "--json")
        assert result.error_id() == "save.timeout"
        state.assert_left_as_found(found, source.state())
        _nothing_left(site)


def test_no_room_at_the_end(site: cli.Site) -> None:
    """What is composed does not fit: a DIMM is written while nothing is left for it.

    The guest does not run: the kernel kills the QEMU of one that writes to its RAM file then.
    """
    with guest(site, *_dimm(), machine="q35", ram=patterns.dense) as source:
        found = source.state()
        filler = site.directory / "filler"
        with struck.stopped(site, "migrate", *CHECKPOINT, "--json") as taking:
            room = os.statvfs(site.images)
            with filler.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - 2 * MIB)
            result = cli.ended(taking, check=4)
        assert "No space left" in result.error()["message"]
        filler.unlink()
        state.assert_left_as_found(found, source.state())
        _nothing_left(site)
        reflinks.checkpoint(site, "one")


def _dimm() -> list[str]:
    backend = ["-object", "memory-backend-ram,id=d,size=64M"]
    return ["-m", "slots=2,maxmem=1G", *backend, "-device", "pc-dimm,memdev=d"]


def test_another_client_resumes_the_guest(site: cli.Site, tmp_path: Path) -> None:
    """Devices and RAM would be of two moments: no image is made of it."""
    with guest(site, paused=True, ram=patterns.dense) as source:
        with struck.stopped(site, "migrate", *CHECKPOINT, "--json") as taking:
            source.control.execute("cont")
            result = cli.ended(taking, check=4)
        assert result.error_id() == "save.guest_continued"
        source.wait_status("running")
        _nothing_left(site)
        before = ram.digests(source.ram)
        assert before


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_the_kernel_writes_at_the_wrong_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: storage.Kind
) -> None:
    """What the guest has changed is on the disk, clean, before it is paused: it is paused again."""
    with reflinks.site_on(kind, tmp_path) as site:
        firmware = helpers.counting_firmware(site.directory)
        with guest(site, *firmware, paused=False, ram=patterns.dense) as source:
            found = source.state()
            original = qmp.QmpSession.pause

            async def pause(paused: qmp.QmpSession) -> None:
                source.ram.write("m", 20 * MIB + 5, b"one")
                with reflinks.ram_file(site).open("rb") as file:
                    os.fsync(file.fileno())
                await original(paused)

            monkeypatch.setattr(qmp.QmpSession, "pause", pause)
            monkeypatch.setattr(checkpoint, "_FEW", -1)
            known = config.load(site.config, {})
            wanted = save_request.request(
                known, known.guest(NAME), image="one", method="checkpoint", then="resume"
            )
            done = asyncio.run(save.save(known.guest(NAME), known, wanted))
            assert done.checkpoint is not None
            # On XFS all may be in one extent of which the guest has changed a part: it is shared
            # once more as a whole then.
            assert done.checkpoint["pauses"] in ((3,) if kind == "btrfs" else (1, 2, 3))
            assert done.downtime_s == done.checkpoint["paused_s"]
            state.assert_left_as_found(found, source.state())
            then = helpers.counts(source)
            wait.until(lambda: helpers.counts(source) != then, what="it to count on")
        arguments = ["-object", "memory-backend-ram,id=m,size=32M", *firmware]
        arguments += ["-machine", "memory-backend=m"]
        with qemu.running(*arguments, machine="q35", memory="32M", incoming=True) as destination:
            helpers.restore(site, site.images / "one", destination)
            assert destination.ram.read("m", 20 * MIB + 5, 3) == b"one"
