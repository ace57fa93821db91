"""The file for node_exporter: whole, readable by others, and told once where it cannot be."""

import asyncio
import contextlib
import logging
import os
import stat
from pathlib import Path

import pytest
from mapsave.service.metrics.metrics import Metrics
from prometheus_client import parser

from tests.service.observing import State, saved


async def test_the_textfile_is_read_by_others_and_whole(state: State, tmp_path: Path) -> None:
    path = tmp_path / "mapsave.prom"
    metrics = Metrics(state.sources())
    metrics.ended(saved())
    before = os.umask(0o077)
    try:
        await metrics.write_textfile(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    names = {each.name for each in parser.text_string_to_metric_families(path.read_text())}
    assert "mapsave_save_duration_seconds" in names
    # node_exporter has those itself, and refuses to serve anything where they come twice.
    assert not [name for name in names if not name.startswith("mapsave_")]
    assert sorted(os.listdir(tmp_path)) == ["images", "mapsave.prom"]


async def test_no_reader_sees_half_a_textfile(state: State, tmp_path: Path) -> None:
    path = tmp_path / "mapsave.prom"
    metrics = Metrics(state.sources())
    for number in range(100):
        metrics.ended(saved(result={"guest": f"guest-{number}", "duration_s": 1.0}))
    await metrics.write_textfile(path)
    length = path.stat().st_size
    read: list[int] = []

    async def look() -> None:
        while True:
            read.append(len(await asyncio.to_thread(path.read_bytes)))

    reader = asyncio.create_task(look())
    await asyncio.gather(*(metrics.write_textfile(path) for _ in range(50)))
    reader.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await reader
    assert read
    assert set(read) == {length}


async def test_a_link_that_was_planted_is_not_followed(state: State, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (tmp_path / ".mapsave.prom.tmp").symlink_to(victim)
    await Metrics(state.sources()).write_textfile(tmp_path / "mapsave.prom")
    assert victim.read_text() == "untouched"
    assert (tmp_path / "mapsave.prom").is_file()
    assert not (tmp_path / "mapsave.prom").is_symlink()


async def test_a_textfile_that_cannot_be_written_is_told_once(
    state: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="mapsave")
    path = tmp_path / "later" / "mapsave.prom"
    metrics = Metrics(state.sources())
    for _ in range(3):
        await metrics.write_textfile(path)
    path.mkdir(parents=True)  # now something else is wrong
    for _ in range(2):
        await metrics.write_textfile(path)
    assert os.listdir(path.parent) == ["mapsave.prom"]
    path.rmdir()
    for _ in range(2):
        await metrics.write_textfile(path)
    words = [each.getMessage() for each in caplog.records]
    assert len(words) == 3
    assert "No such file" in words[0]
    assert "Is a directory" in words[1]
    assert "again" in words[2]
    assert path.is_file()
