"""Measurements of directories: what they take, how long, and what is left of them."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mapsave import units
from mapsave.plan import probe

from tests.kit import inject, storage, wait

MEASURE = """
import os, sys
from mapsave.plan import probe
try:
    found = probe.measure(os.open(sys.argv[1], os.O_RDONLY))
except OSError as error:
    print(error)
else:
    print("measured", probe.SMALL in found.holes)
"""


def measured_by_process(directory: Path, *rules: inject.Rule) -> str:
    """Measure in a process of its own, for some of whose system calls the rules hold."""
    environment = {**os.environ, **inject.environment(*rules)}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, directory],
        env=environment,
        capture_output=True,
        text=True,
        timeout=wait.LONG,
        check=True,
    )
    return done.stdout.strip()


def measure(directory: Path) -> probe.Probe:
    fd = os.open(directory, os.O_RDONLY)
    try:
        return probe.measure(fd)
    finally:
        os.close(fd)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage that is slow because the machine is busy does not count as hung."""
    monkeypatch.setattr(probe, "LIMIT", wait.LONG)


@pytest.mark.usefixtures("patient")
def test_figures_of_each_kind_and_nothing_is_left(tmp_path: Path) -> None:
    begun = time.monotonic()
    found = measure(tmp_path)
    assert time.monotonic() - begun < probe.LIMIT + 1
    assert found.is_measured and found.is_whole
    assert all(costs[probe.SMALL][1] > 0 for costs in (found.holes, found.reads))
    assert not list(tmp_path.iterdir())


def test_a_file_system_with_little_room_is_left_alone(tmp_path: Path) -> None:
    with storage.tmpfs(probe.ROOM - (64 << 20), tmp_path) as place:
        with pytest.raises(OSError, match=r"less than 1.0 GiB is free") as caught:
            measure(place)
        assert caught.value.errno == errno.ENOSPC
        assert os.statvfs(place).f_bfree == os.statvfs(place).f_blocks


@pytest.mark.usefixtures("patient")
def test_no_more_is_written_than_promised(tmp_path: Path) -> None:
    """The same file system, but for its size, has room for the promise alone."""
    with storage.tmpfs(4 << 30, tmp_path) as place:
        with storage.filled(place, leave=probe.ROOM):
            assert measure(place).is_whole
        assert probe.ROOM == 4 * probe.MOST_BYTES


def test_storage_that_hangs_is_given_up(tmp_path: Path) -> None:
    rule = inject.Rule("fsync", "hang", path=str(tmp_path), count=-1)
    assert f"took longer than {units.format_duration(probe.LIMIT)}" in measured_by_process(
        tmp_path, rule
    )


def test_slow_storage_is_measured_with_fewer_in_flight(tmp_path: Path) -> None:
    rule = inject.Rule("pwrite", "delay", 30_000, path=str(tmp_path), count=-1)
    assert measured_by_process(tmp_path, rule) == "measured True"


def test_a_disk_that_fails_is_an_error(tmp_path: Path) -> None:
    rule = inject.Rule("pwrite", "errno", errno.EIO, path=str(tmp_path), skip=40)
    assert "Input/output error" in measured_by_process(tmp_path, rule)
