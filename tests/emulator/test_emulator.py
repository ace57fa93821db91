"""What the emulator offers beyond QEMU, and what only it can show: throttle, writer, patterns."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mapsave.emulator import memory, ram_save, stream
from mapsave.emulator.address import Address
from mapsave.emulator.machine import Machine
from mapsave.emulator.options import PATTERNS, EmulatorOptions
from mapsave.emulator.outgoing import Outgoing

from tests.emulator import helpers
from tests.emulator.helpers import MIB, MULTIFD
from tests.kit import cli, emulated, files, wait
from tests.kit.qmp import QmpClosed

SIZE = 33 * MIB


def test_cancel_in_the_middle(tmp_path: Path) -> None:
    with helpers.emulator(tmp_path, "--pattern", "random", "--throttle", "2M") as qmp:
        qmp.capabilities(*MULTIFD)
        qmp("migrate", uri=f"file:{tmp_path}/image")
        while (ram := qmp.wait("active")["ram"])["normal-bytes"] < 1 * MIB:
            time.sleep(0.01)
        assert ram["normal-bytes"] <= 16 * MIB
        assert ram["remaining"] > 8 * MIB
        refused = qmp.ask("migrate", uri=f"file:{tmp_path}/other")
        assert refused["error"]["desc"] == "There's a migration process in progress"
        assert qmp.capabilities("xbzrle") == refused
        assert qmp("migrate_cancel") == {}
        assert qmp.wait("cancelled") == {"status": "cancelled"}
        qmp.wait_run_state("running")
        assert qmp.trace() == ["setup", "pass 1", "active", "cancelling", "cancelled"]


def test_a_cancel_that_meets_the_end_of_the_setup_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in QEMU, which tries again where the migration has gone a step on in between."""
    monitor: Any = None  # no one listens
    machine = Machine(EmulatorOptions(qmp=Path("/none"), memory=MIB), monitor)
    save = Outgoing(machine)
    change = save._change

    def begun_meanwhile(before: str, after: str) -> bool:
        if (before, after) == ("setup", "cancelling"):
            save.status = "active"
        return change(before, after)

    monkeypatch.setattr(save, "_change", begun_meanwhile)
    monkeypatch.setattr(machine, "migration_event", lambda _: None)
    save.status = "setup"
    save.cancel()
    assert save.status == "cancelling"


