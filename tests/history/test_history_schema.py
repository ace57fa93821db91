"""Opening the history: a new one, an older one, a newer one, a damaged one, one out of reach."""

import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest
from mapsave import errors
from mapsave.history import history, rows, schema

from tests.history.records import locked, record

VERSION_1 = """
CREATE TABLE operations (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    guest TEXT,
    job TEXT,
    image TEXT,
    user TEXT NOT NULL,
    request TEXT NOT NULL,
    created REAL NOT NULL,
    started REAL,
    ended REAL,
    step TEXT,
    result TEXT,
    error TEXT
);
CREATE INDEX operations_state ON operations (state);
CREATE INDEX operations_kind ON operations (kind);
CREATE INDEX operations_guest ON operations (guest);
CREATE INDEX operations_job ON operations (job);
CREATE TABLE steps (
    number INTEGER PRIMARY KEY,
    operation INTEGER NOT NULL REFERENCES operations ON DELETE CASCADE,
    time REAL NOT NULL,
    step TEXT NOT NULL,
    data TEXT NOT NULL
);
CREATE INDEX steps_operation ON steps (operation);
CREATE TABLE runs (job TEXT PRIMARY KEY, time REAL NOT NULL) WITHOUT ROWID;
INSERT INTO operations VALUES
    (1, 'aaa', 'save', 'done', 'web01', 'nightly', '/images/a', 'root', '{"then": "quit"}',
     10.0, 11.0, 12.0, 'commit', '{"bytes": 5}', NULL),
    (2, 'bbb', 'restore', 'running', 'web01', NULL, NULL, 'root', '{}',
     20.0, 21.0, NULL, NULL, NULL, NULL);
INSERT INTO steps VALUES (1, 1, 11.5, 'migrate', '{"pid": 7}');
INSERT INTO runs VALUES ('nightly', 10.0);
PRAGMA user_version = 1;
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def execute(path: Path, script: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)


def version(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


def objects(path: Path) -> set[tuple[str, str]]:
    """Return kind and name of all that the database is made of."""
    with closing(sqlite3.connect(path)) as connection:
        return set(connection.execute("SELECT type, name FROM sqlite_schema"))


async def refused(path: Path) -> errors.MapsaveError:
    """Open a history that cannot be used, which stays as it is; return why it cannot."""
    before = path.read_bytes(), path.stat().st_mode
    with pytest.raises(errors.MapsaveError) as caught:
        async with history.opened(path):
            pass
    assert (path.read_bytes(), path.stat().st_mode) == before
    assert repr(str(path)) in caught.value.message
    return caught.value


async def test_new_history_is_private(path: Path) -> None:
    before = os.umask(0)
    try:
        async with history.opened(path) as opened:
            await opened.begin(record())
            modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(("journal.db", "journal.db-wal", "journal.db-shm"), 0o600)
    assert version(path) == len(schema.MIGRATIONS)


async def test_a_history_that_others_could_read_is_closed_to_them(path: Path) -> None:
    path.touch()
    path.chmod(0o644)
    async with history.opened(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_a_history_of_version_1_is_migrated(path: Path) -> None:
    execute(path, VERSION_1)
    async with history.opened(path) as opened:
        assert version(path) == 3
        first, second = (await opened.find())[::-1]
        assert first == history.Record(
            id="aaa",
            kind="save",
            state="done",
            guest="web01",
            job="nightly",
            parent=None,
            image="/images/a",
            user="root",
            request={"then": "quit"},
            created=10.0,
            started=11.0,
            ended=12.0,
            step="commit",
            result={"bytes": 5},
        )
        assert await opened.steps("aaa") == [history.Step(11.5, "migrate", {"pid": 7})]
        assert await opened.unfinished() == [second]
        assert await opened.last_run("nightly") == 10.0
        assert await opened.last_successes() == [("web01", "nightly", 12.0)]
        new = record(parent="bbb")
        await opened.begin(new)
        assert await opened.find(parent="bbb") == [new]
        assert await opened.prune(100.0) == 1
    fresh = path.with_name("fresh.db")
    async with history.opened(fresh):
        pass
    assert objects(path) == objects(fresh)
    assert ("index", "operations_parent") in objects(path)


async def test_version_1_was_as_this_test_says(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A migration that was released is never changed."""
    execute(path, VERSION_1)
    made = path.with_name("made.db")
    monkeypatch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:1])
    with schema.writing(made):
        pass
    words = "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY name"
    found = []
    for each in (path, made):
        with closing(sqlite3.connect(each)) as connection:
            rows = connection.execute(words).fetchall()
            found.append([[" ".join(str(word).split()) for word in row] for row in rows])
    assert found[0] == found[1]


