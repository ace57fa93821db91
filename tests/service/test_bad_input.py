"""The service under attack: whatever comes is answered with a clear error, and it stays up."""

import http.client
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit import service

OPERATIONS = "/v1/operations"
JSON = {"Content-Type": "application/json"}


pytestmark = pytest.mark.usefixtures("stays_up")


def post(attacked: service.Service, body: bytes | None, **headers: str) -> service.Answer:
    given = {**JSON, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return service.request(attacked.site.socket, "POST", OPERATIONS, body, given)


def refused(answer: service.Answer, status: int, error: str) -> str:
    """Fail unless the answer is that error; return its message."""
    assert (answer.status, answer.error) == (status, error), answer
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    return str(answer.json()["error"]["message"])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "the body is not JSON"),
        (b"{", "the body is not JSON"),
        (b'{"kind": "save", "guest": "db"} x', "the body is not JSON"),
        (b"\xff\xfe{}", "the body is not JSON"),
        (b'{"kind": "save", "guest": "\xff"}', "the body is not JSON"),
        (b"[" * 100_000 + b"]" * 100_000, "nested more than"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested more than"),
        (
            b'{"kind": "save", "guest": "db", "save": {"timeout": NaN}}',
            "NaN is not a number in JSON",
        ),
        (b'{"kind": "save", "guest": "db", "save": {"timeout": -Infinity}}', "-Infinity is not"),
        (b'{"kind": "save", "guest": "db", "save": {"timeout": 1e999}}', "out of range"),
        (b'{"kind": "save", "guest": "db", "save": {"channels": %s}}' % (b"9" * 5000), "not JSON"),
        (b'{"kind": "save", "guest": "db", "guest": "db"}', "a key is given more than once"),
        (b'{"kind": "save", "guest": "db", "save": {"then": "quit", "then": "quit"}}', "once"),
        (b"null", "must be an object"),
        (b"[]", "must be an object"),
        (b'"save"', "must be an object"),
        (b"1", "must be an object"),
        (b"{}", "kind"),
        (b'{"kind": null}', "kind"),
        (b'{"kind": ["save"]}', "kind"),
        (b'{"kind": "shave", "guest": "db"}', "shave"),
        (b'{"kind": "save"}', "the key 'guest' is missing"),
        (b'{"kind": "save", "guest": 7}', "guest: must be text"),
        (b'{"kind": "save", "guest": null}', "guest"),
        (b'{"kind": "save", "guest": {"name": "db"}}', "guest"),
        (b'{"kind": "save", "guest": ""}', "guest"),
        (b'{"kind": "save", "guest": "db", "save": []}', "save"),
        (b'{"kind": "save", "guest": "db", "hurry": true}', "unknown key 'hurry'"),
        (b'{"kind": "save", "guest": "db", "save": {"hurry": 1}}', "unknown key 'hurry'"),
        (b'{"kind": "save", "guest": "db", "save": {"channels": 0}}', "save.channels"),
        (b'{"kind": "save", "guest": "db", "save": {"channels": 2.5}}', "save.channels"),
        (b'{"kind": "save", "guest": "db", "save": {"timeout": -1}}', "save.timeout"),
        (b'{"kind": "save", "guest": "db", "save": {"timeout": "soon"}}', "save.timeout"),
        (b'{"kind": "save", "guest": "db", "save": {"replace": "perhaps"}}', "save.replace"),
        (b'{"kind": "save", "guest": "db", "save": {"policy": "../../etc/passwd"}}', "policy"),
        (b'{"kind": "save", "guest": "db", "save": {"policy": "own.yaml"}}', "not the path"),
        (b'{"kind": "check", "guest": "db", "check": {"policy": "own.yml"}}', "not the path"),
        (b'{"kind": "restore", "image": "a", "restore": {"policy": "b.yml"}}', "not the path"),
        (b'{"kind": "recover", "dry_run": 7}', "dry_run"),
        (b'{"kind": "save-all", "guests": "db"}', "guests"),
        (b'{"kind": "save-all", "guests": ["\\ud800"]}', "surrogate"),
        (b'{"kind": "save-all", "parallel": 65}', "parallel"),
        (b'{"kind": "save", "guest": "db\\u0000"}', "guest"),
        (b'{"kind": "save", "guest": "qmp:/x\\ud800"}', "surrogate"),
        (b'{"kind": "restore", "image": "a", "restore": {"xml": "\\udfff"}}', "surrogate"),
        (b'{"kind": "restore", "image": "a", "restore": {"xml": "\\udcff"}}', "restore.xml"),
    ],
)
def test_bodies_that_mean_nothing(attacked: service.Service, body: bytes, words: str) -> None:
    before = len(attacked.get(OPERATIONS)["operations"])
    answer = post(attacked, body)
    message = refused(answer, 400, "request.invalid")
    assert words in message
    assert len(attacked.get(OPERATIONS)["operations"]) == before


