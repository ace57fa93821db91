"""Make and upgrade the schema of a fleet; make and remove the roles of hosts and people."""

from __future__ import annotations

import secrets
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapsave import errors
from mapsave.database_settings import Database
from mapsave.fleet import database, naming

if TYPE_CHECKING:
    from mapsave.fleet.database import Connection

# By the version they lead to; each is run in the transaction of the whole upgrade.
MIGRATIONS: dict[int, str] = {}
_FILES = "mapsave.fleet"


async def init(settings: Database) -> dict[str, Any]:
    """Make the schema in a database that has none, as its owner; return what was made.

    Raises FleetSchema where there is one, NotPermitted for a superuser, what ``connected`` does.
    """
    async with database.connected(settings, "init", with_schema=False) as connection:
        async with connection.transaction():
            name = await _check_role(connection)
            if await _one(connection, f"SELECT to_regnamespace('{naming.SCHEMA}')"):
                raise errors.FleetSchema(
                    f"the database {name!r} has a fleet, or another schema named {naming.SCHEMA!r}",
                    hint="upgrade a fleet with 'mapsave fleet migrate'",
                )
            roles = naming.agents_role(name), naming.people_role(name)
            for role in roles:
                await _create_role(connection, role, "NOLOGIN")
            await connection.execute(f"CREATE SCHEMA {naming.SCHEMA}")
            await _run(connection, _procrastinate_schema())
            await _run(connection, _read("schema.sql"))
            await _run(connection, _read("functions.sql"))
            await connection.execute(
                "INSERT INTO meta (version, procrastinate, agents, people, place)"
                " VALUES (%s, %s, %s, %s, place())",
                (database.VERSION, procrastinate_migrations()[-1].name, *roles),
            )
            await _grant(connection)
        return await _shown(connection, name)


async def migrate(settings: Database) -> dict[str, Any]:
    """Upgrade the schema to ours, Procrastinate's part included; return what it is then.

    Nothing is changed where that fails. Raises FleetSchema where there is none, or a newer one.
    """
    async with database.connected(settings, "migrate", with_schema=False) as connection:
        async with connection.transaction():
            name = await _check_role(connection)
            if not await _one(connection, f"SELECT to_regclass('{naming.SCHEMA}.meta')"):
                raise errors.FleetSchema(
                    f"the database {name!r} has no fleet", hint="make one with 'mapsave fleet init'"
                )
            # No agent takes anything, and no other upgrade runs, before this one is complete.
            await connection.execute("LOCK TABLE meta IN ACCESS EXCLUSIVE MODE")
            version = int(await _one(connection, "SELECT version FROM meta"))
            if version > database.VERSION:
                database.check_version(version, name)
            for step in range(version + 1, database.VERSION + 1):
                await _run(connection, MIGRATIONS[step])
            await _migrate_procrastinate(connection)
            await _run(connection, _read("functions.sql"))
            await connection.execute("UPDATE meta SET version = %s", (database.VERSION,))
            await _grant(connection)
        return await _shown(connection, name)


async def add_host(settings: Database, host: str, saves: int = 1) -> dict[str, Any]:
    """Add a host and the role of its agent, or give the role a new password; return both.

    Raises UsageError for a name that no host may have, what ``connected`` does.
    """
    try:
        naming.check_host(host)
    except ValueError as error:
        raise errors.UsageError(str(error)) from None
    password = secrets.token_urlsafe(24)
    async with database.connected(settings, "host add") as connection:
        async with connection.transaction():
            known = await _row(connection, "SELECT role FROM hosts WHERE name = %s", host)
            role = known["role"] if known else naming.host_role(connection.info.dbname, host)
            if known is None:
                agents = await _one(connection, "SELECT agents FROM meta")
                await _create_role(connection, role, "LOGIN")
                await _member(connection, role, agents)
                await connection.execute(
                    "INSERT INTO hosts (name, role, saves) VALUES (%s, %s, %s)",
                    (host, role, saves),
                )
            await _set_password(connection, role, password)
        return {"host": host, "new": known is None, **_dsn(connection, role, password)}


