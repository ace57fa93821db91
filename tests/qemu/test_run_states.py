"""Every run state of QEMU: what is saved from it, and what a save that fails leaves.

The guests are firmwares that bring themselves into the state.
"""

import errno
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from mapsave.migration import run_states

from tests.faults import struck
from tests.kit import cli, inject, qemu, raw

NAME = "web01"
IMAGE = "one.mapsave"
SAVE = ("save", NAME, "--image", IMAGE, "--json")
_ROM = 64 << 10
_RESET = bytes.fromhex("ea000000f0")  # jmp 0xf000:0

# Give the PIIX4 its ACPI registers (ports 0x600 to 0x63f); halt if they say that it was woken up.
_ACPI = bytes.fromhex(
    "66b8400b0080 baf80c 66ef"  # PCI 00:01.3, register 0x40
    "66b801060000 bafc0c 66ef"
    "66b8800b0080 baf80c 66ef"  # register 0x80
    "b001 bafc0c ee"
    "ba0006 ed f6c480 7403 f4 ebfd"  # in ax, dx; test ah, 0x80; jz; hlt; jmp
)
# mov dx, PORT; mov a(l|x), VALUE; out dx, a(l|x); jmp $
_S3 = bytes.fromhex("ba0406 b80024 ef ebfe")  # ACPI's PM1a control: sleep type 1
_S5 = bytes.fromhex("ba0406 b80020 ef ebfe")  # sleep type 0
_WATCHDOG = bytes.fromhex("ba4304 b00f ee ebfe")  # ib700: fires after 0 seconds
_PANIC = bytes.fromhex("ba0505 b001 ee ebfe")  # pvpanic
_READ = bytes.fromhex("b80102 bb007e b90200 ba8000 cd13 ebfe")  # int 0x13: the second sector
_SPIN = bytes.fromhex("ebfe")
_NO_CODE = bytes.fromhex("ea000000a0")  # jmp 0xa000:0, where there is no memory to execute
_IDLE = bytes.fromhex("f4 ebfd")  # hlt; jmp
# xor ax, ax; mov ds, ax; wait until the byte at 0x8000 is 1
_ON_DEMAND = bytes.fromhex("31c0 8ed8 803e008001 75f9")
_FLAG = 0x8000


@dataclass(frozen=True)
class Case:
    """A guest that comes into a run state by its ``code``, with these ``arguments``."""

    code: bytes
    arguments: tuple[str, ...] = ()

    def command(self, directory: Path) -> list[str]:
        """Return the guest's arguments."""
        path = directory / "firmware"
        path.write_bytes((_ACPI + self.code).ljust(_ROM - 16, b"\0") + _RESET.ljust(16, b"\0"))
        return ["-bios", str(path), *self.arguments]


@dataclass(frozen=True)
class DiskCase(Case):
    """A guest that QEMU's own firmware boots from a disk, whose second sector fails once."""

    def command(self, directory: Path) -> list[str]:
        """Return the guest's arguments."""
        path = directory / "disk"
        path.write_bytes((self.code.ljust(510, b"\0") + b"\x55\xaa").ljust(1 << 20, b"\0"))
        return ["-blockdev", _DISK.format(path), *_IDE]


_DISK = (
    "driver=raw,node-name=disk,file.driver=blkdebug,file.image.driver=file,file.image.filename={},"
    "file.inject-error.0.event=read_aio,file.inject-error.0.sector=1,file.inject-error.0.once=on"
)
_IDE = ("-device", "ide-hd,drive=disk,werror=stop,rerror=stop")
ITSELF = {
    "suspended": Case(_S3),
    "shutdown": Case(_S5, ("-no-shutdown",)),
    "watchdog": Case(_WATCHDOG, ("-device", "ib700", "-action", "watchdog=pause")),
    "guest-panicked": Case(_PANIC, ("-device", "pvpanic", "-action", "panic=pause")),
    "internal-error": Case(_NO_CODE),
    "io-error": DiskCase(_READ),
    "debug": Case(_SPIN),
    "running": Case(_IDLE),
}
SAVED = ("running", "paused", "prelaunch", "io-error", "watchdog")


@contextmanager
def in_state(site: cli.Site, state: str, *rules: inject.Rule) -> Iterator[qemu.Qemu]:
    """Run a guest of QEMU until it is in ``state``; it is ``web01`` of the site."""
    case = ITSELF.get(state, ITSELF["running"])
    environment = inject.environment(*rules) if rules else None
    with qemu.guest(
        site,
        NAME,
        *case.command(site.directory),
        memory="16M",
        # TCG knows no such error.
        accel="kvm" if state == "internal-error" else "tcg",
        paused=state == "prelaunch",
        incoming=state == "inmigrate",
        env=environment,
    ) as guest:
        if state == "paused":
            guest.control.execute("stop")
        if state == "postmigrate":
            raw.save(guest, site.directory / "theirs")
        if state == "finish-migrate":
            on = [{"capability": "pause-before-switchover", "state": True}]
            guest.control.execute("migrate-set-capabilities", capabilities=on)
            guest.control.execute("migrate", uri=f"file:{site.directory}/theirs")
        if state == "debug":
            _step(guest, site.directory / "gdb")
        guest.wait_status(state)
        yield guest


