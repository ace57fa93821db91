"""Fixtures and checks for all tests; the helpers themselves are in ``tests/kit``."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from mapsave.monitor.session import Session

from tests.kit import cli, emulated, frail, need, processes, storage


def pytest_configure(config: pytest.Config) -> None:
    for marker, meaning in {**need.MARKERS, **frail.MARKERS}.items():
        config.addinivalue_line("markers", f"{marker}: {meaning}")


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    return frail.run(item, nextitem) or None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which tests were done once more."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport) and (words := frail.said(report)):
                terminalreporter.write_line(words, yellow=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out what needs root; the kit leaves out what cannot start its QEMU or libvirtd."""
    if item.get_closest_marker("root"):
        need.skip_if(need.root())


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaves a process, a mount or a loop device; end such processes."""
    # Fixtures of a wider scope are there already, and may stay.
    processes_before = set(processes.strays()) if processes.started() else set()
    storage_before = set(storage.left_behind())
    yield
    left = _end_strays(processes_before) if processes.started() else []
    _fail_on(left + [each for each in storage.left_behind() if each not in storage_before])


@pytest.fixture(autouse=True, scope="session")
def _nothing_left_behind_at_the_end() -> Iterator[None]:
    """Fail the run if fixtures of a wider scope left something."""
    yield
    _fail_on(_end_strays(set()) + storage.left_behind())


@pytest.fixture
def site(tmp_path: Path) -> cli.Site:
    """An operator's set-up of its own: images, state, configuration."""
    return cli.Site(tmp_path / "site")


@pytest.fixture
def images_in_memory(site: cli.Site, tmp_path: Path) -> Iterator[None]:
    """Have the site's images in memory: to remove a file of many pieces takes a disk seconds."""
    with storage.tmpfs(400 << 20, tmp_path) as place:
        site.settings["images"] = str(place)
        site.write()
        yield


@pytest.fixture
def emulator(tmp_path: Path) -> Iterator[emulated.Emulated]:
    """An emulated guest of 4 MiB that runs."""
    with emulated.emulated(tmp_path / "emulator.qmp") as found:
        yield found


@pytest.fixture
async def session(emulator: emulated.Emulated) -> AsyncIterator[Session]:
    from mapsave.monitor import qmp

    async with qmp.connected(emulator.path) as found:
        yield found


def _end_strays(known: set[int]) -> list[str]:
    strays = {pid: command for pid, command in processes.strays().items() if pid not in known}
    for pid in strays:
        processes.end(pid)
    return [f"process {pid}: {command}" for pid, command in strays.items()]


def _fail_on(left: list[str]) -> None:
    if left:
        pytest.fail("left behind: " + "; ".join(left), pytrace=False)
