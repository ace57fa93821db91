"""The requests of the service: what a kind of operation consists of, and what a body means."""

import json
import re

import pytest
from mapsave import errors
from mapsave.service import work
from mapsave.service.api import openapi, requests, routes

from tests.kit import tree

LEAST: dict[str, dict[str, object]] = {
    "save": {"guest": "db"},
    "restore": {"image": "one"},
    "check": {"guest": "db"},
    "verify": {"image": "one"},
    "discard": {"image": "one"},
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
