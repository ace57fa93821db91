"""Connect to the database of a fleet, and say clearly why that fails.

The libraries are imported by what needs them: ``mapsave --help`` does without.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

from mapsave import database_settings, errors
from mapsave.database_settings import Database
from mapsave.fleet import libraries, naming

if TYPE_CHECKING:
    import psycopg

# By its name: psycopg is not loaded for it.
Connection: TypeAlias = "psycopg.AsyncConnection[dict[str, Any]]"

LEAST = 140000  # PostgreSQL 14, as server_version_num has it
VERSION = 1  # of our schema
CONNECT_TIMEOUT = 10  # seconds, for each address of the server
# Milliseconds. A server that is cut off is found dead within half a minute (libpq's keepalives).
_TCP = {
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "25000",
}


def parameters(database: Database, purpose: str) -> dict[str, str]:
    """Return libpq's parameters for a connection, ``purpose`` shown by the server.

    Raises ConfigError, ConfigMissing, NotPermitted, and Unsupported without the libraries.
    """
    libraries.check()
    from psycopg import conninfo

    text = database_settings.text_of(database)
    try:
        found = {key: str(value) for key, value in conninfo.conninfo_to_dict(text).items()}
    except Exception:
        # Its message would quote what may be a password.
        raise errors.ConfigError("the connection string of the fleet's database is wrong") from None
    over_tcp = not all(
        host.startswith(("/", "@")) for host in found.get("host", "/").split(",")
    ) or bool(found.get("hostaddr"))
    files = {"sslrootcert": database.ca, "sslcert": database.certificate, "sslkey": database.key}
    tls = {key: str(path) for key, path in files.items() if path is not None}
    if over_tcp:
        tls["sslmode"] = database.tls
        if database.tls == "verify-full" and database.ca is None:
            tls["sslrootcert"] = "system"
    options = f"{found.pop('options', '')} -c search_path={naming.SCHEMA}".strip()
    return {
        "connect_timeout": str(CONNECT_TIMEOUT),
        **_TCP,
        **found,
        **tls,
        "options": options,
        "application_name": f"mapsave {purpose}",
    }


@contextlib.asynccontextmanager
async def connected(
    database: Database, purpose: str, *, with_schema: bool = True
) -> AsyncIterator[Connection]:
    """Yield a connection that commits each statement, rows as dicts, in the schema of the fleet.

    Raises what ``parameters`` does, FleetUnreachable, FleetDenied, and FleetSchema unless the
    schema is ours (``with_schema``); Unsupported where PostgreSQL is too old.
    """
    connection = await connect(database, purpose, with_schema=with_schema)
    try:
        with explained():
            yield connection
    finally:
        await connection.close()


async def connect(database: Database, purpose: str, *, with_schema: bool = True) -> Connection:
    """Return a connection as ``connected`` yields it, which the caller closes."""
    arguments = parameters(database, purpose)
    import psycopg
    from psycopg.rows import dict_row

    with explained():
        connection = await psycopg.AsyncConnection.connect(
            **arguments,  # type: ignore[arg-type]  # libpq takes all of its parameters as text
            autocommit=True,
            row_factory=dict_row,
        )
        try:
            await check(connection, with_schema=with_schema)
        except BaseException:
            await connection.close()
            raise
    return connection


async def check(connection: Connection, *, with_schema: bool = True) -> None:
    """Raise Unsupported where PostgreSQL is too old, FleetSchema unless the schema is ours."""
    if connection.info.server_version < LEAST:
        raise errors.Unsupported(
            f"PostgreSQL {_version(connection.info.server_version)} is too old for a fleet",
            hint=f"it takes {_version(LEAST)} or later",
        )
    if not with_schema:
        return
    check_version(await _version_of_schema(connection), connection.info.dbname)


def check_version(version: int, name: str) -> None:
    """Raise FleetSchema unless ``version``, of the schema in the database ``name``, is ours."""
    if version < VERSION:
        raise errors.FleetSchema(
            f"the fleet in the database {name!r} is of an older mapsave (schema {version})",
            hint=f"upgrade it to schema {VERSION} with 'mapsave fleet migrate'",
        )
    if version > VERSION:
        raise errors.FleetSchema(
            f"the fleet in the database {name!r} is of a newer mapsave (schema {version}); this "
            f"one knows schema {VERSION}",
            hint="upgrade mapsave here",
        )


async def _version_of_schema(connection: Connection) -> int:
    import psycopg

    try:
        cursor = await connection.execute(f"SELECT {naming.SCHEMA}.schema_version() AS version")
    except (psycopg.errors.InvalidSchemaName, psycopg.errors.UndefinedFunction):
        raise errors.FleetSchema(
            f"the database {connection.info.dbname!r} has no fleet",
            hint="make one with 'mapsave fleet init', or name another database",
        ) from None
    except psycopg.errors.InsufficientPrivilege:
        raise errors.FleetDenied(
            f"the role {connection.info.user!r} is not one of the fleet in the database "
            f"{connection.info.dbname!r}",
            hint="make it with 'mapsave fleet host add' or 'mapsave fleet operator add'",
        ) from None
    row = await cursor.fetchone()
    assert row is not None
    return int(row["version"])


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Raise ours in place of errors of psycopg and Procrastinate: see ``error_of``."""
    import psycopg

    try:
        yield
    except psycopg.Error as error:
        raise error_of(error) from error
    except Exception as error:
        # Who did not import it has none of its errors: it takes longer to load than a query.
        exceptions = sys.modules.get("procrastinate.exceptions")
        if exceptions is None or not isinstance(error, exceptions.ConnectorException):
            raise
        cause = error.__cause__
        raise error_of(cause if isinstance(cause, psycopg.Error) else error) from error


def error_of(error: Exception) -> errors.MapsaveError:
    """Return FleetUnreachable, FleetDenied, FleetSchema or, of a bug, MapsaveError."""
    import psycopg

    state = str(getattr(error, "sqlstate", None) or "")
    words = " ".join(str(error).split())
    # SQLSTATE: PostgreSQL's documentation, appendix A. While connecting there is none, only text.
    refusals = (
        "authentication failed",
        "no pg_hba.conf entry",
        "permission denied for database",
        "is not permitted to log in",
    )
    if state[:2] == "28" or state == "42501" or any(each in words for each in refusals):
        return errors.FleetDenied(f"the fleet's database refuses: {words}")
    if state in ("3F000", "42P01", "42883"):
        return errors.FleetSchema(
            f"the fleet's database lacks something: {words}",
            hint="upgrade it with 'mapsave fleet migrate'",
        )
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) or not isinstance(
        error, psycopg.Error
    ):
        return errors.FleetUnreachable(f"the fleet's database cannot be reached: {words}")
    return errors.MapsaveError(
        f"unexpected {type(error).__name__} of the fleet's database: {words}"
    )


def _version(number: int) -> str:
    return str(number // 10000)
