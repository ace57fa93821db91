"""The history of the service: in order, on stable storage, found again, and read in the
meantime."""

import asyncio
import dataclasses
import itertools
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from mapsave import errors
from mapsave.history import history, rows, schema
from mapsave.history.history import History, Record

from tests.history.records import locked, record
from tests.kit import processes, storage, wait

ODD = b"\xff\xfe'\n-latin-\xfc".decode("utf-8", "surrogateescape")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal.db"


def threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("history")]


async def writer_is_waiting(opened: History) -> None:
    """Wait until the writer has taken what was queued; only a lock keeps it then."""
    await asyncio.to_thread(wait.until, opened._writer._queue.empty, what="an empty queue")
    await asyncio.sleep(0.02)


# What goes in comes out.


async def test_life_of_an_operation(path: Path) -> None:
    new = record(job="nightly", parent="abc", request={"image": "ü", "deep": [1, None]})
    async with history.opened(path) as opened:
        await opened.begin(new)
        assert await opened.get(new.id) == new
        await opened.change(new.id, state="running", started=1001.5, image="/images/a")
        before = time.time()
        opened.step(new.id, "begin", {"pid": 7})
        opened.step(new.id, "migrate", {})
        await opened.end(new.id, "done", result={"bytes": 5})
    async with history.opened(path) as opened:
        found = await opened.get(new.id)
        steps = await opened.steps(new.id)
    assert found is not None
    assert found.ended is not None and before <= found.ended <= time.time()
    assert found == dataclasses.replace(
        new,
        state="done",
        started=1001.5,
        image="/images/a",
        step="migrate",
        result={"bytes": 5},
        ended=found.ended,
    )
    assert [(each.step, each.data) for each in steps] == [("begin", {"pid": 7}), ("migrate", {})]
    assert before <= steps[0].time <= steps[1].time <= found.ended
    assert found.as_dict()["request"] == {"image": "ü", "deep": [1, None]}
    assert list(found.as_dict()) == [*rows.COLUMNS, "progress", "revision"]


async def test_names_that_are_no_utf8(path: Path) -> None:
    new = record(guest=ODD, job="\ud800", image="/images/" + ODD, request={"image": ODD})
    async with history.opened(path) as opened:
        await opened.begin(new)
        opened.step(new.id, "begin", {"name": ODD})
        await opened.ran("\ud800", 5.0)
        assert await opened.find(guest=ODD, job="\ud800") == [
            dataclasses.replace(new, step="begin")
        ]
        assert [each.data for each in await opened.steps(new.id)] == [{"name": ODD}]
        assert await opened.last_run("\ud800") == 5.0
        assert await opened.get(ODD) is None
        assert await opened.named(ODD) == []


async def test_a_large_result_holds_up_nothing_else(path: Path) -> None:
    """Its tens of thousands of lines are made text of in the thread that writes them, once."""
    by: list[str] = []

    class Line:
        def __str__(self) -> str:
            by.append(threading.current_thread().name)
            return "line"

        def __repr__(self) -> str:
            raise AssertionError

    new = record()
    async with history.opened(path) as opened:
        await opened.begin(new)
        await opened.end(new.id, "done", result={"removed": [Line()]})
        found = await opened.get(new.id)
    assert found is not None and found.result == {"removed": ["line"]}
    assert by and all(each.startswith("history") for each in by)


async def test_an_outcome_is_entered_once(path: Path) -> None:
    new = record()
    async with history.opened(path) as opened:
        await opened.begin(new)
        await opened.end(new.id, "failed", error={"id": "save.failed"})
        with pytest.raises(errors.UnknownOperation, match="is in progress"):
            await opened.end(new.id, "done")
        with pytest.raises(errors.UnknownOperation, match="is in progress"):
            await opened.change(new.id, state="running")
        with pytest.raises(errors.UnknownOperation):
            await opened.change("f" * 12, state="running")
        found = await opened.get(new.id)
        assert found is not None
        assert (found.state, found.error) == ("failed", {"id": "save.failed"})


async def test_what_is_no_state_and_no_field(path: Path) -> None:
    new = record()
    async with history.opened(path) as opened:
        await opened.begin(new)
        with pytest.raises(ValueError, match="running"):
            await opened.end(new.id, "running")
        for fields in ({"id": "x"}, {"ended": 5.0}, {"state = 'done' --": 1}, {}):
            with pytest.raises(TypeError, match="cannot change"):
                await opened.change(new.id, **fields)
        with pytest.raises(ValueError, match="limit"):
            await opened.find(limit=0)
        assert await opened.get(new.id) == new