@pytest.mark.parametrize(
    "image",
    [*("", ".", "..", "../db", "a/b", "/etc/passwd", "a\0b", "x" * 300, "ä" * 150), "db.partial"],
)
@pytest.mark.parametrize("kind", ["save", "restore", "check", "verify", "discard"])
def test_names_that_are_no_image_of_the_directory(
    attacked: service.Service, kind: str, image: str
) -> None:
    body: dict[str, Any] = {"kind": kind, "image": image}
    if kind in ("save", "check"):
        body = {"kind": kind, "guest": "db", kind: {"image": image}}
    answer = post(attacked, json.dumps(body).encode())
    assert "image" in refused(answer, 400, "request.invalid")


def test_all_that_is_wrong_is_told_at_once(attacked: service.Service) -> None:
    answer = post(attacked, b'{"kind": "save", "guest": 7, "save": {"channels": 0}, "x": 1}')
    error = answer.json()["error"]
    assert error["message"].endswith("(and 2 more)")
    fields = {each["field"] for each in error["data"]["errors"]}
    assert fields == {"guest", "save.channels", "x"}


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ({"kind": "save", "guest": "web"}, 404, "guest.unknown"),
        ({"kind": "check", "guest": "web"}, 404, "guest.unknown"),
        ({"kind": "job", "job": "nightly"}, 404, "job.unknown"),
        ({"kind": "prune", "job": "nightly"}, 404, "job.unknown"),
        ({"kind": "restore", "image": "a", "restore": {"guest": "web"}}, *(404, "guest.unknown")),
    ],
)
def test_what_is_not_there_is_told_before_anything_begins(
    attacked: service.Service, body: dict[str, Any], status: int, error: str
) -> None:
    refused(attacked.request("POST", OPERATIONS, body), status, error)


@pytest.mark.parametrize("kind", ["restore", "verify", "discard"])
def test_an_image_that_is_not_there_fails_the_operation(
    attacked: service.Service, kind: str
) -> None:
    found = attacked.ended(attacked.begin(kind=kind, image="nothing")["id"])
    assert (found["state"], found["error"]["id"]) == ("failed", "image.not_found")


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""]
)
def test_a_body_that_is_said_to_be_something_else(attacked: service.Service, kind: str) -> None:
    answer = post(attacked, b'{"kind": "recover"}', Content_Type=kind)
    assert "not JSON" in refused(answer, 400, "request.invalid")


def test_a_body_that_is_too_large(attacked: service.Service) -> None:
    body = json.dumps({"kind": "save", "guest": "x" * (2 << 20)}).encode()
    assert "1048576 bytes" in refused(post(attacked, body), 413, "request.too_large")

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(body), 65536):
            yield body[start : start + 65536]

    # Its size is not announced.
    connection = http.client.HTTPConnection("attacked")
    connection.sock = service.connect(attacked.site.socket)
    try:
        connection.request("POST", OPERATIONS, pieces(), JSON, encode_chunked=True)
        assert connection.getresponse().status == 413
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("target", "status", "error"),
    [
        ("/v1/guests/web", 404, "guest.unknown"),
        ("/v1/guests/..", 404, "guest.unknown"),
        ("/v1/guests/%2e%2e", 404, "guest.unknown"),
        ("/v1/guests/%00", 404, "guest.unknown"),
        ("/v1/guests/%ff", 404, "guest.unknown"),
        ("/v1/guests/" + "x" * 300, 404, "guest.unknown"),
        ("/v1/jobs/nightly", 404, "job.unknown"),
        ("/v1/jobs/..%2f..%2fetc%2fpasswd", 404, "job.unknown"),
        ("/v1/images/nothing", 404, "image.not_found"),
        ("/v1/images/..%2fmanager.yaml", 400, "request.invalid"),
        ("/v1/images/%2e%2e%2fmanager.yaml", 400, "request.invalid"),
        ("/v1/images/%2fetc%2fpasswd", 400, "request.invalid"),
        ("/v1/images/a%00b", 400, "request.invalid"),
        ("/v1/images/" + "x" * 300, 400, "request.invalid"),
        ("/v1/images/../../manager.yaml", 404, "request.not_found"),
        ("/v1/operations/zz", 404, "operation.unknown"),
        ("/v1/operations/ABC", 404, "operation.unknown"),
        ("/v1/operations/0123456789abc", 404, "operation.unknown"),
        ("/v1/operations/0123456789ab", 404, "operation.unknown"),
        ("/v1/operations/%25", 404, "operation.unknown"),
        ("/v1/operations/_", 404, "operation.unknown"),
        ("/v1/operations/%00/steps", 404, "operation.unknown"),
        ("/v1/events?operation=0123456789ab", 404, "operation.unknown"),
        ("/", 404, "request.not_found"),
        ("/v1", 404, "request.not_found"),
        ("/v1/", 404, "request.not_found"),
        ("/v2/health", 404, "request.not_found"),
        ("/v1/health/", 404, "request.not_found"),
        ("//v1/health", 404, "request.not_found"),
    ],
)
def test_paths_that_lead_nowhere(
    attacked: service.Service, target: str, status: int, error: str
) -> None:
    refused(attacked.request("GET", target), status, error)