def _step(guest: qemu.Qemu, path: Path) -> None:
    """Execute one instruction of the guest in a debugger (GDB's remote protocol)."""
    command = f"gdbserver unix:{path},server=on,wait=off"
    guest.control.execute("human-monitor-command", command_line=command)
    with socket.socket(socket.AF_UNIX) as debugger:
        debugger.connect(str(path))
        debugger.sendall(b"+$s#73")
        guest.wait_status("debug")
        # QEMU continues the guest when its debugger goes, unless it is told to detach in silence.
        debugger.detach()


def test_every_run_state_is_in_the_table() -> None:
    with qemu.running(machine="none") as guest:
        schema = guest.control.execute("query-qmp-schema")
    names = [
        {member["name"] for member in entry["members"]}
        for entry in schema
        if entry["meta-type"] == "enum"
    ]
    (known,) = [found for found in names if "postmigrate" in found]
    assert known == set(run_states.TABLE)


@pytest.mark.parametrize(
    "state",
    [
        *("suspended", "shutdown", "guest-panicked", "internal-error", "debug"),
        *("inmigrate", "postmigrate", "finish-migrate"),
    ],
)
def test_refused(site: cli.Site, state: str) -> None:
    assert run_states.TABLE[state].refusal is not None
    with in_state(site, state) as guest:
        for then in ("quit", "resume", "leave"):
            error = site.run(*SAVE, "--then", then, check=3).error("check.run_state")
            assert error["data"]["run_state"] == state
            assert error["hint"]
        assert guest.status() == state
        checked = site.run("check", NAME, "--json", check=3).json()
        assert "run_state" in [line["check"] for line in checked["checks"] if not line["ok"]]
        assert not list(site.images.iterdir())


def _goes_on(guest: qemu.Qemu) -> None:
    """Continue the guest, and see that it runs or stops for its own reason again; QEMU lives."""
    guest.control.execute("cont")
    guest.wait_status("running", "io-error", "watchdog")
    assert guest.alive()


@pytest.mark.parametrize("state", SAVED)
def test_saved_and_restored(site: cli.Site, state: str) -> None:
    assert run_states.TABLE[state].refusal is None
    with in_state(site, state) as guest:
        site.run(*SAVE, check=0)
        guest.wait()
        restored = site.run("restore", IMAGE, "--json", check=0).json()
        with guest.successor() as successor:
            assert restored["run_state"] == successor.status() == state
            _goes_on(successor)


@pytest.mark.parametrize("then", ["leave", "resume"])
@pytest.mark.parametrize("state", SAVED)
def test_saved_and_continued(site: cli.Site, state: str, then: str) -> None:
    with in_state(site, state) as guest:
        site.run(*SAVE, "--then", then, check=0)
        goes_on = state == "running" and then == "resume"
        assert guest.status() == ("running" if goes_on else "postmigrate")
        _goes_on(guest)


# In an image the first bitmap is right after the stream's beginning; the first pages are at 2 MiB.
_PAGES = inject.Rule("pwritev", "errno", errno.EIO, first=2 * raw.MIB, count=-1)
_BITMAP = inject.Rule("pwritev", "errno", errno.EIO, first=raw.MIB, last=2 * raw.MIB - 1, count=-1)


@pytest.mark.parametrize("rule", [_PAGES, _BITMAP], ids=["pages", "bitmap"])
@pytest.mark.parametrize("state", SAVED)
def test_fails_while_qemu_writes(site: cli.Site, state: str, rule: inject.Rule) -> None:
    """The first pages, or the bitmaps, which come when the guest has stopped for good."""
    with in_state(site, state, rule) as guest:
        before = guest.state()
        error = site.run(*SAVE, "--channels", "1", check=4).error()
        assert "Input/output error" in error["message"]
        assert "run state" not in error["message"]
        assert guest.state() == before
        _goes_on(guest)


FAIL = inject.environment(inject.Rule("fsync", "errno", errno.EIO, path=".partial"))


@pytest.mark.parametrize("state", SAVED)
def test_fails_after_the_stream(site: cli.Site, state: str) -> None:
    """The error says that a guest that did not run has to be continued before it is saved again."""
    with in_state(site, state) as guest:
        error = site.run(*SAVE, check=4, env=FAIL).error()
        assert not list(site.images.iterdir())
        if state == "running":
            assert guest.status() == state
            assert "run state" not in error["message"]
        else:
            assert guest.status() == "postmigrate"
            assert "'postmigrate'" in error["message"]
            assert f"it was '{state}'" in error["message"]
        _goes_on(guest)


def test_interrupted_after_the_stream(site: cli.Site) -> None:
    with in_state(site, "paused") as guest:
        with struck.stopped(site, "complete", *SAVE) as process:
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGCONT)
            error = cli.ended(process, check=9).error()
        assert "'postmigrate'" in error["message"]
        assert guest.status() == "postmigrate"
        assert not list(site.images.iterdir())