async def test_when_jobs_ran(path: Path) -> None:
    async with history.opened(path) as opened:
        assert await opened.last_run("nightly") is None
        await opened.ran("nightly", 1000.5)
        await opened.ran("weekly", 5.0)
        await opened.ran("nightly", 2000.5)
    async with history.opened(path) as opened:
        assert await opened.last_run("nightly") == 2000.5
        assert await opened.last_run("weekly") == 5.0


async def test_find_filters_and_pages(path: Path) -> None:
    new = [
        record(
            kind="save" if number % 2 else "restore",
            guest=f"web{number % 3}",
            job="nightly" if number % 5 == 0 else None,
            parent="abc" if number % 4 == 0 else None,
            created=1000.0 - number,  # a clock that went backwards does not change the order
        )
        for number in range(60)
    ]
    async with history.opened(path) as opened:
        await asyncio.gather(*(opened.begin(each) for each in new))
        await asyncio.gather(*(opened.end(each.id, "done") for each in new[:20]))
        ids = [each.id for each in reversed(new)]
        assert [each.id for each in await opened.find()] == ids

        async def found(**wanted: str) -> list[str]:
            return [each.id for each in await opened.find(**wanted)]

        def those(column: str, value: str) -> list[str]:
            return [each.id for each in reversed(new) if getattr(each, column) == value]

        assert await found(kind="restore") == those("kind", "restore")
        assert await found(guest="web2") == those("guest", "web2")
        assert await found(job="nightly") == those("job", "nightly")
        assert await found(parent="abc") == those("parent", "abc")
        assert await found(state="done") == ids[40:]
        both = [each for each in those("guest", "web1") if each in those("kind", "save")]
        assert await found(guest="web1", kind="save") == both
        assert await found(guest="nobody") == []
        assert [each.id for each in await opened.unfinished()] == ids[:40][::-1]

        pages: list[str] = []
        while page := await opened.find(kind="save", limit=7, before=pages[-1] if pages else None):
            pages += [each.id for each in page]
            assert len(page) <= 7
        assert pages == those("kind", "save")
        with pytest.raises(errors.UnknownOperation, match="continue from"):
            await opened.find(before="nosuch")


async def test_ids_by_their_beginning(path: Path) -> None:
    ids = [f"ab{number:010x}" for number in range(15)]
    async with history.opened(path) as opened:
        for each in ["abffffffffff", "acffffffffff", *ids]:
            await opened.begin(record(id=each))
        assert await opened.named("ac") == ["acffffffffff"]
        assert await opened.named("acffffffffff") == ["acffffffffff"]
        assert await opened.named("abf") == ["abffffffffff"]
        assert await opened.named("ab") == ids[:10]
        for none in ("ad", "%", "a*", "acfffffffffff", "AC"):
            assert await opened.named(none) == []


async def test_last_successes(path: Path) -> None:
    async with history.opened(path) as opened:
        for ended, fields in [
            (10.0, {"job": "nightly"}),
            (30.0, {"job": "nightly"}),
            (20.0, {"job": "nightly"}),
            (99.0, {"job": "nightly", "state": "failed"}),
            (99.0, {"job": "nightly", "kind": "restore"}),
            (99.0, {"job": "nightly", "guest": None}),
            (15.0, {}),
            (12.0, {"guest": "db01"}),
        ]:
            await opened.begin(record(**{"state": "done", "ended": ended, **fields}))
        assert set(await opened.last_successes()) == {
            ("web01", "nightly", 30.0),
            ("web01", None, 15.0),
            ("db01", None, 12.0),
        }


async def test_no_look_up_reads_the_whole_table(path: Path) -> None:
    """A page of 10,000 operations comes by an index and unsorted: its time does not grow."""
    columns = ("state", "kind", "guest", "job", "parent")
    queries = [
        rows.find(dict.fromkeys(chosen, "x"), 100, **below)
        for filters in range(len(columns) + 1)
        for chosen in itertools.combinations(columns, filters)
        for below in ({}, {"below": 5000})
    ]
    queries += [
        *(rows.get("x"), rows.number("x"), rows.named("x", 10)),
        *(rows.steps("x"), rows.unfinished(), rows.removal(5.0, 10)),
        rows.last_successes(),
    ]
    async with history.opened(path) as opened:
        await asyncio.gather(*(opened.begin(record()) for _ in range(10_000)))
        assert len(await opened.find(limit=100)) == 100
    with schema.reading(path) as connection:
        for query in queries:
            plan = connection.execute(f"EXPLAIN QUERY PLAN {query.sql}", query.values).fetchall()
            words = [line[3] for line in plan]
            assert words
            assert not [each for each in words if "TEMP B-TREE" in each], (query, words)
            full = [each for each in words if each.startswith("SCAN") and "INDEX" not in each]
            assert not full, (query, words)


