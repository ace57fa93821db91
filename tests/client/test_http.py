"""A request and its answer: all of it, or an error, wherever the connection ends."""

import io
import socket
import threading

import pytest
from mapsave.client import http

from tests.kit import wait

HEAD = b"HTTP/1.0 202 Accepted\r\nServer: any\r\ncontent-length: 11\r\nX: Content-Length: 1\r\n\r\n"
BODY = b'{"a": "\xc3\xa4"}'


def exchanged(answer: bytes, body: bytes = b"") -> tuple[int, bytes, bytes]:
    """Return status and body that are made of ``answer``, and the request that was sent."""
    ours, theirs = socket.socketpair()
    requests: list[bytes] = []

    def serve() -> None:
        with theirs:
            requests.append(theirs.recv(4096))
            theirs.sendall(answer)

    with ours:
        ours.settimeout(wait.LONG)
        server = threading.Thread(target=serve)
        server.start()
        try:
            http.send(ours, "POST", "/v1/a?b=c", {"Name": "value"}, body)
            with ours.makefile("rb") as stream:
                found = http.Answer(stream)
                return found.status, found.read(), requests[0]
        finally:
            server.join()


def test_request_and_answer() -> None:
    status, found, request = exchanged(HEAD + BODY, b"{}")
    assert (status, found) == (202, BODY)
    lines = request.decode().split("\r\n")
    assert lines[0] == "POST /v1/a?b=c HTTP/1.0"
    assert sorted(lines[1:4]) == ["Content-Length: 2", "Host: localhost", "Name: value"]
    assert lines[4:] == ["", "{}"]


def test_what_follows_the_answer_is_not_of_it() -> None:
    assert exchanged(HEAD + BODY + b"more")[1] == BODY


def test_answer_that_goes_on_is_read_by_lines() -> None:
    stream = io.BufferedReader(io.BytesIO(b"HTTP/1.0 200 OK\r\n\r\na\n\nb"))
    assert list(http.Answer(stream).lines()) == [b"a\n", b"\n", b"b"]


@pytest.mark.parametrize("length", range(len(HEAD + BODY)))
def test_cut_anywhere(length: int) -> None:
    with pytest.raises(ConnectionError, match="closed"):
        exchanged((HEAD + BODY)[:length])


@pytest.mark.parametrize(
    "answer",
    [
        b"\r\n\r\n",
        b"SSH-2.0-OpenSSH_10.0\r\n\r\n",
        b"HTTP/1.0\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.0 OK 200\r\nContent-Length: 0\r\n\r\n",
        HEAD.replace(b"11", b"-1") + BODY,
        HEAD.replace(b"11", b"0x0b") + BODY,
        HEAD.replace(b"content-length", b"length") + BODY,
        b"HTTP/1.0 200 OK\r\n" + b"Name: value\r\n" * 6000 + b"Content-Length: 0\r\n\r\n",
        b"HTTP/1.0 200 " + b"O" * 70_000,
    ],
)
def test_what_is_not_an_answer(answer: bytes) -> None:
    with pytest.raises(ConnectionError):
        exchanged(answer)
