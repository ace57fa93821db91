"""Clients of the service that send no HTTP, stop amidst it, vanish, or do not read."""

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from tests.kit import cli, limits, service, wait
from tests.service import impatient

OPERATIONS = "/v1/operations"
GIVEN_UP = b"the body was not received within 500 ms"


pytestmark = pytest.mark.usefixtures("stays_up")


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[service.Service]:
    """A service that waits for nobody longer than a second, as a busy test may well take."""
    site = cli.Site(tmp_path_factory.mktemp("hasty") / "site")
    command = impatient.command(idle=1.0, serving=4.0, every=0.1)
    with service.running(site, command=command) as running, impatient.staying_up(running):
        yield running


def raw(mapsaved: service.Service, data: bytes) -> bytes:
    """Send bytes; return what comes until the service closes the connection."""
    with service.connect(mapsaved.site.socket) as sock:
        with contextlib.suppress(BrokenPipeError):  # what was read so far was enough
            sock.sendall(data)
        return _rest(sock)


def _rest(sock: socket.socket) -> bytes:
    found = b""
    try:
        while piece := sock.recv(65536):
            found += piece
    except ConnectionResetError:
        pass
    return found


@pytest.mark.parametrize(
    "data",
    [
        b"\0" * 100,
        b"hello\r\n\r\n",
        b"GET\r\n\r\n",
        b"BREW /v1/health HTTP/1.1\r\n\r\n",
        b"GET /v1/health HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
        b"GET /v1/health HTTP/1.1\r\nHost\r\n\r\n",
        b"GET /v1/health HTTP/1.1\r\nHost: x\r\n" + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /v1/health HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(50_000)),
        b"POST /v1/operations HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/operations HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
def test_what_is_no_http(hasty: service.Service, data: bytes) -> None:
    answer = raw(hasty, data)
    assert answer[:12] in (b"", b"HTTP/1.0 400", b"HTTP/1.1 400"), answer
    assert b"Traceback" not in answer


HEAD = (
    b"POST /v1/operations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Content-Length: 100\r\n\r\n"
)
CHUNKED = HEAD.replace(b"Content-Length: 100", b"Transfer-Encoding: chunked")


@pytest.mark.parametrize(
    "data", [b"", b"GET /v1/health HTTP/1.1\r\nHo", b"GET /v1/health HTTP/1.1\r\nHost: x\r\n"]
)
def test_silence_before_the_end_of_the_head_ends_the_connection(
    hasty: service.Service, data: bytes
) -> None:
    assert raw(hasty, data) == b""


def test_a_head_that_trickles_in_does_not_hold_the_connection(hasty: service.Service) -> None:
    begun = time.monotonic()
    with service.connect(hasty.site.socket) as sock:
        sock.sendall(b"GET /v1/health HTTP/1.1\r\n")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while time.monotonic() - begun < wait.LONG:
                sock.sendall(b"X: y\r\n")
                time.sleep(0.05)


@pytest.mark.parametrize("data", [HEAD, HEAD + b'{"kind"', CHUNKED, CHUNKED + b'5\r\n{"kin'])
def test_silence_before_the_end_of_the_body_is_answered(
    attacked: service.Service, data: bytes
) -> None:
    with service.connect(attacked.site.socket) as sock:
        sock.sendall(data)
        answer = b""
        while GIVEN_UP not in answer and (piece := sock.recv(65536)):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 400")
    assert GIVEN_UP in answer


def test_a_body_that_trickles_in_is_given_up(attacked: service.Service) -> None:
    with service.connect(attacked.site.socket) as sock:
        sock.sendall(HEAD.replace(b"100", b"100000"))
        begun = time.monotonic()
        sock.setblocking(False)
        answer = b""
        while not answer and time.monotonic() - begun < wait.LONG:
            try:
                sock.send(b" ")
                answer = sock.recv(65536)
            except BlockingIOError:
                pass
            except (BrokenPipeError, ConnectionResetError):
                break
            time.sleep(0.02)
    assert GIVEN_UP in answer


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GET /v1/hea",
        b"GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n",
        HEAD,
        HEAD + b'{"kind": ',
        CHUNKED + b"5\r\n{",
        HEAD.replace(b"100", b"19") + b'{"kind": "recover"}',
    ],
)
def test_clients_that_vanish_leave_nothing(attacked: service.Service, data: bytes) -> None:
    before = limits.descriptors(attacked.pid)
    for number in range(20):
        with service.connect(attacked.site.socket) as sock:
            sock.sendall(data)
            if number % 2:  # some time for the service to be amidst it
                time.sleep(0.01)
    attacked.get("/v1/health")  # whose connection is accepted after theirs
    wait.until(lambda: limits.descriptors(attacked.pid) <= before, what="end of connections")
    wait.until(lambda: attacked.get("/v1/health")["operations"] == 0, what="end of the operations")


def test_an_operation_outlives_the_client_that_began_it(attacked: service.Service) -> None:
    own = "0123456789ef"
    body = b'{"kind": "check", "guest": "db"}'
    head = HEAD.replace(b"100", b"%d" % len(body)).replace(
        b"Host: x", b"Host: x\r\nMapsave-Operation: " + own.encode()
    )
    with service.connect(attacked.site.socket) as sock:
        sock.sendall(head + body)
    wait.until(
        lambda: attacked.request("GET", f"{OPERATIONS}/{own}").status == 200, what="the operation"
    )
    assert attacked.ended(own)["state"] == "done"


def test_a_reader_that_does_not_read_is_disconnected(hasty: service.Service) -> None:
    before = limits.descriptors(hasty.pid)
    request = b"GET /v1/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
    with contextlib.ExitStack() as stack:
        served = 0
        for _ in range(10):
            sock = stack.enter_context(service.connect(hasty.site.socket))
            # Where this takes longer than its patience, it has let go already.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(request * 100)  # some 3 MB of answers, one after the other
                served += sock.recv(12) == b"HTTP/1.1 200"
        assert served
        # Theirs stay open at our end: it is the service that lets go.
        wait.until(lambda: limits.descriptors(hasty.pid) <= before, what="end of the connections")
