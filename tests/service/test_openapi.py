"""The service keeps to the OpenAPI document that it serves: schemathesis asks it all it can."""

import contextlib
import re
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from mapsave.client import exchange
from mapsave.service.api import openapi, queries, routes
from requests import Session
from requests.adapters import HTTPAdapter
from schemathesis import GenerationMode
from schemathesis.config import SchemathesisConfig
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool

from tests.kit import cli, service, tree, wait

DOCS = tree.ROOT / "docs/service.md"
EXAMPLES = 60


class _Connection(HTTPConnection):
    """A connection to a unix socket."""

    path: Path

    def connect(self) -> None:
        self.sock = service.connect(self.path)


class _Adapter(HTTPAdapter):
    """Sends every request to a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        kind = type("_ToPath", (_Connection,), {"path": path})
        self._pool = HTTPConnectionPool("mapsaved", maxsize=4)
        self._pool.ConnectionCls = kind

    def get_connection_with_tls_context(self, *_: Any, **__: Any) -> HTTPConnectionPool:
        return self._pool

    def close(self) -> None:
        self._pool.close()
        super().close()


@pytest.fixture(scope="module")
def mapsaved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[service.Service]:
    """A service with emulated guests, an image and a job."""
    site = cli.Site(tmp_path_factory.mktemp("described") / "site")
    for name in ("db", "web"):
        site.add_guest(name, emulator={"memory": "8M"})
    site.add_job("nightly", guests=["db"], save={"then": "resume"})
    with service.running(site) as running:
        running.done(kind="save", guest="db", save={"image": "one", "then": "resume"})
        yield running


def test_document_has_every_route_and_no_other(mapsaved: service.Service) -> None:
    document = mapsaved.get("/v1/openapi.json")
    assert document["openapi"] == "3.1.0"
    described = {
        (method.upper(), path) for path, each in document["paths"].items() for method in each
    }
    assert described == {(each.method, each.path) for each in routes.ROUTES}
    assert document == openapi.document(routes.ROUTES)


def test_docs_name_every_route() -> None:
    text = DOCS.read_text()
    for each in routes.ROUTES:
        name = "ID" if "operation" in each.path else "NAME"
        path = re.escape(re.sub(r"{\w+}", name, each.path))
        assert re.search(rf"^\| .*`(?:{each.method} )?{path}`", text, re.MULTILINE), each.path


@pytest.fixture(scope="module")
def schema(mapsaved: service.Service) -> Any:
    """What schemathesis reads in the document; it refuses what is no OpenAPI 3.1."""
    # What Unicode has is too large for a pattern to say which names are printable.
    config = SchemathesisConfig.from_dict(
        {"base-url": "http://mapsaved", "generation": {"codec": "ascii"}}
    )
    found = schemathesis.openapi.from_dict(mapsaved.get("/v1/openapi.json"), config=config)
    found.validate()
    return found


@pytest.fixture(scope="module")
def session(mapsaved: service.Service) -> Iterator[Session]:
    """A session of requests that talks to the service."""
    with Session() as made:
        made.trust_env = False
        made.mount("http://", _Adapter(mapsaved.site.socket))
        yield made


@pytest.fixture(autouse=True)
def _all_ends_well(mapsaved: service.Service) -> Iterator[None]:
    """Wait for the operations that a test began; none of them may have found a bug."""
    with service.emulated_ended(mapsaved.site):
        yield
        wait.until(lambda: mapsaved.get("/v1/health")["operations"] == 0, what="the end of all")
    for each in mapsaved.get("/v1/operations?limit=1000&state=failed")["operations"]:
        assert (each["error"] or {}).get("id") != "internal", each


# What goes on forever is listened to in test_events.py.
ASKED = [each for each in routes.ROUTES if not each.endless]
TAKING = [each for each in ASKED if each.takes_body or each.query is not queries.Nothing]
KNOWN = {"guest": "db", "image": "one", "job": "nightly"}
BOUNDED = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def _names(routes: list[Any]) -> list[str]:
    return [f"{each.method} {each.path}" for each in routes]


@pytest.mark.parametrize("route", ASKED, ids=_names(ASKED))
def test_answers_are_as_described(schema: Any, session: Session, route: Any) -> None:
    _ask(schema, session, route, GenerationMode.POSITIVE)


@pytest.mark.parametrize("route", TAKING, ids=_names(TAKING))
def test_what_is_described_otherwise_is_refused(schema: Any, session: Session, route: Any) -> None:
    _ask(schema, session, route, GenerationMode.NEGATIVE)


def _ask(
    schema: Any,
    session: Session,
    route: Any,
    way: GenerationMode,
    known: Mapping[str, str] | None = None,
) -> set[int]:
    """Ask, with the names of ``known`` in the path; return the statuses of the answers."""
    operation = schema[route.path][route.method]
    answered = set()

    @BOUNDED
    @given(case=operation.as_strategy(generation_mode=way))
    def ask(case: Any) -> None:
        for name in (known or {}).keys() & (case.path_parameters or {}).keys():
            case.path_parameters[name] = known[name]
        answered.add(case.call_and_validate(session=session, timeout=wait.LONG).status_code)

    ask()
    return answered


@pytest.fixture(scope="module")
def ill(tmp_path_factory: pytest.TempPathFactory) -> Iterator[service.Service]:
    """A service whose image directory is none any more, and whose journal has lost its tables."""
    site = cli.Site(tmp_path_factory.mktemp("ill") / "site")
    site.add_guest("db", emulator={"memory": "8M"})
    site.write()
    with service.running(site) as running:
        running.done(kind="recover")
        shutil.rmtree(site.images)
        site.images.write_text("no directory")
        with contextlib.closing(sqlite3.connect(site.state / "journal.db")) as other:
            other.execute("ALTER TABLE operations RENAME TO gone")
        yield running


@pytest.mark.parametrize("route", ASKED, ids=_names(ASKED))
def test_what_an_ill_service_answers_is_described_too(
    ill: service.Service, schema: Any, route: Any
) -> None:
    with Session() as session:
        session.trust_env = False
        session.mount("http://", _Adapter(ill.site.socket))
        answered = _ask(schema, session, route, GenerationMode.POSITIVE, known={"guest": "db"})
    touched = ("/v1/images", "/v1/guests/{guest}", "/v1/operations", "/v1/operations/{operation}")
    if route.path in touched:
        assert 409 in answered, answered


def test_a_method_that_a_path_has_not_is_described(mapsaved: service.Service, schema: Any) -> None:
    for route in ASKED:
        answer = mapsaved.request("DELETE", re.sub(r"{\w+}", "one", route.path))
        described = schema[route.path][route.method].definition.raw["responses"]
        assert str(answer.status) in described
        assert set(described["405"]["headers"]) == {"Allow"} <= set(answer.headers)


def test_headers_that_are_understood_and_answered_are_described(mapsaved: service.Service) -> None:
    paths = mapsaved.get("/v1/openapi.json")["paths"]
    begin = paths["/v1/operations"]["post"]
    headers = {each["name"]: each for each in begin["parameters"] if each["in"] == "header"}
    assert set(headers) == {routes.OWN_ID_HEADER, exchange.ROLE_HEADER}
    assert not any(each["required"] for each in headers.values())
    for each in ASKED:  # any request may ask for a lower role
        parameters = paths[each.path][each.method.lower()]["parameters"]
        assert headers[exchange.ROLE_HEADER] in parameters
    for path in ("/v1/operations", "/v1/operations/{operation}/cancel"):
        assert "Location" in paths[path]["post"]["responses"]["202"]["headers"]


WITH_NAMES = [each for each in ASKED if "{" in each.path or each.takes_body]


@pytest.mark.parametrize("route", WITH_NAMES, ids=_names(WITH_NAMES))
def test_answers_about_what_is_there_are_as_described(
    mapsaved: service.Service, schema: Any, session: Session, route: Any
) -> None:
    number = mapsaved.get("/v1/operations?limit=1")["operations"][0]["id"]
    known = {**KNOWN, "operation": number}
    answered = set()

    @BOUNDED
    @given(case=schema[route.path][route.method].as_strategy())
    def ask(case: Any) -> None:
        if case.path_parameters:
            case.path_parameters = {name: known[name] for name in case.path_parameters}
        if isinstance(case.body, dict):
            case.body = {
                name: known[name] if name in known and isinstance(value, str) else value
                for name, value in case.body.items()
            }
        answer = case.call_and_validate(session=session, timeout=wait.LONG)
        answered.add(answer.status_code)

    ask()
    assert answered & {200, 202, 409}, answered
