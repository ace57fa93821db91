"""The eleven file scenarios of QEMU's own test suite (tests/qtest/migration/file-tests.c).

Those that mapsave does go through its command, on real QEMU and on the emulator; the others (a
plain stream, files by path, a bad offset) by bare monitor commands, so that it is known how QEMU
behaves there as well. Beyond upstream: RAM is compared byte for byte, block by block.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.kit import cache, cli, patterns, qemu, qmp, ram, raw, state, storage, wait
from tests.kit.emulated import emulated
from tests.qemu import helpers

OFFSET = 4096  # upstream's FILE_TEST_OFFSET

# QEMU says on standard error which channels it starts.
TRACED = ["-trace", "multifd_send_thread_start", "-trace", "multifd_recv_thread_start"]


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A directory with a path short enough for unix(7)."""
    place = Path(tempfile.mkdtemp(prefix="mapsave-"))
    yield place
    shutil.rmtree(place)


@contextmanager
def _qemu_pair(site: cli.Site, *, runs: bool) -> Iterator[tuple[qemu.Qemu, qemu.Qemu]]:
    """A source, which writes its memory if it runs, and a destination that waits."""
    arguments = [*helpers.counting_firmware(site.directory), *TRACED]
    with (
        qemu.running(*arguments, name="source", paused=not runs, ram=patterns.sparse) as source,
        qemu.running(*arguments, name="destination", incoming=True) as destination,
    ):
        yield source, destination


def _needs(direct_io: str, directory: Path) -> None:
    if direct_io == "on" and not storage.takes_direct_io(directory):
        pytest.skip(f"{directory} takes no O_DIRECT")


# precopy/file/mapped-ram{,/live} and multifd/file/mapped-ram{,/live,/dio,/fdset,/fdset/dio}, as
# mapsave does them: always by fdset, always with multifd, of one channel at least.
WAYS = [
    pytest.param("off", "1", id="1-channel"),
    pytest.param("off", "4", id="4-channels"),
    pytest.param("on", "1", id="1-channel-dio"),
    pytest.param("on", "4", id="4-channels-dio"),
]


@pytest.mark.parametrize("live", [False, True], ids=["stopped", "live"])
@pytest.mark.parametrize(("direct_io", "channels"), WAYS)
def test_mapped_ram_over_fdset(
    site: cli.Site, tmp_path: Path, direct_io: str, channels: str, live: bool
) -> None:
    _needs(direct_io, tmp_path)
    ways = ["--direct-io", direct_io, "--channels", channels]
    with _qemu_pair(site, runs=True) as (source, destination):
        left, right = source.state(), destination.state()
        assert left.run_state == "running"
        wait.until(lambda: any(helpers.counts(source)), what="the guest counting")
        image = helpers.save(site, source, "--then", "leave", *ways, *["--live"] * live)
        helpers.assert_header_intact(image)
        _assert_cached(image, not_at_all=direct_io == "on")
        state.assert_left_as_found(left, source.state(), run_state="postmigrate")
        before = source.snapshot_ram(tmp_path / "before")
        done = helpers.restore(site, image, destination, *ways)
        helpers.assert_header_intact(image, restored=True)
        state.assert_left_as_found(right, destination.state(), run_state="paused")
        assert done["run_state"] == "paused"
        ram.assert_same(before, destination.ram)
        assert source.stderr().count("multifd_send_thread_start") == int(channels)
        assert destination.stderr().count("multifd_recv_thread_start") == int(channels)
        assert source.control.execute("query-fdsets") == []
        assert destination.control.execute("query-fdsets") == []
        _assert_paused_when_meant(source, live=live)
        _assert_goes_on(destination)


def _assert_cached(image: Path, *, not_at_all: bool) -> None:
    """Fail unless RAM went past the page cache, or through it."""
    if cache.unavailable(image):
        return
    cached, asked = helpers.cached_pages(image)
    assert asked >= 8
    assert cached == 0 if not_at_all else cached > asked / 2


def _assert_paused_when_meant(source: qemu.Qemu, *, live: bool) -> None:
    """Fail unless the guest was paused for the end only, or before its RAM was written."""
    source.status()  # events so far are received with its reply
    names = source.control.event_names()
    assert names.count("STOP") == 1
    assert (names.index("MIGRATION:active") < names.index("STOP")) == live
    assert names.index("STOP") < names.index("MIGRATION:device")


def _assert_goes_on(guest: qemu.Qemu) -> None:
    """Fail unless the restored guest runs on where it was: it counts."""
    then = helpers.counts(guest)
    guest.control.execute("cont")
    guest.wait_status("running")
    wait.until(lambda: helpers.counts(guest) != then, what="the restored guest counting on")