def test_what_the_throttle_holds_back_keeps_no_monitor_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All pages may be with the channels when the save comes to its end."""

    def hand_out_all(_: Outgoing, ram: Any) -> None:
        while ram.bytes_left:
            ram.send(ram.take())

    monkeypatch.setattr(Outgoing, "_send_slice", hand_out_all)
    monitor: Any = SimpleNamespace(emit=lambda *_: None)
    options = EmulatorOptions(qmp=Path("/none"), memory=MIB, pattern="random", throttle=4096)
    machine = Machine(options, monitor)
    machine.capabilities.change(dict.fromkeys(MULTIFD, True), machine.parameters)
    save = Outgoing(machine)
    save.start(Address("file", str(tmp_path / "image"), 0))
    wait.until(lambda: save._ram is not None and not save._ram.bytes_left, what="its last pages")
    time.sleep(0.2)
    assert machine.lock.acquire(timeout=60)
    machine.lock.release()
    save.cancel()
    wait.until(lambda: not save.is_registered, what="the end of the save")
    assert save.status == "cancelled"


def test_the_command_takes_what_a_restore_adds(tmp_path: Path) -> None:
    """So that ``launch`` of a guest may be ``mapsave emulate``."""
    path = tmp_path / "guest.qmp"
    added = ("-incoming", "defer")
    with cli.started("emulate", "--qmp", path, "--memory", "4M", *added):
        wait.until(lambda: emulated.answers(path), what="its monitor")
        assert emulated.status(path) == "inmigrate"


def test_bandwidth_limit_holds_and_can_be_lifted(tmp_path: Path) -> None:
    size, limit = 256 * MIB, 3 * MIB  # takes longer at this rate than is waited for the end
    # Ten times a second it may be exceeded by what a channel writes by one call.
    beyond = 10 * (512 << 10)
    with helpers.emulator(tmp_path, "--pattern", "random", memory="256M") as qmp:
        qmp.capabilities(*MULTIFD)
        qmp("migrate-set-parameters", max_bandwidth=limit, downtime_limit=1)
        started = time.monotonic()
        qmp("migrate", uri=f"file:{tmp_path}/image")
        time.sleep(1)
        sent = qmp("query-migrate")["ram"]["transferred"]
        assert sent <= (limit + beyond) * (time.monotonic() - started) + 2 * MIB
        qmp("migrate-set-parameters", max_bandwidth=0)
        assert qmp.wait("completed")["ram"]["normal"] == size // 4096


def test_guest_can_be_stopped_and_continued_during_a_save(tmp_path: Path) -> None:
    with helpers.emulator(tmp_path, "--pattern", "random") as qmp:
        qmp.capabilities(*MULTIFD)
        qmp("migrate-set-parameters", downtime_limit=0, max_bandwidth=MIB)
        qmp("migrate", uri=f"file:{tmp_path}/image")
        qmp.wait("active")
        qmp("stop")
        assert qmp("query-status")["status"] == "paused"
        qmp("cont")
        qmp("migrate-set-parameters", max_bandwidth=0)
        qmp.wait("completed")
        assert qmp.trace()[:5] == ["setup", "pass 1", "active", "STOP", "RESUME"]
        rest = [word for word in qmp.trace()[5:] if not word.startswith("pass")]
        assert rest == ["STOP", "device", "completed"]


def test_live_save_of_a_writing_guest(tmp_path: Path, destination: helpers.Qmp) -> None:
    """RAM changes while it is saved; the image has what it was at the end, and RAM then rests."""
    with helpers.emulator(tmp_path, "--pattern", "fragmented", "--writer") as qmp:
        before = helpers.memory_of(qmp, SIZE, tmp_path)
        result = helpers.save(qmp, f"{tmp_path}/image", max_bandwidth=40 * MIB)
        assert result["status"] == "completed"
        qmp.wait_run_state("postmigrate")
        after = helpers.memory_of(qmp, SIZE, tmp_path)
        assert before != after
        assert result["ram"]["normal"] + result["ram"]["duplicate"] > SIZE // 4096
        time.sleep(0.05)
        assert helpers.memory_of(qmp, SIZE, tmp_path) == after
        assert helpers.restore(destination, f"{tmp_path}/image")["status"] == "completed"
        assert helpers.memory_of(destination, SIZE, tmp_path) == after
        qmp("cont")
        wait.until(lambda: helpers.memory_of(qmp, SIZE, tmp_path) != after, what="the writer")
        again = helpers.save(qmp, f"{tmp_path}/again")
        assert again["status"] == "completed"


def test_page_that_became_zero_is_zero_in_the_image(tmp_path: Path) -> None:
    """A page sent once and zero later has its bit cleared again."""
    options = EmulatorOptions(qmp=tmp_path / "q", memory=1 * MIB, pattern="random")
    ram = memory.GuestMemory(options)
    with files.opened(tmp_path / "image", os.O_RDWR | os.O_CREAT) as fd:
        saved = ram_save.MappedRamSave(
            ram, stream.StreamWriter(fd), ram_save.Throttle(0), channels=[fd], detection="multifd"
        )
        saved.setup()
        while len(pages := saved.take()):
            saved.send(pages)
        saved.wrap()
        ram.view[5 * 4096 : 6 * 4096] = bytes(4096)
        saved.left[5] = True
        saved.send(saved.take())
        saved.finish()
        saved.close()
        bitmap = os.pread(fd, 32, 8 + 4 + 8 + 28)
    assert bitmap == (((1 << 256) - 1) ^ (1 << 5)).to_bytes(32, "little")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_are_reproducible(tmp_path: Path, pattern: str) -> None:
    contents = [bytearray(5000 * 4096) for _ in range(3)]
    for content, seed in zip(contents, (1, 1, 2), strict=True):
        memory.fill(memoryview(content), pattern, seed)
    assert contents[0] == contents[1]
    assert (contents[0] == contents[2]) == (pattern == "zero")
    pages = {bytes(contents[0][at : at + 4096]) for at in range(0, 5000 * 4096, 4096)}
    share = len(pages - {bytes(4096)}) / 5000
    low, high = {
        "zero": (0, 0),
        "random": (1, 1),
        "sparse": (0.02, 0.2),
        "fragmented": (0.45, 0.55),
        "linux": (0.3, 0.55),
    }[pattern]
    assert low <= share <= high


def test_odd_memory_is_refused(tmp_path: Path) -> None:
    for size in ("0", "4097"):
        command = [sys.executable, "-m", "mapsave.emulator", "--qmp", str(tmp_path / "q")]
        done = subprocess.run([*command, "--memory", size], capture_output=True, check=False)
        assert done.returncode == 2
        assert b"whole pages" in done.stderr


def test_only_the_first_descriptor_of_a_message_counts(source: helpers.Qmp) -> None:
    reader, writer = os.pipe()
    extra_reader, extra_writer = os.pipe()
    source("add-fd", writer, extra_writer, fdset_id=1)
    for fd in (writer, extra_writer):
        os.close(fd)
    assert os.read(extra_reader, 1) == b""  # the emulator has closed its copy
    os.set_blocking(reader, False)
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)
    source("remove-fd", fdset_id=1)
    assert os.read(reader, 1) == b""
    os.close(reader)
    os.close(extra_reader)


@pytest.mark.parametrize("oob", [False, True])
def test_pipelined_descriptors_are_lost_with_oob_only(tmp_path: Path, *, oob: bool) -> None:
    """qemu.qmp sends a blank with each descriptor, the command after it."""
    with helpers.emulator(tmp_path, negotiate=False) as qmp:
        qmp("qmp_capabilities", enable=["oob"] if oob else [])
        os.kill(qmp.process.pid, signal.SIGSTOP)
        for number in (1, 2):
            with files.opened(tmp_path, os.O_RDONLY) as fd:
                qmp.send(b" ", fd)
            add = {"execute": "add-fd", "arguments": {"fdset-id": number}}
            qmp.send(json.dumps(add).encode())
        os.kill(qmp.process.pid, signal.SIGCONT)
        replies = [qmp.reply(), qmp.reply()]
        assert ["error" in reply for reply in replies] == [False, oob]
        assert len(qmp("query-fdsets")) == (1 if oob else 2)


def test_second_client_waits_for_the_first(tmp_path: Path) -> None:
    with helpers.emulator(tmp_path) as first:
        with files.opened(tmp_path, os.O_RDONLY) as fd:
            first("add-fd", fd, fdset_id=3)
        with socket.socket(socket.AF_UNIX) as waiting:
            waiting.connect(str(tmp_path / "emulator.qmp"))
            waiting.settimeout(0.2)
            with pytest.raises(TimeoutError):
                waiting.recv(1)
            first.close()
            waiting.settimeout(wait.LONG)
            assert waiting.recv(65536).startswith(b'{"QMP": {"version": {"qemu": {"micro": 2')
            waiting.sendall(b'{"execute":"qmp_capabilities"}{"execute":"query-fdsets"}')
            heard = b""
            while b'"fdset-id": 3' not in heard:  # sets outlive the monitor
                piece = waiting.recv(65536)
                assert piece, heard
                heard += piece


def test_sigterm_ends_it_as_quit_does(tmp_path: Path) -> None:
    with helpers.emulator(tmp_path) as qmp:
        os.kill(qmp.process.pid, signal.SIGTERM)
        with pytest.raises(QmpClosed):
            qmp.events.append(qmp.read())
            qmp.read()
        assert qmp.events[0]["data"] == {"guest": False, "reason": "host-signal"}
        assert qmp.ended() == 0
        assert not (tmp_path / "emulator.qmp").exists()


def test_set_removed_during_a_save_vanishes_when_it_ends(tmp_path: Path) -> None:
    with helpers.emulator(tmp_path, "--pattern", "random") as qmp:
        (tmp_path / "image").touch()
        target = helpers.pass_pair(qmp, tmp_path / "image", os.O_WRONLY)
        qmp.capabilities(*MULTIFD)
        qmp("migrate-set-parameters", direct_io=True, max_bandwidth=MIB)
        qmp("migrate", uri=f"file:{target}")
        qmp.wait("active")
        qmp("remove-fd", fdset_id=7)
        assert qmp("query-fdsets") == [{"fdset-id": 7, "fds": []}]
        qmp("migrate-set-parameters", max_bandwidth=0)
        qmp.wait("completed")
        wait.until(lambda: not qmp("query-fdsets"), what="the end of the set")
