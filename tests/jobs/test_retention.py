"""Which images a job keeps: the rules, what is never removed, and the removal itself."""

import asyncio
import datetime
import json
import tracemalloc
import uuid
import zoneinfo
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapsave import config, errors
from mapsave.image import store
from mapsave.image.superblock import State, Superblock
from mapsave.jobs import job, retention
from mapsave.jobs.job import Keep
from mapsave.operations import locks

from tests.bench import many
from tests.image import build
from tests.kit import cli, storage

BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
START = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)
NOW = datetime.datetime(2027, 2, 1, tzinfo=datetime.UTC)


def entry(
    when: datetime.datetime | None,
    *,
    state: State = State.SAVED,
    then: str = "resume",
    guest: str = "db",
    by: str | None = "nightly",
    damaged: bool = False,
) -> store.Entry:
    """Return an image as a directory lists it; its name is its time."""
    unique = uuid.uuid4()
    name = f"{when.isoformat() if when else 'unknown'}-{unique}"
    metadata: dict[str, Any] = {"guest": {"name": guest}, "job": by, "then": then}
    if when:
        metadata["started"] = when.isoformat(timespec="milliseconds")
    error = errors.InvalidImage("damaged") if damaged else None
    block = Superblock(state, 2, 1 << 20, unique)
    return store.Entry(name, f"/i/{name}", 1, 1, 0.0, block, metadata, error, "native")


def times(*texts: str) -> list[store.Entry]:
    return [entry(datetime.datetime.fromisoformat(text)) for text in texts]


def plan(entries: list[store.Entry], zone: Any = datetime.UTC, **keep: int) -> dict[str, str]:
    """Return the reasons why each image that is kept is, by its time, newest first."""
    found = retention.plan(entries, "nightly", "db", Keep(**keep), zone, now=NOW)
    return {
        str(each.entry.metadata.get("started"))[:16]: ", ".join(each.reasons)
        for each in found
        if each.kept
    }


def test_last_keeps_the_newest() -> None:
    found = plan(times("2026-03-01T00:00Z", "2026-03-03T00:00Z", "2026-03-02T00:00Z"), last=2)
    assert found == {
        "2026-03-03T00:00": "the newest good image, last 1 of 2",
        "2026-03-02T00:00": "last 2 of 2",
    }


def test_what_is_pinned_is_kept() -> None:
    found = times("2026-03-01T00:00Z", "2026-03-03T00:00Z", "2026-03-02T00:00Z")
    assert found[0].block is not None
    decided = retention.plan(
        found, "nightly", "db", Keep(last=1), datetime.UTC, now=NOW, pinned={found[0].block.uuid}
    )
    assert [each.entry for each in decided if each.reasons == ("pinned",)] == [found[0]]
    assert [each.entry for each in decided if not each.kept] == [found[2]]


def test_the_newest_of_each_period_is_kept_and_empty_periods_do_not_count() -> None:
    hours = "01-31T23:00 02-01T01:00 02-01T02:00 02-20T02:10 02-20T02:50 02-20T03:10 03-05T00:00"
    every = times(*(f"2026-{hour}Z" for hour in hours.split()))
    assert list(plan(every, hourly=2)) == ["2026-03-05T00:00", "2026-02-20T03:10"]
    assert list(plan(every, hourly=3))[2:] == ["2026-02-20T02:50"]
    assert list(plan(every, daily=3))[1:] == ["2026-02-20T03:10", "2026-02-01T02:00"]
    assert list(plan(every, monthly=2)) == ["2026-03-05T00:00", "2026-02-20T03:10"]
    assert plan(every, monthly=3)["2026-01-31T23:00"] == "monthly 2026-01"
    assert len(plan(every, monthly=99)) == 3


def test_weeks_are_those_of_iso_8601() -> None:
    # Sunday; Monday of the last week of 2026, which holds the first days of 2027.
    found = plan(times("2026-12-27T12:00Z", "2026-12-28T12:00Z", "2027-01-03T12:00Z"), weekly=2)
    assert found == {
        "2027-01-03T12:00": "the newest good image, weekly 2026-W53",
        "2026-12-27T12:00": "weekly 2026-W52",
    }