async def test_prune(path: Path) -> None:
    old = [record(state="done", ended=float(number)) for number in range(1200)]
    kept = [record(state="running"), record(state="failed", ended=1200.0)]
    async with history.opened(path) as opened:
        await asyncio.gather(*(opened.begin(each) for each in [*old, *kept]))
        opened.step(old[0].id, "begin", {})
        opened.step(kept[0].id, "begin", {})
        assert await opened.prune(1200.0) == 1200
        assert await opened.prune(1200.0) == 0
        assert {each.id for each in await opened.find(limit=2000)} == {each.id for each in kept}
        assert len(await opened.steps(kept[0].id)) == 1
    with schema.reading(path) as connection:
        assert connection.execute("SELECT count(*) FROM steps").fetchone() == (1,)


# Order, durability, side by side.


async def test_steps_keep_their_order_under_load(path: Path) -> None:
    new = [record() for _ in range(40)]
    names = [f"step-{number}" for number in range(50)]

    async def one(opened: History, each: Record) -> None:
        await opened.begin(each)
        for number, name in enumerate(names):
            opened.step(each.id, name, {"number": number})
            if number % 10 == 0:
                await opened.change(each.id, state="running")
        await opened.end(each.id, "done")
        assert [step.step for step in await opened.steps(each.id)] == names

    async with history.opened(path) as opened, asyncio.TaskGroup() as group:
        for each in new:
            group.create_task(one(opened, each))
    async with history.opened(path) as opened:
        for each in new:
            steps = await opened.steps(each.id)
            assert [step.data["number"] for step in steps] == list(range(50))
            assert sorted(step.time for step in steps) == [step.time for step in steps]
        assert await opened.unfinished() == []


