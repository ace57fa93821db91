"""Connect to a fleet's database, make and upgrade it: what works, and what is said of mistakes."""

import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from mapsave import database_settings, errors
from mapsave.database_settings import Database
from mapsave.fleet import connector, database, naming, schema
from procrastinate.jobs import Job
from procrastinate.schema import SchemaManager

from tests.fleet.agents import agent, fetch, take
from tests.kit import fleet as kit
from tests.kit import postgres, tree
from tests.kit.fleet import Fleet, Task
from tests.kit.wait import LONG

_CURRENT = SchemaManager.get_schema()


async def failed(settings: Database) -> errors.MapsaveError:
    """Return the error of a connection that must fail."""
    with pytest.raises(errors.MapsaveError) as caught:
        async with database.connected(settings, "test"):
            pass
    return caught.value


async def test_an_operation_is_known_by_its_task_alone(fleet: Fleet) -> None:
    """The database, which adopts tasks that it does not know, computes the same."""
    task = Task("rack1-a")
    assert re.fullmatch("[0-9a-f]{12}", task.operation)
    assert naming.operation_of(task.uuid) == task.operation
    settings = await fleet.add_host("rack1-a")
    async with agent(settings) as host, fleet.owner() as owner:
        assert await kit.one(host, "SELECT adopt_slot(%s)", task.uuid) is True
        assert await kit.one(owner, "SELECT operation FROM slots") == task.operation


@pytest.mark.parametrize("name", ["", ".", "-a", "a" * 41, "a b", "a/b", "web@a", "rack*", "ä"])
async def test_names_that_no_host_may_have(name: str) -> None:
    with pytest.raises(ValueError, match="is not a name of a host"):
        naming.check_host(name)


async def test_the_longest_names_have_roles_and_channels(fleet: Fleet) -> None:
    """Roles and channels have up to 63 bytes: two long names are still two roles."""
    hosts = ["h" * 39 + "1", "h" * 39 + "2"]
    async with fleet.owner() as owner:
        for host in hosts:
            settings = await fleet.add_host(host)
            task = await kit.add_task(owner, Task(host))
            async with agent(settings) as found:
                assert await fetch(found, host) == task
                assert await take(found, task) == "taken"
    long = [naming.host_role("d" * 30, host) for host in hosts]
    assert len(set(long)) == 2
    assert all(len(role.encode()) <= 63 for role in long)


async def test_wrong_passwords_and_servers_that_are_not_there(fleet: Fleet) -> None:
    settings = await fleet.add_host("rack1-a")
    assert settings.dsn_file is not None
    text = settings.dsn_file.read_text()
    settings.dsn_file.write_text(re.sub("password=[^ ]*", "password=wrong", text))
    error = await failed(settings)
    assert isinstance(error, errors.FleetDenied)
    assert "password authentication failed" in error.message
    assert "wrong" not in error.message
    gone = Database(dsn=f"host={fleet.directory} dbname=fleet")
    assert isinstance(await failed(gone), errors.FleetUnreachable)
    other = await failed(Database(dsn=fleet.cluster.dsn("nosuch")))
    assert (other.exit_code, "nosuch" in other.message) == (3, True)