@pytest.mark.parametrize(
    ("target", "field"),
    [
        ("/v1/health?x=1", "x"),
        ("/v1/guests?limit=1", "limit"),
        ("/v1/operations?limit=0", "limit"),
        ("/v1/operations?limit=1001", "limit"),
        ("/v1/operations?limit=1e3", "limit"),
        ("/v1/operations?limit=", "limit"),
        ("/v1/operations?limit=9223372036854775808", "limit"),
        ("/v1/operations?limit=1&limit=1", "limit"),
        ("/v1/operations?state=over", "state"),
        ("/v1/operations?kind=shave", "kind"),
        ("/v1/operations?guest=", "guest"),
        ("/v1/operations?parent=xyz", "parent"),
        ("/v1/operations?before=0123456789abc", "before"),
        ("/v1/operations?sort=asc", "sort"),
        ("/v1/operations?guest=a&guest=b&job=c&job=d", "guest, job"),
        ("/v1/operations/0?wait=61", "wait"),
        ("/v1/operations/0?wait=-1", "wait"),
        ("/v1/operations/0?wait=nan", "wait"),
        ("/v1/operations/0?since=1.5", "since"),
        ("/v1/events?operation=*", "operation"),
    ],
)
def test_queries_that_are_not_understood(
    attacked: service.Service, target: str, field: str
) -> None:
    message = refused(attacked.request("GET", target), 400, "request.invalid")
    assert field in message


def test_a_query_that_is_no_text_finds_nothing(attacked: service.Service) -> None:
    for value in ("%ff", "%ed%a0%80", "%00", "%27%20or%201%3d1", "x" * 5000):
        assert attacked.get(f"/v1/operations?guest={value}") == {"operations": []}


@pytest.mark.parametrize(
    ("method", "target", "allowed"),
    [
        *((each, "/v1/health", "GET") for each in ("POST", "PUT", "DELETE", "HEAD", "OPTIONS")),
        ("PATCH", OPERATIONS, "GET, POST"),
        ("DELETE", "/v1/operations/0123456789ab", "GET"),
        ("GET", "/v1/operations/0123456789ab/cancel", "POST"),
        ("GET", "/v1/reload", "POST"),
    ],
)
def test_methods_that_a_path_does_not_take(
    attacked: service.Service, method: str, target: str, allowed: str
) -> None:
    answer = attacked.request(method, target)
    assert (answer.status, answer.headers["Allow"]) == (405, allowed)
    if method != "HEAD":
        assert allowed in refused(answer, 405, "request.method")


@pytest.mark.parametrize("own", ["", "x", "0123456789AB", "0123456789abc", "0123456789a/"])
def test_an_id_of_the_clients_that_is_none(attacked: service.Service, own: str) -> None:
    answer = post(attacked, b'{"kind": "recover"}', Mapsave_Operation=own)
    assert "Mapsave-Operation" in refused(answer, 400, "request.invalid")


def test_symbolic_links_of_the_image_directory_are_not_followed(
    attacked: service.Service, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    for name, target in (("link", outside), ("dangling", tmp_path / "new")):
        (attacked.site.images / name).symlink_to(target)
        refused(attacked.request("GET", f"/v1/images/{name}"), 403, "permission.denied")
        for kind in ("restore", "verify", "discard"):
            found = attacked.ended(attacked.begin(kind=kind, image=name)["id"])
            assert (found["state"], found["error"]["id"]) == ("failed", "permission.denied")
        save: dict[str, Any] = {"kind": "save", "guest": "db"}
        found = attacked.ended(attacked.begin(**save, save={"image": name})["id"])
        assert (found["state"], found["error"]["id"]) == ("failed", "check.image_exists")
        found = attacked.ended(attacked.begin(**save, save={"image": name, "replace": True})["id"])
        assert found["state"] == "failed", found
    assert outside.read_bytes() == b"precious"
    assert not (tmp_path / "new").exists()
    for name in ("link", "dangling"):
        assert (attacked.site.images / name).is_symlink()
        (attacked.site.images / name).unlink()


def test_what_is_no_image_is_no_file_to_read_either(attacked: service.Service) -> None:
    (attacked.site.images / "directory").mkdir()
    os.mkfifo(attacked.site.images / "fifo")
    (attacked.site.images / "text").write_text("not an image")
    answers = {
        name: attacked.request("GET", f"/v1/images/{name}").status
        for name in ("directory", "fifo", "text")
    }
    assert answers == {"directory": 422, "fifo": 422, "text": 422}
