"""A cluster for all tests of a worker, and a fleet in a database of its own for each test."""

import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from mapsave.fleet import schema

from tests.kit import postgres
from tests.kit.fleet import Fleet

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def cluster() -> Iterator[postgres.Cluster]:
    """The cluster that all tests share: it is not stopped."""
    with postgres.running() as found:
        yield found


@pytest.fixture
def own_cluster() -> Iterator[postgres.Cluster]:
    """A cluster that is durable, for a test that stops, kills or copies it."""
    with postgres.running(durable=True) as found:
        yield found


@pytest.fixture
def empty(cluster: postgres.Cluster) -> Iterator[str]:
    """The name of a database without anything in it."""
    name = f"fleet{next(_numbers)}"
    cluster.sql(f"CREATE DATABASE {name} OWNER {postgres.OWNER}")
    yield name
    roles = cluster.sql(f"SELECT rolname FROM pg_roles WHERE rolname LIKE '{name}\\_%'").split("\n")
    drops = "".join(f'DROP ROLE "{role}";' for role in roles if role)
    cluster.sql(f"DROP DATABASE {name} (FORCE)")
    cluster.sql(drops or "SELECT")


@pytest.fixture
async def fleet(cluster: postgres.Cluster, empty: str, tmp_path: Path) -> AsyncIterator[Fleet]:
    """A fleet without hosts."""
    found = Fleet(cluster, empty, tmp_path)
    await schema.init(found.settings)
    yield found