def test_periods_are_those_of_the_zone() -> None:
    both = times("2026-07-01T21:30Z", "2026-07-01T22:30Z")  # 23:30 and 00:30 in Berlin
    assert len(plan(both, daily=5)) == 1
    assert len(plan(both, BERLIN, daily=5)) == 2


def test_the_hour_that_comes_twice_is_two_hours() -> None:
    found = plan(times("2026-10-25T00:30Z", "2026-10-25T01:30Z"), BERLIN, hourly=2)
    assert list(found.values())[1] == "hourly 2026-10-25 02:00+0200"
    assert len(found) == 2


def test_the_guest_itself_is_never_removed() -> None:
    days = [START + datetime.timedelta(days=day) for day in range(4)]
    entries = [
        entry(days[0], then="quit"),
        entry(days[1], then="quit", state=State.RESTORED),
        entry(days[2], then="leave"),
        entry(days[3]),
    ]
    assert plan(entries, last=1) == {
        "2026-03-04T00:00": "the newest good image, last 1 of 1",
    }
    assert plan(entries[:3], last=1) == {
        "2026-03-03T00:00": "the newest good image, last 1 of 1",
    }
    alone = [entry(days[0], then="leave"), entry(days[1], then="quit", state=State.RESTORED)]
    assert plan([*alone, entry(days[2], then="quit")], last=1) == {
        "2026-03-03T00:00": "the newest good image, the only copy of its guest: not restored "
        "since, last 1 of 1",
    }


def test_what_is_damaged_or_partial_neither_counts_nor_goes() -> None:
    days = [START + datetime.timedelta(days=day) for day in range(5)]
    entries = [
        *(entry(days[0]), entry(days[1]), entry(days[2], damaged=True)),
        *(entry(days[3], state=State.PARTIAL), entry(None)),
    ]
    found = plan(entries, last=1)
    assert found == {
        "2026-03-02T00:00": "the newest good image, last 1 of 1",
        "2026-03-03T00:00": "damaged, not counted: damaged",
        "2026-03-04T00:00": "incomplete, not counted",
        "None": "its time is unknown",
    }


def test_the_future_neither_counts_nor_goes() -> None:
    """The host's clock was ahead when it was made: it is not the newest forever."""
    days = [START + datetime.timedelta(days=day) for day in range(2)]
    entries = [entry(days[0]), entry(days[1]), entry(NOW + datetime.timedelta(seconds=1))]
    assert plan(entries, last=1) == {
        "2026-03-02T00:00": "the newest good image, last 1 of 1",
        "2027-02-01T00:00": "its time is in the future, so it is not counted: check the clock",
    }


def test_what_the_run_has_made_is_kept_whatever_its_time_is() -> None:
    """The clock was restored since, so that it is not the newest."""
    newest, middle, oldest = (entry(START - datetime.timedelta(days=day)) for day in range(3))
    every = [newest, middle, oldest]
    keep = Keep(last=1)
    found = retention.plan(every, "nightly", "db", keep, datetime.UTC, now=NOW, made=[oldest.path])
    assert {each.entry.path: each.reasons for each in found if each.kept} == {
        newest.path: ("the newest good image", "last 1 of 1"),
        oldest.path: ("made by this run",),
    }


def test_images_of_others_are_not_looked_at() -> None:
    mine = [entry(START), entry(START + datetime.timedelta(days=1))]
    others = [
        entry(START + datetime.timedelta(days=2), guest="web"),
        entry(START + datetime.timedelta(days=3), by="weekly"),
        entry(START + datetime.timedelta(days=4), by=None),
    ]
    every = [*others, *mine]
    found = retention.plan(every, "nightly", "db", Keep(last=1), datetime.UTC, now=NOW)
    assert [(each.entry, each.kept) for each in found] == [(mine[1], True), (mine[0], False)]