async def remove_host(settings: Database, host: str) -> dict[str, Any]:
    """Remove a host, its agent's role, and what it has not begun; return what was removed.

    Its connections are ended. Raises Busy while it has slots, UsageError where it is not known.
    """
    async with (
        database.connected(settings, "host remove") as connection,
        connection.transaction(),
    ):
        known = await _row(connection, "SELECT role FROM hosts WHERE name = %s FOR UPDATE", host)
        if known is None:
            raise errors.UsageError(f"no host {host!r} is in the fleet")
        busy = await _one(connection, "SELECT count(*) FROM slots WHERE host = %s", host)
        if busy:
            raise errors.Busy(
                f"host {host!r} has {busy} operations that were not reported",
                hint="wait for them, or for the end of their time limits",
            )
        # Before the rest: its agent must not take anything in the meantime.
        await _execute(connection, "ALTER ROLE {} NOLOGIN", known["role"])
        cancelled = await _one(
            connection,
            "WITH gone AS (UPDATE procrastinate_jobs SET status = CASE status WHEN 'todo' "
            "THEN 'cancelled' ELSE 'aborted' END::procrastinate_job_status "
            "WHERE queue_name = %s AND status IN ('todo', 'doing') RETURNING id), "
            "said AS (UPDATE tasks SET ended = clock_timestamp(), outcome = "
            """'{"message": "the host was removed"}' FROM gone WHERE job_id = gone.id) """
            "SELECT count(*) FROM gone",
            host,
        )
        await connection.execute("DELETE FROM hosts WHERE name = %s", (host,))
        await _drop_role(connection, known["role"])
    return {"host": host, "role": known["role"], "cancelled": cancelled}


async def add_person(settings: Database, role: str) -> dict[str, Any]:
    """Let a role ask for runs, and see the fleet; make it with a password if there is none.

    Returns the role and, of a new one, its connection string.
    """
    password = secrets.token_urlsafe(24)
    async with database.connected(settings, "operator add") as connection:
        async with connection.transaction():
            people = await _one(connection, "SELECT people FROM meta")
            found = await _row(connection, "SELECT FROM pg_roles WHERE rolname = %s", role)
            if found is None:
                await _create_role(connection, role, "LOGIN")
                await _set_password(connection, role, password)
            await _member(connection, role, people)
        if found is not None:
            return {"operator": role, "new": False, "role": role}
        return {"operator": role, "new": True, **_dsn(connection, role, password)}


async def remove_person(settings: Database, role: str) -> dict[str, Any]:
    """Take from a role what ``add_person`` gave it; the role itself remains.

    Raises UsageError where it has nothing.
    """
    async with database.connected(settings, "operator remove") as connection:
        people = await _one(connection, "SELECT people FROM meta")
        member = await _one(
            connection,
            "SELECT count(*) FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member "
            "JOIN pg_roles g ON g.oid = m.roleid WHERE r.rolname = %s AND g.rolname = %s",
            role,
            people,
        )
        if not member:
            raise errors.UsageError(f"the role {role!r} is not an operator of this fleet")
        await _execute(connection, "REVOKE {} FROM {}", people, role)
    return {"operator": role}


async def _check_role(connection: Connection) -> str:
    """Return the database's name; raise NotPermitted unless its owner, no superuser, has come."""
    row = await _row(
        connection,
        "SELECT d.datname AS name, o.rolname AS owner, r.rolsuper AS super, "
        "r.rolcreaterole AS creates, d.datdba = r.oid AS owns FROM pg_database d "
        "JOIN pg_roles r ON r.rolname = session_user JOIN pg_roles o ON o.oid = d.datdba "
        "WHERE d.datname = current_database()",
    )
    assert row is not None
    role = connection.info.user
    make = f"createuser --createrole mapsave; createdb -O mapsave {row['name']}"
    if row["super"]:
        raise errors.NotPermitted(
            f"the role {role!r} is a superuser: what agents call would run with its rights",
            hint=f"use an owner of its own: {make}",
        )
    if not row["owns"]:
        raise errors.NotPermitted(
            f"the database {row['name']!r} belongs to the role {row['owner']!r}, not to {role!r}"
        )
    if not row["creates"]:
        raise errors.NotPermitted(
            f"the role {role!r} may not create the roles of hosts",
            hint=f"ALTER ROLE {role} CREATEROLE",
        )
    return str(row["name"])


