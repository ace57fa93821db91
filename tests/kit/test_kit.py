"""The kit itself works: each helper does what other tests lean on, and notices what it should."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit import (
    cli,
    files,
    linux_guest,
    memory,
    patterns,
    processes,
    qemu,
    qmp,
    ram,
    raw,
    state,
    storage,
    wait,
)

MIB = 1 << 20
ALL_PATTERNS = {
    "dense": patterns.dense,
    "empty": patterns.empty,
    "sparse": patterns.sparse,
    "fragmented": patterns.fragmented(4),
    "single-bytes": patterns.single_bytes,
}


@pytest.mark.parametrize("pattern", ALL_PATTERNS.values(), ids=ALL_PATTERNS)
@pytest.mark.parametrize("size", [1, 4095, 65536, 65537, 3 * MIB])
def test_patterns_have_the_size_and_are_reproducible(pattern: patterns.Pattern, size: int) -> None:
    assert len(pattern(size)) == size
    assert pattern(size, seed=5) == pattern(size, seed=5)
    if size > 65536 and pattern is not patterns.empty:
        assert pattern(size, seed=5) != pattern(size, seed=6)


def test_patterns_have_their_shape() -> None:
    def used(pattern: patterns.Pattern) -> list[bool]:
        content = pattern(64 * patterns.PAGE)
        starts = range(0, len(content), patterns.PAGE)
        return [any(content[at : at + patterns.PAGE]) for at in starts]

    assert all(used(patterns.dense))
    assert not any(used(patterns.empty))
    assert used(patterns.fragmented(4)) == [number // 4 % 2 == 0 for number in range(64)]
    assert 64 * patterns.PAGE - patterns.single_bytes(64 * patterns.PAGE).count(0) == 64
    assert 0.97 < patterns.sparse(64 * MIB).count(0) / (64 * MIB) < 0.995
    contents = patterns.dense(16 * MIB)
    starts = range(0, len(contents), patterns.PAGE)
    assert len({bytes(contents[at : at + patterns.PAGE]) for at in starts}) == len(starts)


def test_file_of_a_pattern(tmp_path: Path) -> None:
    path = patterns.write(tmp_path / "ram", 65 * MIB + 7, patterns.dense, seed=3)
    content = path.read_bytes()
    assert content[: 64 * MIB] == patterns.dense(64 * MIB, seed=3)
    assert content[64 * MIB :] == patterns.dense(MIB + 7, seed=4)
    assert patterns.write(tmp_path / "hole", 65 * MIB, patterns.empty).stat().st_blocks == 0


@pytest.mark.parametrize("machine", ["pc", "q35", "microvm", "none"])
def test_raw_save_and_restore_of_each_machine(machine: str, tmp_path: Path) -> None:
    with qemu.running(machine=machine, memory="33000K", ram=patterns.sparse) as source:
        assert source.status() == "prelaunch"
        before = source.snapshot_ram(tmp_path / "before")
        digests = source.ram_digests()
        raw.save(source, tmp_path / "image")
        assert source.state().fdsets == []
    assert ram.digests(before) == digests
    with qemu.running(machine=machine, memory="33000K", incoming=True) as destination:
        assert destination.status() == "inmigrate"
        raw.restore(destination, tmp_path / "image")
        ram.assert_same(before, destination.ram)
        destination.ram.write(destination.ram.largest(), 5 * MIB + 3, b"\x99")
        with pytest.raises(AssertionError, match=r"differs first at byte 0x500003 \(page 1280\)"):
            ram.assert_same(before, destination.ram)


def test_raw_save_of_a_running_guest_by_buffered_descriptors(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"X" * 4096)
    with qemu.running(paused=False, ram=patterns.dense) as source:
        assert source.status() == "running"
        raw.save(source, image, offset=4096, direct_io=False, channels=4)
        source.control.wait_event("MIGRATION", status="completed", timeout=wait.LONG)
        assert "STOP" in source.control.event_names()
        before = source.snapshot_ram(tmp_path / "before")
    with image.open("rb") as file:
        assert file.read(4100) == b"X" * 4096 + b"QEVM"
    with qemu.running(incoming=True) as destination:
        raw.restore(destination, image, offset=4096, direct_io=False)
        ram.assert_same(before, destination.ram)


def test_every_kind_of_memory_is_seen(tmp_path: Path) -> None:
    size = 32 * MIB
    content = patterns.write(tmp_path / "ram", size, patterns.dense)
    with qemu.running(*memory.from_file(content, "32M"), machine="none", memory="32M") as guest:
        assert guest.ram.lengths() == {"m": size}
        assert guest.ram.read("m") == content.read_bytes()
        guest.ram.write("m", 0, b"private")
    assert not content.read_bytes().startswith(b"private")
    shared = memory.from_file(content, "32M", shared=True)
    with qemu.running(*shared, machine="none", memory="32M") as guest:
        guest.ram.write("m", 0, b"shared")
    assert content.read_bytes().startswith(b"shared")
    with qemu.running(*memory.zeroed("32M"), machine="none", memory="32M") as guest:
        assert guest.ram.read("m") == bytes(size)
    split = [*memory.nodes("32M", "16M"), *memory.dimm("16M")]
    with qemu.running(*split, memory="48M") as guest:
        lengths = guest.ram.lengths()
        assert (lengths["n0"], lengths["n1"], lengths["d0"]) == (size, 16 * MIB, 16 * MIB)
        assert "pc.bios" in lengths


@pytest.mark.root
def test_huge_pages() -> None:
    with (
        memory.huge_pages(20),
        qemu.running(
            *memory.huge("32M"), memory="32M", machine="none", ram=patterns.dense
        ) as guest,
    ):
        assert guest.ram.read("m")[MIB:] == patterns.dense(31 * MIB)
        assert "2 MiB" in guest.control.execute("x-query-ramblock")["human-readable-text"]


def test_what_was_left_changed_is_noticed() -> None:
    with qemu.running() as guest:
        before = guest.state()
        state.assert_left_as_found(before, guest.state())
        guest.control.execute("migrate-set-parameters", multifd_channels=7)
        with pytest.raises(AssertionError, match="parameters"):
            state.assert_left_as_found(before, guest.state())
        guest.control.execute("migrate-set-parameters", multifd_channels=2)
        with open(os.devnull) as file:
            guest.control.pass_descriptor(file.fileno(), 9)
        with pytest.raises(AssertionError, match="fdsets"):
            state.assert_left_as_found(before, guest.state())
        guest.control.execute("remove-fd", fdset_id=9)
        guest.control.execute("cont")
        with pytest.raises(AssertionError, match="running"):
            state.assert_left_as_found(before, guest.state())
        state.assert_left_as_found(before, guest.state(), run_state="running")


def test_qemu_that_does_not_come_up_says_why() -> None:
    with pytest.raises(AssertionError, match="nosuch"), qemu.running("-device", "nosuch"):
        pass
    assert processes.strays() == {}


def test_qemu_ends_on_every_path() -> None:
    with pytest.raises(ZeroDivisionError), qemu.running() as guest:
        assert guest.pid in processes.strays()
        _ = 1 / 0
    assert not processes.strays()
    with qemu.running() as guest:
        guest.control.execute("quit")
        assert guest.wait() == 0
        assert not guest.alive()
    with qemu.running() as guest:
        guest.kill()
        assert guest.wait() == -9
        with pytest.raises(qmp.QmpClosed):
            guest.status()


def test_monitor_errors_and_time_limits() -> None:
    with qemu.running() as guest:
        with pytest.raises(qmp.QmpError, match="No file descriptor supplied"):
            guest.control.execute("add-fd")
        with pytest.raises(TimeoutError):
            guest.control.wait_event("NEVER", timeout=0.05)
        # Each of the two monitors takes a client at the same time.
        with qmp.connect(guest.qmp) as other:
            assert other.execute("query-status") == guest.control.execute("query-status")
            assert other.peer_pid() == guest.pid


@pytest.mark.root
def test_qemu_as_another_user_in_a_sandbox(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("not for QEMU")
    with qemu.running(user=65534, sandbox=True, machine="none") as guest:
        status = Path(f"/proc/{guest.pid}/status").read_text()
        assert "Uid:\t65534\t65534" in status
        assert "Groups:\t \n" in status
        assert "Seccomp:\t2" in status
        with pytest.raises(qmp.QmpError, match="Permission denied"):
            guest.control.execute("dump-guest-memory", paging=False, protocol=f"file:{secret}")
        # Descriptors are all that it needs.
        raw.save(guest, tmp_path / "image")


def test_successor_is_taken_over_and_ends() -> None:
    with qemu.running(name="web01", machine="none") as guest:
        guest.control.execute("quit")
        guest.wait()
        subprocess.run([*guest.argv, "-daemonize"], env=processes.environment(), check=True)
        with guest.successor() as successor:
            assert successor.status() == "running"
            assert successor.pid != guest.pid
            assert successor.pid in processes.strays()
        assert not successor.alive()
        assert processes.strays() == {}


def test_frozen_qemu_answers_afterwards() -> None:
    with qemu.running(machine="none") as guest:
        with qmp.connect(guest.qmp) as other, guest.frozen():
            other.timeout = 0.1
            with pytest.raises(TimeoutError):
                other.execute("query-status")
        assert guest.status() == "prelaunch"


@pytest.mark.root
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
@pytest.mark.parametrize("sector", [512, 4096])
def test_loop_filesystem(kind: storage.Kind, sector: int, tmp_path: Path) -> None:
    with storage.loop_filesystem(kind, storage.SMALLEST[kind], tmp_path, sector=sector) as place:
        assert len(storage.left_behind()) == 2
        assert storage.takes_direct_io(place)
        (place / "file").write_bytes(b"x")
        with storage.read_only(place), pytest.raises(OSError, match="Read-only"):
            (place / "file").write_bytes(b"y")
        with storage.filled(place, leave=2 * MIB):
            room = os.statvfs(place)
            assert room.f_bavail * room.f_frsize <= 2 * MIB
            with pytest.raises(OSError, match="No space left"):
                (place / "big").write_bytes(bytes(3 * MIB))
        (place / "file").write_bytes(b"z")
    assert storage.left_behind() == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.root
@pytest.mark.parametrize(
    "kind", [each for each in storage.SMALLEST if storage.unavailable(each) is None]
)
def test_loop_filesystem_like_a_disk(kind: storage.Kind, tmp_path: Path) -> None:
    """Its backing file has all its blocks and keeps them, and is not in the page cache."""
    size = storage.SMALLEST[kind]
    with storage.loop_filesystem(kind, size, tmp_path, like_disk=True) as place:
        (backing,) = tmp_path.glob("*.img")
        loops = Path("/sys/block").glob("loop*/loop/backing_file")
        (loop,) = [each for each in loops if each.read_text().strip() == str(backing)]
        assert loop.with_name("dio").read_text().strip() == "1"
        (place / "file").write_bytes(bytes(MIB))
        (place / "file").unlink()
        with files.opened(place) as directory:
            os.fsync(directory)
        assert backing.stat().st_blocks * 512 >= size
    assert storage.left_behind() == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.root
def test_tmpfs_is_full_and_ramfs_refuses_direct_io(tmp_path: Path) -> None:
    with storage.tmpfs(MIB, tmp_path) as place, pytest.raises(OSError, match="No space left"):
        (place / "big").write_bytes(bytes(2 * MIB))
    with storage.without_direct_io(tmp_path) as place, pytest.raises(OSError, match="Invalid"):
        os.open(place / "file", os.O_CREAT | os.O_WRONLY | os.O_DIRECT)
    assert storage.left_behind() == []


@pytest.mark.root
def test_mount_goes_when_the_test_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), storage.loop_filesystem("ext4", 16 * MIB, tmp_path):
        _ = 1 / 0
    assert storage.left_behind() == []


# The live Linux guest.


def test_linux_guest_goes_on_after_a_raw_save_and_restore(tmp_path: Path) -> None:
    with linux_guest.running(log=tmp_path / "source.log") as source:
        source.serial.wait_ticks(2)
        raw.save(source.qemu, tmp_path / "image")
        before = source.serial.ticks()
        snapshot = source.qemu.snapshot_ram(tmp_path / "before")
    with linux_guest.running(log=tmp_path / "destination.log", incoming=True) as destination:
        destination.qemu.control.execute("stop")
        raw.restore(destination.qemu, tmp_path / "image")
        ram.assert_same(snapshot, destination.qemu.ram)
        destination.qemu.control.execute("cont")
        linux_guest.assert_same_memory(before, destination.serial.wait_ticks(2))


def test_a_guest_that_lost_memory_is_noticed() -> None:
    tick = linux_guest.Tick
    before = [tick(1, "a", True), tick(2, "a", True)]
    linux_guest.assert_same_memory(before, [tick(3, "a", True), tick(4, "a", True)])
    for after in ([tick(2, "a", True)], [tick(3, "b", True)], [tick(3, "a", False)], []):
        with pytest.raises(AssertionError):
            linux_guest.assert_same_memory(before, after)


# The command, and what watches over the tests.


def test_site_writes_its_configuration(site: cli.Site, tmp_path: Path) -> None:
    site.add_guest("web01", tmp_path / "web01.qmp", ["qemu", "-m", "4G"], policy="none")
    assert site.config.read_text() == (
        f"images: {site.images}\nstate: {site.state}\nsocket: {site.socket}\njobs: {site.jobs}\n"
        "launch_environment:\n- PATH\n- LANG\n- MAPSAVE_TEST_RUN\n"
        f"guests:\n  web01:\n    policy: none\n"
        f"    qmp: {tmp_path}/web01.qmp\n    launch:\n    - qemu\n    - -m\n    - 4G\n"
    )


def test_command_runs_as_a_user_runs_it(site: cli.Site) -> None:
    assert "save" in cli.mapsave("--help", check=0).stdout
    assert cli.mapsave("nosuch").returncode == 2
    with pytest.raises(AssertionError, match="nosuch"):
        cli.mapsave("nosuch", check=0)
    with site.start("--help") as process:
        process.kill()
        assert process.wait(wait.LONG) == -9
    with pytest.raises(AssertionError, match="timed out"):
        site.run("--help", timeout=0)


def test_strays_are_found_even_if_orphaned() -> None:
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    parent = (
        "import subprocess, sys;"
        "print(subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL).pid)"
    )
    with processes.running(
        [sys.executable, "-c", parent, *sleeper], stdout=subprocess.PIPE, text=True
    ) as process:
        pid = int(process.communicate(timeout=wait.LONG)[0])
    assert list(processes.strays()) == [pid]
    assert "time.sleep(60)" in processes.strays()[pid]
    processes.end(pid)
    assert processes.strays() == {}