ENTRIES = st.lists(
    st.builds(
        entry,
        st.datetimes(datetime.datetime(2026, 10, 20), datetime.datetime(2026, 10, 30)).map(
            lambda when: when.replace(tzinfo=datetime.UTC)
        )
        | st.none(),
        state=st.sampled_from(State),
        then=st.sampled_from(["quit", "resume", "leave"]),
        guest=st.sampled_from(["db", "db", "db", "web"]),
        by=st.sampled_from(["nightly", "nightly", "nightly", "weekly", None]),
        damaged=st.sampled_from([False, False, False, True]),
    ),
    max_size=25,
)
KEEPS = st.builds(Keep, *[st.integers(0, 4)] * 5)


@settings(max_examples=300, deadline=None)
@given(ENTRIES, KEEPS)
def test_the_only_good_image_is_never_removed(entries: list[store.Entry], keep: Keep) -> None:
    decisions = retention.plan(entries, "nightly", "db", keep, BERLIN, now=NOW)
    removed = [each.entry for each in decisions if not each.kept]
    mine = [each for each in entries if each.metadata["job"] == "nightly" and each.guest == "db"]
    good = [
        each
        for each in mine
        if each.error is None and each.state in ("saved", "restored") and "started" in each.metadata
    ]
    good.sort(key=lambda each: str(each.metadata["started"]), reverse=True)
    assert {each.entry.path for each in decisions} == {each.path for each in mine}
    saves = [
        str(each.metadata["started"])
        for each in entries
        if each.guest == "db" and each.state in ("saved", "restored") and "started" in each.metadata
    ]
    for gone in removed:
        assert gone in good
        is_guest = gone.state == "saved" and gone.metadata["then"] == "quit"
        assert not is_guest or str(gone.metadata["started"]) < max(saves)
    left = [each for each in good if each not in removed]
    assert bool(left) == bool(good)
    if good:
        newest = [each for each in good if each.metadata["started"] == good[0].metadata["started"]]
        assert any(each in left for each in newest)
    assert len(left) >= min(keep.last, len(good))
    # What is left is what the same rules keep.
    rest = [each for each in entries if each not in removed]
    again = retention.plan(rest, "nightly", "db", keep, BERLIN, now=NOW)
    assert all(each.kept for each in again)


@settings(max_examples=100, deadline=None)
@given(st.sets(st.integers(0, 500), min_size=1, max_size=30), st.integers(1, 10))
def test_last_keeps_as_many_as_it_says(minutes: set[int], last: int) -> None:
    entries = [entry(START + datetime.timedelta(minutes=each)) for each in minutes]
    assert len(plan(entries, last=last)) == min(last, len(minutes))


def put(site: cli.Site, name: str, day: int, *, state: int = build.SAVED, **facts: Any) -> Path:
    """Write a good image of the guest ``db``, saved by the job ``nightly`` on a day of March."""
    metadata = {
        "guest": {"name": "db"},
        "job": "nightly",
        "then": "resume",
        "started": f"2026-03-{day:02}T02:30:00.000+00:00",
        **facts,
    }
    made = build.Image(metadata=json.dumps(metadata).encode(), header={"state": state})
    made.built().write(site.images / name)
    return site.images / name


def write_job(site: cli.Site, **given: Any) -> Path:
    site.add_guest("db", site.directory / "nobody.qmp")
    return site.add_job("nightly", **{"guests": ["db"], **given})


def pruned(site: cli.Site, path: Path, **how: Any) -> list[dict[str, Any]]:
    """Prune in this process."""
    return asyncio.run(retention.prune(job.load(path), config.load(site.config, {}), **how))


def names(site: cli.Site) -> list[str]:
    return sorted(path.name for path in site.images.iterdir())


