"""Who lives on an image is known by live processes: what is noted of others counts for nothing."""

import asyncio
import os
from pathlib import Path

import pytest
from mapsave import config, errors
from mapsave.image import image
from mapsave.jobs import job, retention
from mapsave.monitor import process
from mapsave.operations import discard, in_use, process_files
from mapsave.operations.in_use import User

from tests.image import build
from tests.kit import cli


def _user(path: Path, pid: int, started: int) -> User:
    with image.opened(path) as opened:
        return User(
            guest="db",
            image=str(path),
            uuid=str(opened.block.uuid),
            inode=os.fstat(opened.fd).st_ino,
            pid=pid,
            started=started,
            data_bytes=4096,
            end=4096,
            argv=("qemu",),
        )


@pytest.fixture
def path(site: cli.Site) -> Path:
    """An image that was restored, and whose user this very process is."""
    path = site.images / "it"
    build.Image(header={"state": build.RESTORED}).built().write(path)
    started = process.start_time(os.getpid())
    assert started is not None
    in_use.note(site.state, _user(path, os.getpid(), started))
    return path


def test_only_live_processes_count(site: cli.Site, path: Path) -> None:
    (found,) = in_use.everyone(site.state)
    assert in_use.of_process(site.state, found.qemu) == found
    for other in ((found.pid, found.started + 1), (2**22 + 1, 7)):
        in_use.note(site.state, _user(path, *other))
    broken = process_files.path(site.state, "in-use", (found.pid, found.started + 2))
    broken.write_text("{")
    assert in_use.everyone(site.state) == [found]
    assert len(list((site.state / "in-use").iterdir())) == 1  # the others were swept
    (site.state / "in-use" / "gone.json").symlink_to("nowhere")  # as one that ends meanwhile
    assert in_use.everyone(site.state) == [found]
    broken.with_name(process_files.path(site.state, "in-use", found.qemu).name).write_text("{")
    assert in_use.everyone(site.state) == []


def test_a_copy_is_not_in_use(site: cli.Site, path: Path) -> None:
    copy = site.images / "copy"
    copy.write_bytes(path.read_bytes())
    found = config.load(site.config, {})
    with pytest.raises(errors.ImageInUse, match=rf"guest 'db' \(pid {os.getpid()}\)"):
        discard.discard(found, str(path), unrestored=False)
    assert discard.discard(found, str(copy), unrestored=False)["note"] is None
    done = discard.discard(found, str(path), unrestored=False, in_use=True)
    assert (done["freed_bytes"], path.exists()) == (0, False)


def test_what_cannot_be_looked_up_is_no_leave(site: cli.Site, path: Path) -> None:
    (site.state / "in-use").rename(site.state / "other")
    (site.state / "in-use").symlink_to("in-use")  # ELOOP
    with pytest.raises(errors.Refused, match="images in use"):
        discard.discard(config.load(site.config, {}), str(path), unrestored=False)
    assert path.exists()
    assert in_use.shown(site.state) == []


@pytest.mark.parametrize("dry_run", [False, True])
def test_retention_keeps_it(site: cli.Site, path: Path, dry_run: bool) -> None:
    metadata = b'{"guest": {"name": "db"}, "job": "nightly", "then": "resume", "started": "%s"}'
    for name, when in (("it", b"2026-01-01T00:00:00+00:00"), ("new", b"2026-01-02T00:00:00+00:00")):
        header = {"state": build.RESTORED}
        content = build.Image(header=header, metadata=metadata % when).built()
        content.write(site.images / name)
    started = process.start_time(os.getpid())
    assert started is not None
    in_use.note(site.state, _user(site.images / "it", os.getpid(), started))
    site.add_guest("db", emulator={"memory": "1M"})
    nightly = job.load(site.add_job("nightly", guests=["db"], keep={"last": 1}))
    pruned = retention.prune(nightly, config.load(site.config, {}), dry_run=dry_run)
    lines = {Path(line["image"]).name: line for line in asyncio.run(pruned)}
    assert lines["it"]["kept"] is True
    assert lines["it"]["reasons"] == [f"in use by guest 'db' (pid {os.getpid()})"]
    assert (site.images / "it").exists()
    if not dry_run:
        again = retention.prune(nightly, config.load(site.config, {}), in_use=True)
        (removed,) = (line for line in asyncio.run(again) if not line["kept"])
        assert (Path(removed["image"]).name, removed["bytes"]) == ("it", 0)
        assert not (site.images / "it").exists()
