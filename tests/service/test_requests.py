"""The requests of the service: who asks, and what the kind of an operation and a body mean."""

import json
import pwd
import re
import socket
import time
from typing import Any

import pytest
from mapsave import errors, service_settings
from mapsave.client import requests
from mapsave.service import peers, work
from mapsave.service.api import openapi, routes

from tests.kit import tree

LEAST: dict[str, dict[str, object]] = {
    "save": {"guest": "db"},
    "restore": {"image": "one"},
    "clone": {"image": "one"},
    "check": {"guest": "db"},
    "verify": {"image": "one"},
    "discard": {"image": "one"},
    "pin": {"image": "one"},
    "unpin": {"image": "one"},
    "warm": {"image": "one"},
    "job": {"job": "nightly"},
    "prune": {"job": "nightly"},
}


def test_each_request_has_a_row_and_each_row_a_request() -> None:
    assert {name: row.request for name, row in work.KINDS.items()} == requests.KINDS


def test_docs_name_each_kind() -> None:
    (line,) = re.findall(
        r"^\| `POST /v1/operations` .*$", (tree.ROOT / "docs/service.md").read_text(), re.MULTILINE
    )
    words = line.partition("`kind` is ")[2]
    assert re.findall(r"`([a-z-]+)`", words) == list(requests.KINDS)


def test_only_fields_are_described() -> None:
    assert '"given"' not in json.dumps(openapi.document(routes.ROUTES))


@pytest.mark.parametrize("kind", requests.KINDS)
def test_what_is_not_given_or_null_is_the_default(kind: str) -> None:
    least = {"kind": kind, **LEAST.get(kind, {})}
    request = requests.parse(least)
    assert request.kind == kind
    assert request.as_dict() == LEAST.get(kind, {})
    nulls = {name: None for name in type(request).__struct_fields__ if name not in least}
    assert requests.parse({**least, **nulls}) == request


def test_what_was_requested_is_recorded_without_secrets() -> None:
    body = {"again": True, "run": "as-saved", "timeout": "1m30s", "xml": "<password/>"}
    request = requests.parse({"kind": "restore", "image": "one", "restore": body})
    recorded = {"again": True, "timeout": 90.0, "xml": "given"}
    assert request.as_dict() == {"image": "one", "restore": recorded}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"kind": "verify", "imge": "one", "image": "a"}, "did you mean 'image'?"),
        ({"kind": "save", "guest": "db", "save": {"chanels": 1}}, "did you mean 'channels'?"),
        ({"kind": "check"}, "either 'guest' or 'job'"),
        ({"kind": "check", "guest": "db", "job": "nightly"}, "either 'guest' or 'job'"),
        ({"kind": "check", "job": "nightly", "check": {}}, "'check' applies to 'guest' only"),
    ],
)
def test_mistakes_are_named(body: dict[str, object], words: str) -> None:
    with pytest.raises(errors.RequestInvalid) as caught:
        requests.parse(body)
    assert words in caught.value.message


def test_a_name_is_looked_up_once_and_again_when_it_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    look_up, clock = pwd.getpwuid, time.monotonic

    def counted(uid: int) -> Any:
        asked.append(uid)
        return look_up(uid)

    monkeypatch.setattr(pwd, "getpwuid", counted)
    roles = peers.Roles(service_settings.Service())
    ours, theirs = socket.socketpair()
    with ours, theirs:
        names = {roles.of_socket(ours).name for _ in range(3)}
        assert len(names) == len(asked) == 1
        monkeypatch.setattr(time, "monotonic", lambda: clock() + 3600)
        assert roles.of_socket(ours).name in names
        assert len(asked) == 2