@pytest.mark.parametrize("live", [False, True], ids=["stopped", "live"])
@pytest.mark.parametrize(("direct_io", "channels"), [WAYS[0], WAYS[3]])
def test_mapped_ram_over_fdset_on_the_emulator(
    site: cli.Site, tmp_path: Path, sockets: Path, direct_io: str, channels: str, live: bool
) -> None:
    _needs(direct_io, tmp_path)
    ways = ["--direct-io", direct_io, "--channels", channels]
    with (
        emulated(sockets / "source", "--pattern", "random", "--writer", memory="64M") as source,
        emulated(sockets / "destination", "--incoming", "defer", memory="64M") as destination,
    ):
        left, right = source.state(), destination.state()
        assert left.run_state == "running"
        image = helpers.save(site, source, "--then", "leave", *ways, *["--live"] * live)
        helpers.assert_header_intact(image)
        state.assert_left_as_found(left, source.state(), run_state="postmigrate")
        before = source.snapshot_ram(tmp_path / "before")
        helpers.restore(site, image, destination, *ways)
        helpers.assert_header_intact(image, restored=True)
        state.assert_left_as_found(right, destination.state(), run_state="paused")
        assert destination.state().fdsets == []
        ram.assert_same(before, destination.snapshot_ram(tmp_path / "after"))


# What mapsave never does, by bare monitor commands.


def _migrate(source: qemu.Qemu, destination: qemu.Qemu, uri: str) -> None:
    source.control.execute("migrate", uri=uri)
    source.wait_migration("completed")
    source.wait_status("postmigrate")
    _load(destination, uri)


def _load(destination: qemu.Qemu, uri: str) -> None:
    destination.control.execute("stop")
    destination.control.execute("migrate-incoming", uri=uri, exit_on_error=False)
    destination.wait_migration("completed")


@pytest.mark.parametrize(
    ("offset", "runs"),
    [pytest.param(0, False, id="file"), pytest.param(OFFSET, True, id="file-offset")],
)
def test_plain_stream_by_path(site: cli.Site, tmp_path: Path, offset: int, runs: bool) -> None:
    path = tmp_path / "stream"
    path.write_bytes(b"X" * offset)
    uri = f"file:{path}" + (f",offset={offset}" if offset else "")
    with _qemu_pair(site, runs=runs) as (source, destination):
        _migrate(source, destination, uri)
        ram.assert_same(source.snapshot_ram(tmp_path / "before"), destination.ram)
    assert path.read_bytes()[: offset + 4] == b"X" * offset + b"QEVM"


def test_plain_stream_at_an_offset_over_fdset(site: cli.Site, tmp_path: Path) -> None:
    path = tmp_path / "stream"
    path.write_bytes(b"X" * OFFSET)
    uri = f"file:/dev/fdset/{raw.FDSET},offset={OFFSET}"
    with _qemu_pair(site, runs=True) as (source, destination), ExitStack() as stack:
        stack.enter_context(raw.handed_over(source, path, os.O_WRONLY, direct=False))
        stack.enter_context(raw.handed_over(destination, path, os.O_RDONLY, direct=False))
        _migrate(source, destination, uri)
        ram.assert_same(source.snapshot_ram(tmp_path / "before"), destination.ram)
        stack.close()
        assert source.control.execute("query-fdsets") == []
        assert destination.control.execute("query-fdsets") == []
    assert path.read_bytes()[: OFFSET + 4] == b"X" * OFFSET + b"QEVM"


def test_bad_offset_is_refused_before_anything_happens(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    with qemu.running() as source:
        before = source.state()
        with pytest.raises(qmp.QmpError, match="bad offset"):
            source.control.execute("migrate", uri=f"file:{path},offset=0x20M")
        assert source.control.execute("query-migrate") == {}
        state.assert_left_as_found(before, source.state())
    assert not path.exists()


@pytest.mark.parametrize("runs", [False, True], ids=["stopped", "live"])
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"multifd": False, "direct_io": False}, id="mapped-ram"),
        pytest.param({"direct_io": False, "channels": 4}, id="multifd"),
        pytest.param({"direct_io": True, "channels": 4}, id="multifd-dio"),
    ],
)
def test_mapped_ram_by_path(
    site: cli.Site, tmp_path: Path, settings: dict[str, Any], runs: bool
) -> None:
    with _qemu_pair(site, runs=runs) as (source, destination):
        raw.configure(source, **settings)
        raw.configure(destination, **settings)
        _migrate(source, destination, f"file:{tmp_path}/image")
        ram.assert_same(source.snapshot_ram(tmp_path / "before"), destination.ram)
