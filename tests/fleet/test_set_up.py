"""The commands that set a fleet up, as docs/fleet.md does."""

import stat
from pathlib import Path

import pytest
from mapsave.database_settings import Database

from tests.fleet import schedulers
from tests.fleet.agents import agent, says
from tests.kit import cli, postgres
from tests.kit import fleet as kit
from tests.kit.fleet import Fleet


@pytest.fixture
def file(cluster: postgres.Cluster, empty: str, tmp_path: Path) -> Path:
    """A fleet.yaml of a database without anything in it."""
    return schedulers.write(Fleet(cluster, empty, tmp_path), "")


def run(file: Path, *words: str | Path, check: int = 0) -> cli.Result:
    return cli.mapsave("fleet", *words, "--fleet", file, check=check)


async def test_a_fleet_is_set_up_and_taken_down_by_commands(
    file: Path, cluster: postgres.Cluster, empty: str
) -> None:
    error = run(file, "hosts", "--json", check=3).error("fleet.schema")
    assert "mapsave fleet init" in error["hint"]
    assert f"in the database '{empty}'" in run(file, "init").stdout
    assert run(file, "init", "--json", check=3).error_id() == "fleet.schema"
    assert run(file, "migrate", "--json").json()["schema"] == 1

    dsn = file.with_name("rack1-a.dsn")
    added = run(file, "host", "add", "rack1-a", "--dsn-file", dsn, "--json").json()
    assert added == {
        "host": "rack1-a",
        "new": True,
        "role": f"{empty}_host_rack1-a",
        "dsn_file": str(dsn),
    }
    assert stat.S_IMODE(dsn.stat().st_mode) == 0o600
    fleet = Fleet(cluster, empty, file.parent)
    async with agent(Database(dsn_file=dsn)) as host, fleet.owner() as owner:
        # Nothing runs before the scheduler has brought in its budgets.
        assert await says(host) == 0
        assert await kit.one(owner, "SELECT name FROM hosts") == "rack1-a"
    assert run(file, "host", "add", "rack1-a", "--dsn-file", dsn, "--json", check=2).error("usage")
    again = run(file, "host", "add", "rack1-a").stdout
    assert "replaced the password of host 'rack1-a'" in again
    assert "password=" in again
    assert run(file, "host", "add", "rack 1", "--json", check=2).error_id() == "usage"

    person = f"{empty}_alice"
    assert run(file, "operator", "add", person, "--json").json()["new"] is True
    assert "dsn" not in run(file, "operator", "add", person, "--json").json()
    run(file, "operator", "remove", person)
    assert run(file, "operator", "remove", person, "--json", check=2).error_id() == "usage"
    removed = run(file, "host", "remove", "rack1-a", "--json").json()
    assert (removed["host"], removed["cancelled"]) == ("rack1-a", 0)
    assert run(file, "host", "remove", "rack1-a", "--json", check=2).error_id() == "usage"


def test_a_superuser_makes_no_fleet(file: Path, cluster: postgres.Cluster, empty: str) -> None:
    file.write_text(f"database: {{dsn: '{cluster.dsn(empty, 'postgres')}'}}\n")
    error = run(file, "init", "--json", check=7).error("permission.denied")
    assert "createuser --createrole" in error["hint"]