def test_prune_removes_what_is_not_kept(site: cli.Site) -> None:
    for day in range(1, 6):
        put(site, f"d{day}", day)
    put(site, "asleep", 1, then="quit")
    put(site, "by-hand", 1, job=None)
    (site.images / "notes.txt").write_text("mine")
    put(site, "half.partial", 7, state=build.PARTIAL)
    job_file = write_job(site, keep={"last": 2})
    told = site.run("job", "prune", job_file, "--dry-run", check=0).stdout.splitlines()
    assert told[0].split() == ["guest", "outcome", "image", "why"]
    assert told[1].split()[:3] == ["db", "kept", "d5"]
    assert told[3].split() == ["db", "would", "go", "d3", "-"]
    assert told[-1].startswith("job nightly: 3 kept, 4 would be removed (")
    everything = names(site)

    done = site.run("job", "prune", job_file, "--dry-run", "--json", check=0).json()
    assert names(site) == everything
    really = site.run("job", "prune", job_file, "--json", check=0).json()
    assert names(site) == ["by-hand", "d4", "d5", "half.partial", "notes.txt"]
    assert really == {**done, "dry_run": False}
    assert (done["job"], done["kept"], done["removed"], done["exit_code"]) == ("nightly", 3, 4, 0)
    lines = {Path(line["image"]).name: line for line in done["images"]}
    assert list(lines) == ["d5", "d4", "d3", "d2", "d1", "asleep", "half.partial"]
    assert lines["d3"]["reasons"] == []
    assert lines["d4"]["reasons"] == ["last 2 of 2"]
    assert (
        done["freed_bytes"]
        == sum(lines[name]["bytes"] for name in ("asleep", "d1", "d2", "d3"))
        > 0
    )
    again = site.run("job", "prune", job_file, "--json", check=0).json()
    assert (again["removed"], again["kept"]) == (0, 3)


def test_a_job_without_keep_keeps_everything(site: cli.Site) -> None:
    put(site, "d1", 1)
    put(site, "d2", 2)
    shown = site.run("job", "prune", write_job(site), check=0).stdout
    assert shown == "job nightly: keeps all its images, because it has no 'keep:'\n"
    assert names(site) == ["d1", "d2"]


def test_prune_before_there_are_images(site: cli.Site) -> None:
    job_file = write_job(site, keep={"last": 1})
    assert site.run("job", "prune", job_file, check=0).stdout == "job nightly: no images\n"
    site.images.rmdir()
    assert site.run("job", "prune", job_file, check=0).stdout == "job nightly: no images\n"
    assert not site.images.exists()


def test_an_image_in_use_is_passed_over(site: cli.Site) -> None:
    for day in (1, 2):
        put(site, f"d{day}", day)
    job_file = write_job(site, keep={"last": 1})
    with locks.held(site.state, "image", f"image:{uuid.UUID(bytes=build.UUID)}"):
        done = site.run("job", "prune", job_file, "--json", check=0).json()
    old = done["images"][1]
    assert (old["kept"], old["error"]) == (True, None)
    assert "in use: image" in old["reasons"][0]
    assert names(site) == ["d1", "d2"]
    site.run("job", "prune", job_file, check=0)
    assert names(site) == ["d2"]


def test_the_newest_is_read_before_others_are_removed(site: cli.Site) -> None:
    for day in (1, 2, 3):
        put(site, f"d{day}", day)
    with open(site.images / "d3", "r+b") as file:
        file.seek(build.M)
        file.write(b"JUNK")  # the stream; the superblock stays good
    lines = pruned(site, write_job(site, keep={"last": 1}))
    assert names(site) == ["d2", "d3"]
    assert [Path(line["image"]).name for line in lines] == ["d2", "d1", "d3"]
    assert lines[2]["reasons"][0].startswith("damaged, not counted: ")
    assert lines[2]["kept"]


def test_where_all_but_one_are_damaged_that_one_stays(site: cli.Site) -> None:
    for day in (1, 2, 3):
        put(site, f"d{day}", day)
        if day > 1:
            with open(site.images / f"d{day}", "r+b") as file:
                file.seek(build.M)
                file.write(b"JUNK")
    assert all(line["kept"] for line in pruned(site, write_job(site, keep={"last": 1})))
    assert names(site) == ["d1", "d2", "d3"]