async def test_a_database_without_a_fleet_or_of_another_version(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = Database(dsn=fleet.cluster.dsn("postgres"))
    error = await failed(empty)
    assert (error.id, "mapsave fleet init" in str(error.hint)) == ("fleet.schema", True)
    with pytest.raises(errors.FleetSchema, match="has a fleet"):
        await schema.init(fleet.settings)
    async with fleet.owner() as owner:
        for version, words in ((99, "newer mapsave"), (0, "older mapsave")):
            await owner.execute("UPDATE meta SET version = %s", (version,))
            assert words in (await failed(fleet.settings)).message
    monkeypatch.setattr(database, "LEAST", 990000)
    assert (await failed(fleet.settings)).id == "unsupported"


async def test_only_an_owner_who_is_no_superuser_makes_a_fleet(
    cluster: postgres.Cluster, empty: str
) -> None:
    with pytest.raises(errors.NotPermitted, match="superuser"):
        await schema.init(Database(dsn=cluster.dsn(empty, "postgres")))
    with pytest.raises(errors.NotPermitted, match="belongs to the role 'postgres'"):
        await schema.init(Database(dsn=cluster.dsn("postgres")))
    cluster.sql(f"ALTER ROLE {postgres.OWNER} NOCREATEROLE")
    try:
        with pytest.raises(errors.NotPermitted, match="may not create"):
            await schema.init(Database(dsn=cluster.dsn(empty)))
    finally:
        cluster.sql(f"ALTER ROLE {postgres.OWNER} CREATEROLE")
    assert cluster.sql("SELECT to_regnamespace('fleet')", empty) == ""


async def test_migrate_restores_functions_and_rights(fleet: Fleet) -> None:
    """As after a restore: all of it, or nothing."""
    settings = await fleet.add_host("rack1-a")
    async with fleet.owner() as owner:
        await kit.add_task(owner, Task("rack1-a"))
        await owner.execute("DROP FUNCTION take_slot")
        await owner.execute(f"GRANT ALL ON tasks TO PUBLIC, {fleet.name}_agents")
        await owner.execute(f"GRANT CONNECT ON DATABASE {fleet.name} TO PUBLIC")
        await schema.migrate(fleet.settings)
        await owner.execute("UPDATE meta SET procrastinate = '99.00.00_01_x.sql'")
        with pytest.raises(errors.FleetSchema, match="newer Procrastinate"):
            await schema.migrate(fleet.settings)
        await owner.execute("UPDATE meta SET version = 99")
        with pytest.raises(errors.FleetSchema, match="newer mapsave"):
            await schema.migrate(fleet.settings)
        await owner.execute("UPDATE meta SET version = %s", (database.VERSION,))
        public = "SELECT has_database_privilege('public', current_database(), 'CONNECT')"
        assert await kit.one(owner, public) is False
    async with agent(settings) as host:
        task = await fetch(host, "rack1-a")
        assert task is not None
        assert await take(host, task) == "taken"
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await host.execute("SELECT * FROM tasks")


async def test_a_fleet_of_an_older_procrastinate_is_upgraded(
    cluster: postgres.Cluster, empty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = schema.procrastinate_migrations()
    old = [path for path in files if path.name < "03.04"]
    # What the later ones add, left out: a new label of an enumeration, and who uses it.
    older = re.sub(
        r"CREATE FUNCTION procrastinate_retry_job_v2\(.*?\n\$\$;\n", "", _CURRENT, flags=re.S
    )
    older = re.sub(r",( [^\n]*\n) *'retried' [^\n]*\n", r"\1", older)
    older = re.sub(r" WHEN OLD.status = 'failed'[^;]*?'retried'[^\n]*\n", "", older)
    assert "retried" not in older
    assert "retry_job_v2" not in older
    fleet = Fleet(cluster, empty, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(schema, "procrastinate_migrations", lambda: old)
        patch.setattr(schema, "_procrastinate_schema", lambda: older)
        assert (await schema.init(fleet.settings))["procrastinate"] == "03.03.00"
    async with fleet.owner() as owner:
        there = "SELECT to_regproc('procrastinate_retry_job_v2') IS NOT NULL"
        assert await kit.one(owner, there) is False
        task = await kit.add_task(owner, Task("rack1-a"))
        found = await schema.migrate(fleet.settings)
        assert found["procrastinate"] == files[-1].name.partition("_")[0]
        assert await kit.one(owner, there) is True
        assert await kit.status(owner, task) == "todo"


async def test_a_second_password_replaces_the_first(fleet: Fleet) -> None:
    first = await schema.add_host(fleet.settings, "rack1-a")
    again = await schema.add_host(fleet.settings, "rack1-a")
    assert (first["new"], again["new"]) == (True, False)
    assert (first["role"], first["dsn"] != again["dsn"]) == (again["role"], True)
    path = fleet.directory / "dsn"
    path.touch(mode=0o600)
    path.write_text(first["dsn"])
    assert isinstance(await failed(Database(dsn_file=path)), errors.FleetDenied)
    path.write_text(again["dsn"])
    async with agent(Database(dsn_file=path)) as host:
        assert await kit.one(host, "SELECT own_host()") == "rack1-a"
    log = (fleet.cluster.directory / "log").read_text()
    assert not any(word in log for word in re.findall("password=([^ ]+)", again["dsn"]))


async def test_jobs_are_queued_in_the_transaction_of_the_connection(fleet: Fleet) -> None:
    async with fleet.owner() as owner:
        job = Job(id=None, queue="q", lock=None, queueing_lock=None, task_name=naming.TASK)
        job = job.evolve(task_kwargs={"a": [1, {"b": None}]})
        with pytest.raises(ZeroDivisionError):
            async with owner.transaction():
                await connector.job_manager(owner).batch_defer_jobs_async([job, job])
                assert await kit.one(owner, "SELECT count(*) FROM procrastinate_jobs") == 2
                raise ZeroDivisionError
        assert await kit.one(owner, "SELECT count(*) FROM procrastinate_jobs") == 0
        made = await connector.job_manager(owner).batch_defer_jobs_async([job, job])
        found = await kit.all_rows(owner, "SELECT id, args FROM procrastinate_jobs ORDER BY id")
        assert [(each["id"], each["args"]) for each in found] == [
            (each.id, {"a": [1, {"b": None}]}) for each in made
        ]


def settings_of(**given: object) -> Database:
    return database_settings.check(Database(**given))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "exactly one of dsn, dsn_file and dsn_credential"),
        ({"dsn": "x", "dsn_file": Path("x")}, "not dsn and dsn_file"),
        ({"dsn": "host=db password = x"}, "contains a password"),
        ({"dsn": "postgresql://me:x@db/fleet"}, "contains a password"),
        ({"dsn": "host=db", "certificate": Path("c")}, "given together"),
    ],
)
def test_keys_that_do_not_go_together(given: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        settings_of(**given)


def test_files_with_connection_strings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "dsn"
    path.write_text("host=db password=x\n")
    path.chmod(0o640)
    read = database_settings.text_of
    assert read(settings_of(dsn_file=path)) == "host=db password=x"
    path.chmod(0o644)
    with pytest.raises(errors.NotPermitted, match="everybody may read it"):
        read(settings_of(dsn_file=path))
    with pytest.raises(errors.ConfigMissing):
        read(settings_of(dsn_file=tmp_path / "nosuch"))
    path.chmod(0o600)
    for content in ("", " \n", "a\0b", "x" * 5000):
        path.write_text(content)
        with pytest.raises(errors.ConfigError):
            read(settings_of(dsn_file=path))
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(errors.ConfigMissing, match="CREDENTIALS_DIRECTORY"):
        read(settings_of(dsn_credential="dsn"))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    path.write_text("host=db")
    assert read(settings_of(dsn_credential="dsn")) == "host=db"


def test_tls_is_verified_over_tcp_and_not_asked_for_on_a_socket(tmp_path: Path) -> None:
    words = database.parameters(Database(dsn="host=db dbname=f sslmode=disable"), "test")
    assert (words["sslmode"], words["sslrootcert"]) == ("verify-full", "system")
    ca = tmp_path / "ca.pem"
    words = database.parameters(Database(dsn="postgresql://db/f", ca=ca, tls="require"), "test")
    assert (words["sslmode"], words["sslrootcert"]) == ("require", str(ca))
    assert words["options"] == "-c search_path=fleet"
    for local in ("dbname=f", "host=/run/postgresql", "postgresql:///f?host=/run/postgresql"):
        assert "sslmode" not in database.parameters(Database(dsn=local), "test")
    with pytest.raises(errors.ConfigError) as caught:
        database.parameters(Database(dsn="nonsense secret"), "test")
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("sys.modules['psycopg'] = None", "psycopg are needed; pip install 'mapsave[fleet]'"),
        ("sys.modules['procrastinate'] = None", "procrastinate are needed; pip install"),
        ("os.environ['PSYCOPG_IMPL'] = 'c'", "psycopg cannot be loaded; apt install libpq5"),
    ],
)
def test_without_the_extra_it_is_said_what_to_install(broken: str, words: str) -> None:
    program = (
        f"import os, sys\n{broken}\n"
        "from mapsave.fleet import libraries\n"
        "from mapsave import errors\n"
        "try:\n    libraries.check()\n"
        "except errors.Unsupported as error:\n    print(error.message, error.hint)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": tree.PYTHONPATH},
        capture_output=True,
        text=True,
        timeout=LONG,
        check=True,
    )
    assert all(part in done.stdout for part in words.split("; ")), done.stdout
