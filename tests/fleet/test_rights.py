"""What each role may do in the database of a fleet, and what it may not."""

import psycopg
import pytest
from mapsave import errors
from mapsave.database_settings import Database
from mapsave.fleet import database, naming, schema

from tests.fleet.agents import agent, fetch, report, says, take
from tests.kit import fleet as kit
from tests.kit import postgres
from tests.kit.fleet import Fleet, Task
from tests.kit.wait import LONG

TABLES = (
    *("meta", "targets", "hosts", "guests", "images", "runs", "tasks", "slots", "requests"),
    *("job_clock", "leader", "term", "procrastinate_events", "procrastinate_periodic_defers"),
)
# What agents may call. Whatever is added is thought about first.
AGENTS_CALL = {
    *("schema_version", "own_host", "agent_says", "agent_lists", "take_slot", "adopt_slot"),
    *("renew", "report", "procrastinate_fetch_job_v2", "procrastinate_register_worker_v1"),
    *("procrastinate_unregister_worker_v1", "procrastinate_update_heartbeat_v1"),
}
DENIED = psycopg.errors.InsufficientPrivilege


async def refused(connection: database.Connection, query: str, *values: object) -> None:
    """Fail unless a statement is refused for want of a right."""
    with pytest.raises(DENIED):
        await connection.execute(query, values or None)  # type: ignore[call-overload]


async def test_an_agent_sees_and_takes_its_own_hosts_tasks_only(fleet: Fleet) -> None:
    mine, other = await fleet.add_host("rack1-a"), await fleet.add_host("rack1-b")
    async with fleet.owner() as owner, agent(mine) as host:
        theirs = Task("rack1-b")
        await kit.add_task(owner, theirs)
        assert await kit.all_rows(host, "SELECT * FROM procrastinate_jobs") == []
        assert await fetch(host, "rack1-b") is None
        assert (await host.execute("UPDATE procrastinate_jobs SET status = 'doing'")).rowcount == 0
        async with agent(other) as neighbour:
            assert await fetch(neighbour, "rack1-b") == theirs.uuid
            assert await take(host, theirs.uuid) == "unknown"
            assert await take(neighbour, theirs.uuid) == "taken"
            before = await kit.all_rows(owner, "SELECT * FROM slots")
            assert await kit.one(host, "SELECT adopt_slot(%s)", theirs.uuid) is False
            assert await kit.one(host, "SELECT renew(%s, '{\"a\": 1}')", theirs.uuid) is False
            assert await report(host, theirs.uuid) is False
            assert await kit.all_rows(owner, "SELECT * FROM slots") == before
            assert await kit.one(owner, "SELECT progress FROM tasks") is None
            assert await kit.status(owner, theirs.uuid) == "doing"


async def test_an_agent_changes_nothing_of_its_own_tasks_but_to_take_what_is_due(
    fleet: Fleet,
) -> None:
    settings = await fleet.add_host("rack1-a")
    async with fleet.owner() as owner, agent(settings) as host:
        due = await kit.add_task(owner, Task("rack1-a"))
        later = await kit.add_task(owner, Task("rack1-a", "db01", scheduled_at="2100-01-01"))
        everything = "UPDATE procrastinate_jobs SET status = '{}'"
        for status in ("succeeded", "failed", "cancelled", "aborted", "todo"):
            await refused(host, everything.format(status))
        for column in ("args = '{}'", "queue_name = 'x'", "priority = 9", "attempts = 0"):
            await refused(host, f"UPDATE procrastinate_jobs SET status = 'doing', {column}")
        assert (await host.execute(everything.format("doing"))).rowcount == 1
        assert [await kit.status(owner, each) for each in (due, later)] == ["doing", "todo"]
        for status in ("todo", "succeeded"):
            assert (await host.execute(everything.format(status))).rowcount == 0
        assert await report(host, due, "failed")
        assert (await host.execute(everything.format("doing"))).rowcount == 0
        assert [await kit.status(owner, each) for each in (due, later)] == ["failed", "todo"]