def test_however_many_are_damaged_each_is_looked_at_once(
    site: cli.Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in range(1, 31):
        with open(put(site, f"d{day:02}", day), "r+b") as file:
            file.seek(build.M)
            file.write(b"JUNK")
    planned: list[int] = []
    real = retention.plan

    def counted(*given: Any, **more: Any) -> Any:
        planned.append(1)
        return real(*given, **more)

    monkeypatch.setattr(retention, "plan", counted)
    assert all(line["kept"] for line in pruned(site, write_job(site, keep={"last": 1})))
    assert len(planned) == 2


def test_an_image_that_has_taken_the_name_meanwhile_stays(
    site: cli.Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in (1, 2):
        put(site, f"d{day}", day)
    listed = store.each

    def then_replaced(held: store.Directory, *more: Any) -> list[store.Entry]:
        found = list(listed(held, *more))
        monkeypatch.setattr(build, "UUID", uuid.uuid4().bytes)
        put(site, "d1", 3)
        return found

    monkeypatch.setattr(store, "each", then_replaced)
    lines = pruned(site, write_job(site, keep={"last": 1}))
    assert lines[1]["reasons"] == ["another image has taken its name since"]
    assert names(site) == ["d1", "d2"]


def test_an_image_that_somebody_else_has_removed_is_no_error(
    site: cli.Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in (1, 2):
        put(site, f"d{day}", day)
    listed = store.each

    def then_removed(held: store.Directory, *more: Any) -> list[store.Entry]:
        found = list(listed(held, *more))
        (site.images / "d1").unlink()
        return found

    monkeypatch.setattr(store, "each", then_removed)
    lines = pruned(site, write_job(site, keep={"last": 1}))
    assert (lines[1]["kept"], lines[1]["error"]) == (False, None)


@pytest.mark.root
def test_what_cannot_be_removed_is_an_error(site: cli.Site) -> None:
    with storage.tmpfs(16 << 20, site.images) as place:
        site.settings["images"] = str(place)
        job_file = write_job(site, keep={"last": 1})
        for day in (1, 2):
            put(site, f"{place.name}/d{day}", day)
        with storage.read_only(place):
            done = site.run("job", "prune", job_file, "--json", check=3).json()
            shown = site.run("job", "prune", job_file, check=3).stdout
        assert len(list(place.iterdir())) == 2
    assert [line["kept"] for line in done["images"]] == [True, True]
    error = done["images"][1]["error"]
    assert error["id"] == "check.directory"
    assert error["message"].endswith("d1': Read-only file system")
    assert "FAILED" in shown


def test_guest_that_was_saved_later_is_not_in_an_older_image() -> None:
    """By any job, or by hand: it ran since, and what it was then is no use to anyone."""
    days = [START + datetime.timedelta(days=number) for number in range(4)]
    quit_images = [entry(days[0], then="quit"), entry(days[1], then="quit")]
    only = "the only copy of its guest: not restored since"

    def reasons(*more: store.Entry) -> dict[str, str]:
        return plan([*quit_images, entry(days[2]), *more], last=1)

    assert only not in str(reasons())
    last = entry(days[3], then="quit")
    assert plan([*quit_images, last], hourly=1) == {
        "2026-03-04T00:00": f"the newest good image, {only}, hourly 2026-03-04 00:00+0000"
    }
    by_hand = plan([*quit_images, entry(days[3], by=None)], last=1)
    assert by_hand == {"2026-03-02T00:00": "the newest good image, last 1 of 1"}
    for no_later in (
        entry(days[3], by=None, damaged=True),
        entry(days[3], by=None, guest="web"),
        entry(days[3], by=None, state=State.PARTIAL),
        entry(NOW + datetime.timedelta(days=1), by=None),
    ):
        assert only in plan([*quit_images, no_later], last=1)["2026-03-02T00:00"]


def test_memory_of_a_prune(site: cli.Site) -> None:
    """Bytes for each image: what Python has taken for tens of thousands it rarely gives back."""
    count = 400
    many.fill(site.images, count)
    guests = [f"guest{number:03d}" for number in range(many.GUESTS)]
    found = config.Config(images=site.images, state=site.state)
    of_many = job.Job(many.JOB, ("guest*",), keep=Keep(last=1))
    retention._prune(of_many, Keep(last=1), found, guests, [], True)  # caches are filled
    tracemalloc.start()
    try:
        lines = retention._prune(of_many, Keep(last=1), found, guests, [], True)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(lines) == count
    assert peak / count < 2000
