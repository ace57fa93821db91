"""The database of the history: its tables, how older ones become the present ones, its opening.

``PRAGMA user_version`` is the number of the last migration that was applied. A database is looked
at by a reading connection first: one that we cannot use is left as it was.
"""

import contextlib
import errno
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from mapsave import errors
from mapsave.history import rows
from mapsave.operations import locks

_LOCK_TIMEOUT = 10.0  # seconds: other tools may read the database
_WAL_BYTES = 4 << 20  # what the write-ahead log is cut to, after it had to grow
_CACHE_KIB = 512  # of each connection, for as long as the service runs; SQLite has 2000

_FIRST = (
    """CREATE TABLE operations (
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
    )""",
    "CREATE INDEX operations_state ON operations (state)",
    "CREATE INDEX operations_kind ON operations (kind)",
    "CREATE INDEX operations_guest ON operations (guest)",
    "CREATE INDEX operations_job ON operations (job)",
    """CREATE TABLE steps (
        number INTEGER PRIMARY KEY,
        operation INTEGER NOT NULL REFERENCES operations ON DELETE CASCADE,
        time REAL NOT NULL,
        step TEXT NOT NULL,
        data TEXT NOT NULL
    )""",
    "CREATE INDEX steps_operation ON steps (operation)",
    "CREATE TABLE runs (job TEXT PRIMARY KEY, time REAL NOT NULL) WITHOUT ROWID",
)
_PARTS_OF_OTHERS = (
    "ALTER TABLE operations ADD COLUMN parent TEXT",
    "CREATE INDEX operations_parent ON operations (parent)",
    "CREATE INDEX operations_ended ON operations (ended)",
    """CREATE INDEX operations_saved ON operations (guest, job, ended)
        WHERE kind = 'save' AND state = 'done'""",
)
_COURSES = (
    """CREATE TABLE courses (
        operation INTEGER PRIMARY KEY REFERENCES operations ON DELETE CASCADE,
        samples TEXT NOT NULL
    )""",
)
_QUERIES = (
    "SELECT number, id, kind, state, guest, job, image, user, request, created, started, ended,"
    " step, result, error, parent FROM operations LIMIT 1",
    "SELECT number, operation, time, step, data FROM steps LIMIT 1",
    "SELECT job, time FROM runs LIMIT 1",
    "SELECT operation, samples FROM courses LIMIT 1",
)
_NO_ROOM = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
_LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_SPACE_HINT = "free some space there, or set 'state:' in the configuration"
# Never change one that was released: append another.
MIGRATIONS = (_FIRST, _PARTS_OF_OTHERS, _COURSES)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[sqlite3.Connection]:
    """Yield the connection that writes; the database is made, or migrated, if it must be.

    It is durable: a transaction is on stable storage when COMMIT returns (sqlite.org/pragma.html,
    synchronous=FULL). Any thread may use it, one at a time. Raises Unsupported for a database of a
    newer mapsave, Refused for one that is damaged or cannot be written, NotPermitted.
    """
    locks.state_directory(path.parent, ".")
    with contextlib.ExitStack() as stack:
        with _explained(path):
            if not _made(path):
                _examine(path)
                path.chmod(0o600)  # the files beside it get the same mode from SQLite
            connection = stack.enter_context(_connected(path, "rw"))
            _settle(connection, path)
            _migrate(connection)
        yield connection


@contextlib.contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Yield a connection that reads the database, which must be there, and waits for no writer.

    Any thread may use it, one at a time. Raises Refused where it cannot be opened.
    """
    with contextlib.ExitStack() as stack:
        with _explained(path):
            connection = stack.enter_context(_connected(path, "ro"))
            _version(connection)  # SQLite opens a file when it must look into it
        yield connection


def failure(path: Path, doing: str, error: Exception) -> errors.Refused:
    """Return the error that says what SQLite said, and what to do; ``doing`` is a verb."""
    code = getattr(error, "sqlite_errorcode", None)
    primary = code & 0xFF if code is not None else None  # sqlite.org/rescode.html
    if primary in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT) or isinstance(error, ValueError):
        hint = "move it and its -wal file away; only the history is lost, no guest and no image"
    elif primary in _NO_ROOM:
        hint = _SPACE_HINT
    elif primary in _LOCKED:
        hint = "another program has locked it; find it with fuser(1)"
    else:
        hint = None
    # What is no fault of the file: it is good, and of use once that has passed.
    return errors.Refused(
        f"cannot {doing} the history {str(path)!r}: {error}",
        hint=hint,
        **({"may_pass": True} if primary in (*_NO_ROOM, *_LOCKED) else {}),
    )


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    doing = f"open the history {str(path)!r}"
    try:
        with locks.state_errors(doing, path, failure=errors.Refused, hint=_SPACE_HINT):
            yield
    except sqlite3.Error as error:
        raise failure(path, "open", error) from None


def _made(path: Path) -> bool:
    """Make an empty database if there is none; return whether it was made."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        if not os.access(path, os.R_OK | os.W_OK):  # which SQLite does not distinguish from others
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from None
        return False
    # SQLite syncs the directory for its log, but not for the database.
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return True


def _examine(path: Path) -> None:
    """Raise unless the database is whole, and of a version that we know."""
    with _connected(path, "ro") as connection:
        version = _version(connection)
        if version > len(MIGRATIONS):
            raise errors.Unsupported(
                f"the history {str(path)!r} has version {version}, from a newer mapsave; this "
                f"one supports versions up to {len(MIGRATIONS)}",
                hint="install that version again, or move the file away to start a new one",
            )
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise failure(path, "open", ValueError(f"it is damaged: {found}"))
        if version == len(MIGRATIONS):
            for query in _QUERIES:  # tables may be missing, or be another program's
                connection.execute(query).fetchone()


@contextlib.contextmanager
def _connected(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=_LOCK_TIMEOUT,
        isolation_level=None,  # transactions are ours to begin
        check_same_thread=False,
        # One that is kept holds what was bound to it last, be it a result of megabytes.
        cached_statements=0,
    )
    try:
        connection.text_factory = rows.from_text
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        yield connection
    finally:
        connection.close()


def _settle(connection: sqlite3.Connection, path: Path) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise errors.Refused(
            f"the file system of the history {str(path)!r} does not support a write-ahead log",
            hint="set 'state:' in the configuration to a directory on a local disk",
        )
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")


def _migrate(connection: sqlite3.Connection) -> None:
    version = _version(connection)
    for number, statements in enumerate(MIGRATIONS[version:], version + 1):
        with transaction(connection):
            for statement in statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number}")


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Do all of what is inside, durably, or nothing of it. Raises sqlite3.Error."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk may have ended it already
            connection.execute("ROLLBACK")
        raise


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)