async def test_an_agent_reads_and_writes_no_table_but_its_queue(fleet: Fleet) -> None:
    settings = await fleet.add_host("rack1-a")
    async with agent(settings) as host:
        for table in TABLES:
            await refused(host, f"SELECT * FROM {table}")
            await refused(host, f"INSERT INTO {table} DEFAULT VALUES")
            await refused(host, f"DELETE FROM {table}")
            await refused(host, f"TRUNCATE {table}")
        await refused(
            host, "INSERT INTO procrastinate_jobs (queue_name, task_name) VALUES ('', '')"
        )
        await refused(host, "DELETE FROM procrastinate_jobs")
        for table in ("leader", "procrastinate_jobs"):
            with pytest.raises(DENIED):
                async with host.transaction():
                    await host.execute(f"LOCK TABLE {table} IN EXCLUSIVE MODE NOWAIT")


async def test_an_agent_defines_and_becomes_nothing(fleet: Fleet) -> None:
    settings = await fleet.add_host("rack1-a")
    other = naming.host_role(fleet.name, "rack1-b")
    await fleet.add_host("rack1-b")
    async with agent(settings) as host:
        for statement in (
            *("CREATE TABLE mine (a int)", "CREATE TEMPORARY TABLE hosts (name text)"),
            "CREATE FUNCTION known_host() RETURNS text LANGUAGE sql AS $$ SELECT 'rack1-b' $$",
            "CREATE FUNCTION pg_temp.known_host() RETURNS text LANGUAGE sql AS $$ SELECT '' $$",
            *("CREATE SCHEMA mine", f"SET ROLE {postgres.OWNER}", f'SET ROLE "{other}"'),
            *(f"SET SESSION AUTHORIZATION {postgres.OWNER}", "SET row_security = off; TABLE hosts"),
            *("DROP POLICY agents_read ON procrastinate_jobs", "CREATE ROLE mine"),
            f'GRANT "{fleet.name}_people" TO "{fleet.name}_host_rack1-a"',
            *("SELECT pg_read_file('/etc/passwd')", "COPY procrastinate_jobs TO PROGRAM 'id'"),
            *("ALTER FUNCTION own_host() RESET ALL", "CREATE EXTENSION pgcrypto"),
        ):
            await refused(host, statement)


async def test_agents_and_people_may_call_nothing_but_what_is_listed(fleet: Fleet) -> None:
    may = (
        "SELECT DISTINCT proname AS name FROM pg_proc WHERE pronamespace = 'fleet'::regnamespace"
        " AND has_function_privilege(%s, oid, 'EXECUTE')"
    )
    async with fleet.owner() as owner:
        agents = await kit.all_rows(owner, may, naming.agents_role(fleet.name))
        assert {each["name"] for each in agents} == AGENTS_CALL
        people = await kit.all_rows(owner, may, naming.people_role(fleet.name))
        assert {each["name"] for each in people} == {"schema_version"}
        open_ones = await kit.all_rows(
            owner,
            "SELECT proname FROM pg_proc WHERE pronamespace = 'fleet'::regnamespace AND prosecdef"
            " AND NOT 'search_path=fleet, pg_temp' = ANY(coalesce(proconfig, '{}'))",
        )
        assert open_ones == []