_KILLED = """
import asyncio, sys
from pathlib import Path
from mapsave.history import history

async def main():
    async with history.opened(Path(sys.argv[1])) as opened:
        for number in range(200):
            id = f"{number:012x}"
            await opened.begin(history.Record(
                id, "save", "pending", "web01", None, None, None, "root", {}, 1.0))
            opened.step(id, "begin", {})
            opened.step(id, "migrate", {})
            await opened.end(id, "done") if number % 2 else None
            print(id, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_what_has_begun_outlives_the_process(path: Path) -> None:
    with processes.running(
        [sys.executable, "-c", _KILLED, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for _ in range(60):
            last = process.stdout.readline().strip()
        process.kill()
        rest = process.stdout.read().split()
    number = int((rest or [last])[-1], 16)
    async with history.opened(path) as opened:
        for each in range(number + 1):
            found = await opened.get(f"{each:012x}")
            assert found is not None
            assert found.state == ("done" if each % 2 else "pending")
            if each % 2:
                assert [s.step for s in await opened.steps(found.id)] == ["begin", "migrate"]
        assert len(await opened.unfinished()) >= number // 2
        await opened.begin(record(id="afterwards"))


def test_each_commit_is_synced(path: Path) -> None:
    with schema.writing(path) as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_reading_waits_for_no_writer_and_begin_for_its_commit(path: Path) -> None:
    first, second = record(), record()
    async with history.opened(path) as opened:
        await opened.begin(first)
        with locked(path):
            begin = asyncio.create_task(opened.begin(second))
            opened.step(first.id, "begin", {})
            await writer_is_waiting(opened)
            for _ in range(20):
                assert await opened.find() == [first]
            assert not begin.done()
        await begin
        assert [each.id for each in await opened.find()] == [second.id, first.id]


async def test_many_readers_while_others_write(path: Path) -> None:
    async with history.opened(path) as opened:
        new = [record() for _ in range(100)]
        writers = [asyncio.create_task(opened.begin(each)) for each in new]
        sizes = await asyncio.gather(*(_size(opened) for _ in range(100)))
        await asyncio.gather(*writers)
        assert sizes == sorted(sizes), "what was seen once is seen ever after"
        assert await _size(opened) == 100


async def _size(opened: History) -> int:
    return len(await opened.find(limit=1000))


async def test_a_failed_write_costs_no_other_theirs(path: Path) -> None:
    """All of these come into one transaction."""
    first, good, also = record(), record(), record()
    async with history.opened(path) as opened:
        await opened.begin(first)
        with locked(path):
            waits = asyncio.create_task(opened.begin(record()))
            await writer_is_waiting(opened)
            tasks = [asyncio.create_task(opened.begin(each)) for each in (good, first, also)]
            tasks.append(asyncio.create_task(opened.end("nosuch", "done")))
            await asyncio.sleep(0)
        await waits
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(each) for each in results] == [
            *(type(None), errors.Refused, type(None), errors.UnknownOperation)
        ]
        assert await opened.get(good.id) == good
        assert await opened.get(also.id) == also


# Cancellation and the end.


@pytest.mark.parametrize("queued", [True, False], ids=["queued", "being written"])
async def test_a_cancelled_begin_did_not_begin(path: Path, queued: bool) -> None:
    new, other = record(), record()
    async with history.opened(path) as opened:
        with locked(path):
            ahead = asyncio.create_task(opened.begin(other))
            if queued:
                await writer_is_waiting(opened)
            begin = asyncio.create_task(opened.begin(new))
            await asyncio.sleep(0)
            if not queued:
                await writer_is_waiting(opened)
            begin.cancel()
            with pytest.raises(asyncio.CancelledError):
                await begin
        await ahead
        await opened.begin(record())
        assert await opened.get(new.id) is None
        assert await opened.get(other.id) == other


async def test_a_cancelled_end_is_entered(path: Path) -> None:
    new = record()
    async with history.opened(path) as opened:
        await opened.begin(new)
        with locked(path):
            end = asyncio.create_task(opened.end(new.id, "done"))
            await asyncio.sleep(0)
            end.cancel()
            with pytest.raises(asyncio.CancelledError):
                await end
    async with history.opened(path) as opened:
        found = await opened.get(new.id)
        assert found is not None and found.state == "done"


async def test_what_is_queued_is_written_before_the_end(path: Path) -> None:
    new = record()
    async with history.opened(path) as opened:
        await opened.begin(new)
        for number in range(2000):
            opened.step(new.id, "step", {"number": number})
    assert threads() == []
    with schema.reading(path) as connection:
        assert connection.execute("SELECT count(*) FROM steps").fetchone() == (2000,)


async def test_threads_go_on_every_way_out(path: Path) -> None:
    with pytest.raises(RuntimeError, match="broken"):
        async with history.opened(path):
            assert len(threads()) == 2
            raise RuntimeError("broken")
    assert threads() == []

    inside = asyncio.Event()

    async def stay() -> None:
        async with history.opened(path) as opened:
            opened.step("nosuch", "begin", {})
            inside.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(stay())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert threads() == []

    for turns in range(4):  # cancelled while it is opened
        task = asyncio.create_task(stay())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert threads() == []

    path.write_bytes(b"no database" * 1000)
    with pytest.raises(errors.Refused):
        async with history.opened(path):
            pass
    assert threads() == []


async def test_a_closed_history(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with history.opened(path) as opened:
        pass
    with pytest.raises(errors.ServiceStopping):
        await opened.begin(record())
    with pytest.raises(errors.ServiceStopping):
        await opened.find()
    opened.step("abc", "migrate", {"pid": 12})
    assert "could not record step 'migrate' of operation abc, with {\"pid\": 12}" in caplog.text


async def test_a_step_of_no_operation_is_logged(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with history.opened(path) as opened:
        opened.step("nosuch", "migrate", {"pid": 12})
    assert "could not record step 'migrate' of operation nosuch, with {\"pid\": 12}" in caplog.text


@pytest.mark.root
async def test_full_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with storage.tmpfs(2 << 20, tmp_path) as place:
        path = place / "state" / "journal.db"
        running, large = record(), {"text": "x" * 10_000}
        async with history.opened(path) as opened:
            await opened.begin(running)
            with storage.filled(place, leave=0):
                refused = record(request=large)
                with pytest.raises(errors.Refused, match="full") as caught:
                    await opened.begin(refused)
                assert str(path) in caught.value.message
                assert "free some space" in str(caught.value.hint)
                opened.step(running.id, "migrate", large)
                with pytest.raises(errors.Refused, match="full"):
                    await opened.end(running.id, "done", result=large)
                assert f"could not record step 'migrate' of operation {running.id}" in caplog.text
                assert "xxx" in caplog.text
                assert await opened.find() == [running]
            # There is room again: all goes on.
            opened.step(running.id, "commit", large)
            await opened.end(running.id, "done", result=large)
            assert [each.step for each in await opened.steps(running.id)] == ["commit"]
            assert await opened.get(refused.id) is None


async def test_size(path: Path) -> None:
    async with history.opened(path) as opened:
        before = opened.size_bytes()
        await opened.begin(record(request={"text": "x" * 100_000}))
        assert opened.size_bytes() >= before + 100_000
        files = [path, path.with_name("journal.db-wal")]
        assert opened.size_bytes() == sum(each.stat().st_size for each in files)
    assert opened.size_bytes() == path.stat().st_size
