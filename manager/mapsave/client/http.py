"""One HTTP request and its answer, over a connection made for nothing else.

``http.client`` would load TLS and the parsers of e-mail, which takes longer than most requests. The
request is one of HTTP/1.0 (RFC 1945): the answer is not in chunks, and ends with the connection
where it does not say its length.
"""

import io
import socket
from collections.abc import Iterator, Mapping, Sequence

MOST_HEAD = 64 << 10  # bytes of status line and headers
ENDS_HEAD = (b"\r\n", b"\n")


def request(method: str, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """Return a request; ``path`` and ``headers`` are ASCII without control characters."""
    fields = {"Host": "localhost", **headers, "Content-Length": str(len(body))}
    lines = [f"{method} {path} HTTP/1.0", *(f"{name}: {fields[name]}" for name in fields), "", ""]
    return "\r\n".join(lines).encode("ascii") + body


def send(
    sock: socket.socket, method: str, path: str, headers: Mapping[str, str], body: bytes
) -> None:
    """Send a request, as ``request`` makes it. Raises OSError."""
    sock.sendall(request(method, path, headers, body))


class Head:
    """Status line and headers of an answer, from their lines.

    Raises ConnectionError, which is an OSError, where that is not an answer.
    """

    def __init__(self, lines: Sequence[bytes]) -> None:
        status = lines[0].split()[1:2] if lines and lines[0].startswith(b"HTTP/1.") else []
        if not (status and status[0].isdigit()):
            raise ConnectionError("the answer is not HTTP")
        fields = dict(line.lower().split(b":", 1) for line in lines[1:] if b":" in line)
        self.status = int(status[0])
        self._length = fields.get(b"content-length", b"").strip()

    @property
    def length(self) -> int:
        """Bytes of the body. Raises ConnectionError where the answer does not say it."""
        if not self._length.isdigit():
            raise ConnectionError("the answer does not say its length")
        return int(self._length)


def cut(where: str) -> ConnectionError:
    """Return the error for a connection that was closed ``where``."""
    return ConnectionError(f"the connection was closed {where} the answer")


class Answer:
    """An answer whose head has been read from ``stream``; its body is read once.

    Raises OSError; ConnectionError, which is one, where what comes is not an answer.
    """

    def __init__(self, stream: io.BufferedReader) -> None:
        lines, room = [], MOST_HEAD
        while (line := stream.readline(room)) not in ENDS_HEAD:
            if not line.endswith(b"\n"):
                raise cut("before")
            lines.append(line)
            room -= len(line)
        self._head = Head(lines)
        self._stream = stream

    @property
    def status(self) -> int:
        """The status code."""
        return self._head.status

    def read(self) -> bytes:
        """Return the body, of the length that the answer says; raises as above if it is not all."""
        length = self._head.length
        body = self._stream.read(length)
        if len(body) < length:
            raise cut("within")
        return body

    def lines(self) -> Iterator[bytes]:
        """Yield the lines of a body that goes on, until the connection is closed."""
        return iter(self._stream)