async def test_what_runs_with_the_owners_rights_is_not_led_astray(fleet: Fleet) -> None:
    """As on a server where agents may create things after all: other schemas come first."""
    settings = await fleet.add_host("rack1-a", saves=3)
    await fleet.add_host("rack1-b")
    role = naming.host_role(fleet.name, "rack1-a")
    fleet.cluster.sql(f'GRANT TEMPORARY ON DATABASE {fleet.name} TO "{role}"')
    fleet.cluster.sql(f'GRANT CREATE ON SCHEMA public TO "{role}"', fleet.name)
    async with fleet.owner() as owner, agent(settings) as host:
        theirs = await kit.add_task(owner, Task("rack1-b"))
        for place in ("pg_temp", "public"):
            for statement in (
                "CREATE TABLE {}.hosts (name text, role name, saves int, version text, "
                "last_word timestamptz, service jsonb, target text)",
                "INSERT INTO {}.hosts VALUES ('rack1-b', session_user, 99)",
                "CREATE FUNCTION {}.known_host() RETURNS text LANGUAGE sql"
                " AS $$ SELECT 'rack1-b' $$",
                "CREATE FUNCTION {}.own_host() RETURNS text LANGUAGE sql AS $$ SELECT 'rack1-b' $$",
                "CREATE FUNCTION {}.yes(name, name) RETURNS boolean LANGUAGE sql"
                " AS $$ SELECT true $$",
                "CREATE OPERATOR {0}.= (FUNCTION = {0}.yes, LEFTARG = name, RIGHTARG = name)",
                "CREATE FUNCTION {}.clock_timestamp() RETURNS timestamptz LANGUAGE sql"
                " AS $$ SELECT 'epoch'::timestamptz $$",
            ):
                await host.execute(statement.format(place))  # type: ignore[arg-type]
        await host.execute("SET search_path = pg_temp, public, fleet, pg_catalog")
        assert await kit.one(host, "SELECT fleet.own_host()") == "rack1-a"
        assert await kit.one(host, "SELECT fleet.agent_says('1', '{}')") == 3
        state = await kit.all_rows(host, "SELECT * FROM fleet.take_slot(%s)", theirs)
        assert state[0]["state"] == "unknown"
        assert await kit.one(host, "SELECT fleet.report(%s, 'failed', '{}')", theirs) is False
        assert await kit.all_rows(host, "SELECT * FROM fleet.procrastinate_jobs") == []
        # A trigger function with the owner's rights, on a table of the caller's own.
        with pytest.raises(DENIED):
            await host.execute(
                "CREATE TRIGGER t AFTER UPDATE ON pg_temp.hosts FOR EACH ROW EXECUTE FUNCTION "
                "fleet.procrastinate_trigger_function_status_events_update_v1()"
            )


async def test_the_inventory_is_each_hosts_own(fleet: Fleet) -> None:
    a, b = await fleet.add_host("rack1-a"), await fleet.add_host("rack1-b")
    lists = "SELECT agent_lists(%s, %s)"
    async with fleet.owner() as owner, agent(a) as first, agent(b) as second:
        await first.execute(lists, ('{"web01": {"state": "running"}, "web02": {}}', "{}"))
        await second.execute(lists, ('{"web01": {}}', '{"i": {"guest": "web01"}}'))
        seen = "SELECT host, guest, seen FROM guests ORDER BY host, guest"
        before = await kit.all_rows(owner, seen)
        assert [(each["host"], each["guest"]) for each in before] == [
            *[("rack1-a", "web01"), ("rack1-a", "web02")],
            ("rack1-b", "web01"),
        ]
        await first.execute(lists, ('{"web01": {"state": "running"}}', "{}"))
        assert await kit.all_rows(owner, seen) == [before[0], before[2]]
        assert await kit.one(owner, "SELECT guest FROM images WHERE image = 'i'") == "web01"
        with pytest.raises(psycopg.errors.ProgramLimitExceeded):
            await first.execute("SELECT agent_says(repeat('x', 101), '{}')")


async def test_nothing_secret_is_heard(fleet: Fleet) -> None:
    """Whoever may connect may listen: what is notified are numbers and names of targets."""
    settings = await fleet.add_host("rack1-a")
    async with fleet.owner() as owner, agent(settings) as host:
        for channel in ("procrastinate_any_queue_v1", "procrastinate_queue_v1#rack1-b"):
            await host.execute(f'LISTEN "{channel}"')
        await host.execute("LISTEN fleet_request")
        await owner.execute("INSERT INTO requests (kind, what) VALUES ('run', '{\"job\": \"j\"}')")
        await kit.add_task(owner, Task("rack1-b", guest="secret"))
        heard = [each.payload async for each in host.notifies(timeout=LONG, stop_after=3)]
        assert sorted(heard)[0] == "1"
        assert all('"job_inserted", "job_id" : 1}' in each for each in sorted(heard)[1:])