# An hour passes at the step "complete", by the clock that time limits go by.
_AN_HOUR_LATER = """
import asyncio, sys, time
from mapsave.cli import main
from mapsave.operations import journal
plain, passed = journal.Journal.record, [0]
def record(self, step, data):
    plain(self, step, data)
    if step == "complete":
        passed[0] = 3600
journal.Journal.record = record
asyncio.BaseEventLoop.time = lambda self: time.monotonic() + passed[0]
main.main(sys.argv[1:])
"""


def test_too_late_after_the_stream(site: cli.Site) -> None:
    """The error does not say 'as before'."""
    with in_state(site, "paused") as guest:
        late = [sys.executable, "-c", _AN_HOUR_LATER]
        error = site.run(*SAVE, "--timeout", "10m", command=late, check=4).error("save.timeout")
        assert "'postmigrate'" in error["message"]
        assert "as before" not in error["hint"]
        assert guest.status() == "postmigrate"


# A guest that suspends itself to RAM: QEMU dies where it is continued after a save.


def test_raw_suspended_and_continued(site: cli.Site) -> None:
    with in_state(site, "suspended") as guest:
        raw.save(guest, site.directory / "theirs")
        with pytest.raises(ConnectionError):
            guest.control.execute("cont")
        assert guest.wait() == -signal.SIGABRT
        assert "'postmigrate' -> 'suspended'" in guest.stderr()


@pytest.mark.parametrize("then", ["quit", "leave"])
def test_paused_while_it_was_suspended(site: cli.Site, then: str) -> None:
    """QEMU reports 'paused' then, and nothing else."""
    with in_state(site, "suspended") as guest:
        guest.control.execute("stop")
        before = guest.state()
        assert before.run_state == "paused"
        error = site.run(*SAVE, "--then", then, check=4).error()
        assert "S3" in error["message"]
        assert "system_wakeup" in error["hint"]
        assert guest.state() == before
        assert not list(site.images.iterdir())
        guest.control.execute("cont")
        guest.wait_status("suspended")
        guest.control.execute("system_wakeup")
        guest.wait_status("running")


@contextmanager
def _suspends_at(
    site: cli.Site, step: str, *more: str, env: dict[str, str] | None = None
) -> Iterator[tuple[qemu.Qemu, subprocess.Popen[str]]]:
    """Save a guest that suspends itself once the save has come to ``step``."""
    case = Case(_ON_DEMAND + _S3)
    with (
        qemu.guest(site, NAME, *case.command(site.directory), memory="16M", paused=False) as guest,
        struck.stopped(site, step, *SAVE, *more, env=env) as process,
    ):
        guest.ram.write("pc.ram", _FLAG, b"\1")
        guest.wait_status("suspended")
        process.send_signal(signal.SIGCONT)
        yield guest, process


def _brought_back(site: cli.Site, guest: qemu.Qemu) -> None:
    """Restore the image in place of the guest, and wake that up."""
    if guest.alive():
        guest.kill()
        guest.wait()
    assert site.run("restore", IMAGE, "--json", check=0).json()["run_state"] == "suspended"
    with guest.successor() as restored:
        restored.control.execute("system_wakeup")
        restored.wait_status("running")


@pytest.mark.parametrize(
    ("step", "more"),
    [
        ("migrate", ("--live", "--then", "resume")),
        ("migrate", ("--live", "--then", "leave")),
        ("pause", ("--then", "resume")),
        ("pause", ("--then", "leave")),
    ],
)
def test_suspends_itself_while_it_is_saved(
    site: cli.Site, step: str, more: tuple[str, ...]
) -> None:
    """It is in the image, and is not continued."""
    with _suspends_at(site, step, *more) as (guest, process):
        error = cli.ended(process, check=4).error("save.guest_not_put_back")
        assert error["data"]["image"] == str(site.images / IMAGE)
        assert guest.status() == "postmigrate"
        site.run("recover", "--json", check=0)
        assert guest.status() == "postmigrate"
        _brought_back(site, guest)


def test_suspends_itself_and_is_ended(site: cli.Site) -> None:
    with _suspends_at(site, "pause") as (guest, process):
        cli.ended(process, check=0)
        guest.wait()
        _brought_back(site, guest)


@pytest.mark.parametrize("then", ["quit", "resume"])
def test_suspends_itself_and_the_disk_fails(site: cli.Site, then: str) -> None:
    """Its partial image is all there is of it: kept, and completed by ``recover``."""
    with _suspends_at(site, "pause", "--then", then, env=FAIL) as (guest, process):
        error = cli.ended(process, check=4).error()
        assert "QEMU could crash when it is resumed" in error["message"]
        assert "its image kept" in error["message"]
        assert guest.status() == "postmigrate"
        assert len(struck.partials(site)) == 1
        (line,) = site.run("recover", "--json", check=0).json()["operations"]
        assert line["outcome"] == "image committed"
        if then == "quit":
            guest.wait()
        else:
            assert guest.status() == "postmigrate"
            assert "restore the image" in line["warnings"][0]
        _brought_back(site, guest)