async def _migrate_procrastinate(connection: Connection) -> None:
    """Apply Procrastinate's migrations that were not: their names begin with its version."""
    done = str(await _one(connection, "SELECT procrastinate FROM meta"))
    files = procrastinate_migrations()
    if done > files[-1].name:
        raise errors.FleetSchema(
            f"the fleet's schema is of a newer Procrastinate ({done})",
            hint="upgrade Procrastinate here",
        )
    for path in files:
        if path.name > done:
            await _run(connection, path.read_text(encoding="utf-8"))
    await connection.execute("UPDATE meta SET procrastinate = %s", (files[-1].name,))


def procrastinate_migrations() -> list[Path]:
    """Return the files of Procrastinate's migrations, in their order."""
    from procrastinate import schema

    return sorted(Path(schema.SchemaManager.get_migrations_path()).glob("*.sql"))


def _procrastinate_schema() -> str:
    from procrastinate import schema

    return schema.SchemaManager.get_schema()


async def _grant(connection: Connection) -> None:
    from psycopg import sql

    row = await _row(connection, "SELECT agents, people FROM meta")
    assert row is not None
    await connection.execute(
        sql.SQL(_read("grants.sql")).format(
            database=sql.Identifier(connection.info.dbname),
            agents=sql.Identifier(row["agents"]),
            people=sql.Identifier(row["people"]),
            agents_literal=sql.Literal(sql.Identifier(row["agents"]).as_string(connection)),
        )
    )


async def _shown(connection: Connection, name: str) -> dict[str, Any]:
    row = await _row(
        connection, "SELECT version, procrastinate, fleet, agents, people, since FROM meta"
    )
    assert row is not None
    return {
        "database": name,
        "schema": row["version"],
        "procrastinate": row["procrastinate"].partition("_")[0],
        "fleet": str(row["fleet"]),
        "agents": row["agents"],
        "people": row["people"],
    }


def _dsn(connection: Connection, role: str, password: str) -> dict[str, Any]:
    """Return a role with a connection string for it, as this connection has reached the server."""
    from psycopg import conninfo

    info = connection.info
    dsn = conninfo.make_conninfo(
        host=info.host, port=info.port, dbname=info.dbname, user=role, password=password
    )
    return {"role": role, "dsn": dsn}


async def _create_role(connection: Connection, role: str, login: str) -> None:
    import psycopg

    try:
        await _execute(connection, f"CREATE ROLE {{}} {login}", role)
    except psycopg.errors.DuplicateObject:
        raise errors.UsageError(
            f"the role {role!r} exists already in this PostgreSQL",
            hint="roles belong to all its databases: drop it if it is of a fleet that is gone",
        ) from None


async def _member(connection: Connection, role: str, group: str) -> None:
    await _execute(connection, "GRANT {} TO {}", group, role)


async def _set_password(connection: Connection, role: str, password: str) -> None:
    """Set a password by its digest: the server, and its log, do not get the password itself."""
    from psycopg import sql

    digest = connection.pgconn.encrypt_password(
        password.encode(), role.encode(), b"scram-sha-256"
    ).decode()
    await connection.execute(
        sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(digest))
    )


async def _drop_role(connection: Connection, role: str) -> None:
    # Only who is a member of a role may end its connections.
    await _execute(connection, "GRANT {} TO CURRENT_USER", role)
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (role,)
    )
    await _execute(connection, "DROP ROLE {}", role)


async def _execute(connection: Connection, query: str, *names: str) -> None:
    """Run a statement in which each ``{}`` is a name."""
    from psycopg import sql

    composed = sql.SQL(query).format(*map(sql.Identifier, names))
    await connection.execute(composed)


async def _run(connection: Connection, script: str) -> None:
    """Run the statements of a file in our schema."""
    await connection.execute(script)


async def _row(connection: Connection, query: str, *values: object) -> dict[str, Any] | None:
    cursor = await connection.execute(query, values or None)
    row: dict[str, Any] | None = await cursor.fetchone()
    return row


async def _one(connection: Connection, query: str, *values: object) -> Any:
    row = await _row(connection, query, *values)
    assert row is not None
    return next(iter(row.values()))


def _read(name: str) -> str:
    return resources.files(_FILES).joinpath(name).read_text(encoding="utf-8")