async def test_a_person_asks_in_their_own_name_and_writes_nothing_else(fleet: Fleet) -> None:
    alice = await fleet.add_person(f"{fleet.name}_alice")
    bob = await fleet.add_person(f"{fleet.name}_bob")
    await fleet.add_host("rack1-a")
    async with (
        fleet.owner() as owner,
        database.connected(alice, "test") as mine,
        database.connected(bob, "test") as other,
    ):
        await kit.add_task(owner, Task("rack1-a"))
        ask = "INSERT INTO requests (kind, what) VALUES ('run', '{}') RETURNING requested_by"
        assert await kit.one(mine, ask) == f"{fleet.name}_alice"
        assert await kit.one(owner, ask) == postgres.OWNER
        for query in (
            "INSERT INTO requests (kind, what, requested_by) VALUES ('run', '{}', 'mapsave')",
            "INSERT INTO requests (kind, what, answer) VALUES ('run', '{}', '{}')",
            *("UPDATE requests SET what = '{}'", "DELETE FROM requests"),
            *(
                "SELECT procrastinate_cancel_job_v1(1, true, false)",
                "SELECT report(NULL, '', '{}')",
            ),
            "SELECT procrastinate_fetch_job_v2(NULL, NULL)",
        ):
            await refused(mine, query)
        for table in (*TABLES, "procrastinate_jobs"):
            await refused(mine, f"DELETE FROM {table}")
        for table in ("tasks", "runs", "slots", "hosts", "targets", "procrastinate_jobs"):
            await refused(mine, f"INSERT INTO {table} DEFAULT VALUES")
        assert await kit.one(mine, "SELECT count(*) FROM procrastinate_jobs") == 1
        assert await kit.one(mine, "SELECT count(*) FROM requests") == 1
        assert await kit.one(other, "SELECT count(*) FROM requests") == 0
        await schema.remove_person(fleet.settings, f"{fleet.name}_alice")
        await refused(mine, "SELECT * FROM requests")
    with pytest.raises(errors.UsageError):
        await schema.remove_person(fleet.settings, f"{fleet.name}_alice")


async def test_who_is_in_no_role_of_the_fleet_may_do_nothing(fleet: Fleet) -> None:
    stranger = f"{fleet.name}_stranger"
    fleet.cluster.sql(f"CREATE ROLE {stranger} LOGIN PASSWORD 'x'")
    path = fleet.directory / "stranger.dsn"
    path.touch(mode=0o600)
    path.write_text(f"{fleet.cluster.dsn(fleet.name, stranger)} password=x")
    with pytest.raises(errors.FleetDenied, match="permission denied for database"):
        async with database.connected(Database(dsn_file=path), "test"):
            pass
    query = (
        "SELECT has_schema_privilege(%(role)s, 'fleet', 'USAGE') OR (SELECT bool_or("
        "has_any_column_privilege(%(role)s, oid, 'SELECT, INSERT, UPDATE')) FROM pg_class WHERE"
        " relnamespace = 'fleet'::regnamespace AND relkind IN ('r', 'v')) OR (SELECT bool_or("
        "has_function_privilege(%(role)s, oid, 'EXECUTE')) FROM pg_proc"
        " WHERE pronamespace = 'fleet'::regnamespace) AS may"
    )
    async with fleet.owner() as owner:
        row = await (await owner.execute(query, {"role": stranger})).fetchone()
        assert row == {"may": False}


async def test_a_host_that_is_removed_is_cut_off(fleet: Fleet) -> None:
    settings = await fleet.add_host("rack1-a")
    async with fleet.owner() as owner:
        await kit.add_task(owner, Task("rack1-a"))
        taken = await kit.add_task(owner, Task("rack1-a", "db01"))
        with pytest.raises(errors.FleetUnreachable):
            async with agent(settings) as host:
                await says(host)
                await fetch(host, "rack1-a")
                await fetch(host, "rack1-a")
                assert await take(host, taken) == "taken"
                with pytest.raises(errors.Busy):
                    await schema.remove_host(fleet.settings, "rack1-a")
                await owner.execute("DELETE FROM slots")
                removed = await schema.remove_host(fleet.settings, "rack1-a")
                assert removed["cancelled"] == 2
                await says(host)
        assert await kit.status(owner, taken) == "aborted"
        with pytest.raises(errors.FleetDenied):
            async with agent(settings):
                pass
