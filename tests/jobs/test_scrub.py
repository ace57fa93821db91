"""Scrub jobs: which images are due, what is found of them, and how an interrupted run goes on."""

import asyncio
import errno
import os
import shutil
import signal
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mapsave import config
from mapsave.image import data_digests, image, syscalls
from mapsave.jobs import job, loading, retention, scrub
from mapsave.jobs.scrub import Scrubbed
from mapsave.jobs.scrub_job import ScrubJob
from mapsave.operations import digesting, scrubbing, verified_notes

from tests.image import build
from tests.image.filled import fill
from tests.kit import cli, files, wait

MIB = build.MIB
ROOM = data_digests.room(8 * MIB)


def put(site: cli.Site, name: str, *, day: int = 1, digests: bool = True) -> Path:
    """Make an image of the guest ``db``, saved by the job ``nightly`` on a day of March."""
    known: Any = {
        "guest": {"name": "db"},
        "job": "nightly",
        "then": "resume",
        "started": f"2026-03-{day:02}T02:30:00.000+00:00",
    }
    held = os.open(site.images, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with image.creating(held, name, known, stream_offset=build.M, digest_room=ROOM) as partial:
            fill(partial, zlib.crc32(name.encode()))
            block = partial.validate().stream.blocks[0]
            # Pages whose bits are clear as well: dense, so that there is something to read.
            os.pwrite(partial.fd, os.urandom(block.end - block.pages_offset), block.pages_offset)
            if digests:
                partial.take_digests(data_digests.ignore)
            known["structure_digest"] = partial.validate().structure_digest
            partial.commit(known, replace=False)
    finally:
        os.close(held)
    return site.images / name


def turn(path: Path, at: int | None = None) -> int:
    """Turn a bit of a page; return where."""
    with image.opened(path) as opened:
        where = at or opened.validate().stream.blocks[0].pages_offset + 5000
    with files.opened(path, os.O_RDWR) as fd:
        (was,) = os.pread(fd, 1, where)
        os.pwrite(fd, bytes([was ^ 1]), where)
    return where


def loaded(site: cli.Site, **given: Any) -> ScrubJob:
    found = loading.load(site.add_job("weekly", kind="scrub", **given))
    assert isinstance(found, ScrubJob)
    return found


def run(site: cli.Site, **given: Any) -> Scrubbed:
    return asyncio.run(scrub.run(loaded(site, **given), config.load(site.config, {})))


def outcomes(done: Scrubbed) -> dict[str, str]:
    return {Path(each["image"]).name: each["outcome"] for each in done["images"]}


def note_of(site: cli.Site, path: Path) -> verified_notes.Note | None:
    with image.opened(path) as opened:
        return verified_notes.read(site.state, verified_notes.key_of(opened))


def test_all_are_looked_at_though_one_is_damaged(site: cli.Site) -> None:
    for day, name in enumerate("abc", 1):
        put(site, name, day=day)
    put(site, "plain", day=9, digests=False)
    where = turn(site.images / "b")
    file = site.add_job("weekly", kind="scrub")
    found = site.run("job", "check", file, "--json", check=0).json()
    assert [each["outcome"] for each in found["images"]] == ["due"] * 4
    done = site.run("job", "run", file, "--json", check=6).json()
    assert outcomes(done) == {
        "a": "verified",
        "b": "damaged",
        "c": "verified",
        "plain": "without_digests",
    }
    assert (done["verified"], done["damaged"], done["exit_code"]) == (2, 1, 6)
    error = done["images"][1]["error"]
    assert error["id"] == "image.data_damaged"
    (place,) = error["data"]["damaged"]
    assert place["offset"] <= where < place["offset"] + place["length"]
    lines = {each["name"]: each for each in site.run("list", "--json").json()["images"]}
    assert lines["a"]["verified"]["outcome"] == "verified"
    assert lines["a"]["verified"]["bytes"] == done["images"][0]["read_bytes"] > 4 * MIB
    assert lines["b"]["verified"]["error"]["data"]["damaged"] == [place]
    shown = {line.split()[-1]: line for line in site.run("list").stdout.splitlines()}
    assert "  verified just now  " in shown["a"]
    assert "  DAMAGED  " in shown["b"]
    assert "  structure verified just now  " in shown["plain"]
    assert "data       DAMAGED" in site.run("inspect", "b").stdout
    text = site.run("job", "run", file, check=6).stdout.splitlines()
    assert text[1].split()[0] == "DAMAGED"
    assert text[-1].startswith("job weekly: 0 verified, 1 DAMAGED, 3 not due yet; read ")
    assert "1 images are due, 3 are not" in site.run("job", "check", file, check=0).stdout
    site.run("job", "prune", file, check=2)


def test_nothing_is_due_within_every_and_the_longest_waiting_is_first(site: cli.Site) -> None:
    for day, name in ((3, "new"), (1, "old"), (2, "middle")):
        put(site, name, day=day)
    assert list(outcomes(run(site, images=["middle"]))) == ["middle"]
    assert list(outcomes(run(site))) == ["old", "new"]
    done = run(site)
    assert (done["images"], done["not_due"]) == ([], 3)
    assert list(outcomes(run(site, every="1ms"))) == ["middle", "old", "new"]
    assert run(site, guests=["web"], every="1ms")["images"] == []
    site.run("verify", "--data", "old", check=0)  # by hand counts as well
    assert list(outcomes(run(site, every="1ms"))) == ["middle", "new", "old"]


def test_digests_that_were_added_make_an_image_due(site: cli.Site) -> None:
    path = put(site, "a", digests=False)
    assert outcomes(run(site)) == {"a": "without_digests"}
    assert outcomes(run(site)) == {}
    with image.opened(path) as opened:
        digesting.add(opened, digesting.Watch())
    assert outcomes(run(site)) == {"a": "verified"}


def test_no_more_is_read_a_second_than_it_may(site: cli.Site) -> None:
    put(site, "a")
    put(site, "b")
    done = run(site, rate="8M")
    assert done["read_bytes"] > 8 * MIB
    assert done["duration_s"] > (done["read_bytes"] - MIB) / (8 * MIB)
    assert run(site, every="1ms")["duration_s"] < done["duration_s"] / 2


@pytest.mark.parametrize("bad", [False, True])
def test_a_run_that_reaches_its_limit_is_gone_on_with(site: cli.Site, bad: bool) -> None:
    path = put(site, "a")
    put(site, "b", day=2)
    whole = run(site, images=["a"])["read_bytes"]
    if bad:
        turn(path)  # in the part that is read first, and not again
    first = run(site, every="1ms", rate="1M", limit="3M")
    assert outcomes(first) == {"b": "begun"}  # it has waited longest
    assert (first["ended"], first["left"], first["exit_code"]) == ("limit", 2, 0)
    shutil.rmtree(site.state / "verified")
    first = run(site, images=["a"], rate="1M", limit="3M")
    assert outcomes(first) == {"a": "begun"}
    assert 3 * MIB <= first["read_bytes"] < 4 * MIB  # at most one piece more
    note = note_of(site, path)
    assert note is not None
    assert note.under_way is not None
    second = run(site)
    assert list(outcomes(second)) == ["a", "b"]  # what was begun is first
    line = second["images"][0]
    assert line["resumed_at"] == note.under_way.position > build.M
    assert line["read_bytes"] == whole - note.under_way.bytes < whole
    assert line["outcome"] == ("damaged" if bad else "verified")
    assert line["verified_bytes"] == whole
    note = note_of(site, path)
    assert note is not None
    assert note.under_way is None


def test_a_run_ends_when_its_time_is_up(site: cli.Site) -> None:
    put(site, "a")
    done = run(site, rate="1M", timeout="1500ms")
    assert (done["ended"], done["left"], outcomes(done)) == ("timeout", 1, {"a": "begun"})
    assert 1.5 <= done["duration_s"] < 4
    assert (
        "time was up, the next run goes on"
        in site.run("job", "run", site.jobs / "weekly.yaml").stdout
    )


def test_ctrl_c_ends_it_soon_and_the_next_run_goes_on(site: cli.Site) -> None:
    path = put(site, "a")
    file = site.add_job("weekly", kind="scrub", rate="1M")
    with site.start("job", "run", file, "--json") as process:
        wait.until(lambda: _position(site, path) > 0, what="a note of how far it is")
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        ended = cli.ended(process, check=9)
        assert time.monotonic() - began < 5
    assert ended.error("interrupted")["data"]["bad"] == []
    position = _position(site, path)
    done = run(site)
    assert done["images"][0]["resumed_at"] == position
    assert outcomes(done) == {"a": "verified"}


def _position(site: cli.Site, path: Path) -> int:
    note = note_of(site, path)
    return note.under_way.position if note is not None and note.under_way is not None else 0


@pytest.mark.parametrize("how", ["lost", "turned", "empty", "other"])
def test_a_note_that_is_lost_or_damaged_means_never_verified(site: cli.Site, how: str) -> None:
    put(site, "a")
    run(site)
    (path,) = (site.state / "verified").iterdir()
    raw = path.read_bytes()
    if how == "lost":
        path.unlink()
    else:
        bad = {"turned": raw[:-9] + b"X" + raw[-8:], "empty": b"", "other": raw[:64] + b"{}"}
        path.write_bytes(bad[how])
    (line,) = site.run("list", "--json").json()["images"]
    assert line["verified"] is None
    assert outcomes(run(site)) == {"a": "verified"}


async def _meanwhile(
    site: cli.Site, work: Callable[[], object], *, images: str = "*", rate: str = "1M"
) -> Scrubbed:
    """Run a scrub, and do ``work`` once it reads."""
    began = asyncio.Event()
    running = asyncio.create_task(
        scrub.run(
            loaded(site, rate=rate, images=[images]),
            config.load(site.config, {}),
            report=lambda now: began.set() if now.done_bytes > 2 * MIB else None,
        )
    )
    await asyncio.wait_for(began.wait(), wait.LONG)
    work()
    return await running


@pytest.mark.parametrize("how", ["discarded", "replaced"])
def test_an_image_that_goes_meanwhile_ends_its_own_turn(site: cli.Site, how: str) -> None:
    path = put(site, "a")
    put(site, "b", day=2)
    new = put(site, "new", day=3)

    def go() -> None:
        if how == "discarded":
            site.run("discard", "a", "--yes", check=0)
        else:
            os.replace(new, path)

    done = asyncio.run(_meanwhile(site, go))
    assert done["images"][0]["outcome"] == "skipped"
    assert done["images"][0]["error"] is not None
    assert done["images"][0]["error"]["id"] == "image.not_found"
    assert outcomes(done)["b"] == "verified"
    assert done["exit_code"] == 0
    if how == "replaced":
        assert outcomes(run(site)) == {"a": "verified"}
    assert sorted(each.name for each in (site.state / "verified").iterdir()) == sorted(
        _key(each) for each in site.images.iterdir()
    )


def _key(path: Path) -> str:
    with image.opened(path) as opened:
        return verified_notes.key_of(opened)


def test_an_image_that_is_written_to_meanwhile_is_left_to_the_next_run(site: cli.Site) -> None:
    path = put(site, "a")
    with image.opened(path) as opened:
        last = opened.validate().stream.blocks[-1]
    done = asyncio.run(_meanwhile(site, lambda: turn(path, last.pages_offset + 100)))
    assert outcomes(done) == {"a": "skipped"}
    assert done["images"][0]["error"] is not None
    assert "was changed while it was read" in done["images"][0]["error"]["message"]
    note = note_of(site, path)
    assert note is None or note.outcome is None
    assert outcomes(run(site)) == {"a": "damaged"}


def test_an_image_that_is_not_complete_is_not_looked_at(site: cli.Site) -> None:
    put(site, "a")
    os.rename(site.images / "a", site.images / "a.partial")
    assert run(site)["images"] == []
    site.images.joinpath("a.partial").unlink()
    site.images.rmdir()
    assert run(site)["images"] == []


def test_one_that_is_scrubbed_by_another_job_is_skipped(site: cli.Site) -> None:
    path = put(site, "a")
    with image.opened(path) as opened, scrubbing.alone(site.state, opened):
        done = run(site)
    assert outcomes(done) == {"a": "skipped"}
    assert outcomes(run(site)) == {"a": "verified"}


def test_what_cannot_be_opened_or_read(site: cli.Site, monkeypatch: pytest.MonkeyPatch) -> None:
    put(site, "a")
    put(site, "b", day=2)
    for at in (0, 4096):
        with files.opened(site.images / "a", os.O_RDWR) as fd:
            os.pwrite(fd, bytes(64), at + 40)
    done = run(site)
    assert (outcomes(done), done["exit_code"]) == ({"a": "damaged", "b": "verified"}, 6)

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", broken)
        done = run(site, images=["b"], every="1ms")
    assert (outcomes(done), done["exit_code"]) == ({"b": "unreadable"}, 6)
    note = note_of(site, site.images / "b")
    assert note is not None
    assert note.error is not None
    assert note.error["id"] == "image.unreadable"
    assert outcomes(run(site, images=["b"])) == {"b": "verified"}  # it is due at once


def test_a_hole_in_place_of_data_is_damage_and_a_structure_that_is_damaged_is(
    site: cli.Site,
) -> None:
    path = put(site, "a")
    with image.opened(path) as opened:
        block = opened.validate().stream.blocks[0]
        begin = -(-block.pages_offset // MIB) * MIB
    with files.opened(path, os.O_RDWR) as fd:
        syscalls.punch_hole(fd, begin, MIB)
    done = run(site, rate="1M", limit="100M")
    assert done["images"][0]["outcome"] == "damaged"
    other = put(site, "b")
    turn(other, block.bitmap_offset)
    done = run(site, images=["b"])
    assert outcomes(done) == {"b": "damaged"}
    assert done["images"][0]["error"] is not None
    assert "damaged" in done["images"][0]["error"]["data"]


def test_a_copy_is_verified_by_itself(site: cli.Site) -> None:
    path = put(site, "a")
    shutil.copy(path, site.images / "copy")
    turn(path)
    assert outcomes(run(site)) == {"a": "damaged", "copy": "verified"}
    lines = {each["name"]: each for each in site.run("list", "--json").json()["images"]}
    assert lines["a"]["verified"]["outcome"] == "damaged"
    assert lines["copy"]["verified"]["outcome"] == "verified"


def test_a_restore_of_what_is_damaged_is_refused(site: cli.Site) -> None:
    path = put(site, "a")
    where = turn(path)
    run(site)
    error = site.run("restore", "a", "--json", check=6).error("image.data_damaged")
    assert error["data"]["damaged_places"] == 1
    assert "--force" in error["hint"]
    forced = site.run("restore", "a", "--force", "--json", check=3)  # nothing says how to start it
    forced.error("check.no_destination")
    assert "was found damaged at" in forced.stderr
    turn(path, where)  # repaired
    site.run("restore", "a", "--json", check=6)
    site.run("verify", "--data", "a", check=0)
    site.run("restore", "a", "--json", check=3).error("check.no_destination")


def test_verify_by_hand_notes_what_it_finds(site: cli.Site) -> None:
    path = put(site, "a")
    turn(path)
    site.run("verify", "--data", "a", check=6)
    note = note_of(site, path)
    assert note is not None
    assert note.outcome is verified_notes.Outcome.DAMAGED
    site.run("discard", "a", "--yes", check=0)
    assert list((site.state / "verified").iterdir()) == []


def test_retention_counts_none_that_is_damaged(site: cli.Site) -> None:
    """``last: 1`` keeps the last good one; and the damaged one too, until someone has looked."""
    site.add_guest("db", site.directory / "nobody.qmp")
    nightly = job.load(site.add_job("nightly", guests=["db"], keep={"last": 1}))
    configured = config.load(site.config, {})
    for day, name in enumerate(("oldest", "good", "bad"), 1):
        put(site, name, day=day)

    def pruned() -> dict[str, Any]:
        lines = asyncio.run(retention.prune(nightly, configured, dry_run=True))
        return {Path(each["image"]).name: each for each in lines}

    assert [name for name, each in pruned().items() if each["kept"]] == ["bad"]
    turn(site.images / "bad")
    run(site)
    found = pruned()
    assert [name for name, each in found.items() if each["kept"]] == ["good", "bad"]
    assert found["good"]["reasons"] == ["the newest good image", "last 1 of 1"]
    assert found["bad"]["reasons"][0].startswith("damaged, not counted: ")
    asyncio.run(retention.prune(nightly, configured))
    assert sorted(each.name for each in site.images.iterdir()) == ["bad", "good"]
    # The only one of its guest stays as well.
    site.images.joinpath("good").unlink()
    assert [each["kept"] for each in pruned().values()] == [True]


def test_while_it_pauses_nothing_is_read(site: cli.Site) -> None:
    put(site, "a")
    pausing = [True]

    async def scrubbed() -> Scrubbed:
        work = scrub.run(loaded(site), config.load(site.config, {}), pauses=lambda: pausing[0])
        running = asyncio.create_task(work)
        await asyncio.sleep(1)
        assert not running.done()
        pausing[0] = False
        return await running

    done = asyncio.run(scrubbed())
    assert outcomes(done) == {"a": "verified"}
    assert done["duration_s"] > 1