async def test_a_migration_that_fails_is_undone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(path, VERSION_1)
    first, second, _ = schema.MIGRATIONS
    broken = (*second, "CREATE INDEX broken ON operations (nosuch)")
    before = objects(path)
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (first, broken))
        with pytest.raises(errors.Refused, match="nosuch"):
            async with history.opened(path):
                pass
    assert (objects(path), version(path)) == (before, 1)
    async with history.opened(path) as opened:
        assert len(await opened.find()) == 2


async def test_a_history_of_a_newer_version_is_left_alone(path: Path) -> None:
    execute(path, f"{VERSION_1}; PRAGMA user_version = 77")
    path.chmod(0o640)
    error = await refused(path)
    assert isinstance(error, errors.Unsupported)
    assert "version 77" in error.message
    assert "newer mapsave" in error.message
    assert error.hint


@pytest.mark.parametrize("content", [b"hello", b"no database" * 5000])
async def test_no_database(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    error = await refused(path)
    assert isinstance(error, errors.Refused)
    assert "not a database" in error.message
    assert "move it" in str(error.hint)


@pytest.mark.parametrize("damage", ["page", "truncated"])
async def test_damaged_in_the_middle(path: Path, damage: str) -> None:
    async with history.opened(path) as opened:
        for _ in range(300):
            opened.step("nosuch", "begin", {})
        for _ in range(100):
            await opened.begin(record(request={"text": "x" * 1000}))
    content = bytearray(path.read_bytes())
    assert len(content) > 20 * 4096
    if damage == "page":
        content[4096 * 5 : 4096 * 12] = b"\xa5" * (4096 * 7)
        path.write_bytes(content)
    else:
        path.write_bytes(content[: len(content) // 2])
    error = await refused(path)
    assert isinstance(error, errors.Refused)
    assert "move it" in str(error.hint)


async def test_a_damaged_row_is_named_when_it_is_read(path: Path) -> None:
    async with history.opened(path) as opened:
        await opened.begin(record())
        execute(path, "UPDATE operations SET request = '{'")
        with pytest.raises(errors.Refused, match=r"cannot read the history .*journal\.db"):
            await opened.find()


async def test_a_directory_is_no_history(path: Path) -> None:
    path.mkdir()
    with pytest.raises(errors.Refused, match=r"journal\.db"):
        async with history.opened(path):
            pass
    assert path.is_dir()


async def test_no_directory_for_it(path: Path) -> None:
    path.parent.joinpath("file").touch()
    with pytest.raises(errors.ConfigMissing, match="state directory"):
        async with history.opened(path.parent / "file" / "journal.db"):
            pass


async def test_somebody_else_holds_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "_LOCK_TIMEOUT", 0.05)
    async with history.opened(path) as opened:
        with locked(path), pytest.raises(errors.Refused, match="locked") as caught:
            await opened.begin(record())
        assert "another program" in str(caught.value.hint)
        await opened.begin(record())


async def test_odd_path(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"a?b#c%20 \xff") / "journal.db"
    async with history.opened(path) as opened:
        await opened.begin(record())
    assert list(tmp_path.iterdir()) == [path.parent]
    assert [each.name for each in path.parent.iterdir()] == ["journal.db"]
    with schema.reading(path) as connection:
        assert connection.execute(*rows.number(record().id)).fetchone() is None
