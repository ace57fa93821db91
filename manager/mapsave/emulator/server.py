"""The QMP socket: one client at a time, the next ones wait in the backlog.

The main loop reads requests, has the session answer them, and sends replies and events in the
order in which they arose; events come from the migration thread as well.
"""

import array
import contextlib
import json
import os
import re
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from mapsave import unix_socket
from mapsave.emulator.commands import Emulated
from mapsave.emulator.session import Session

_ANCILLARY = socket.CMSG_SPACE(253 * 4)  # bytes; SCM_MAX_FD of the kernel is 253
_OOB_QUEUE = 8  # requests that QEMU's monitor thread reads ahead once OOB is enabled


class Server:
    """Serves one machine; implements what :class:`mapsave.emulator.machine.Monitor` asks for."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._out = bytearray()
        self._client: socket.socket | None = None
        self._session: Session | None = None
        self._requests: deque[object] = deque()
        self._deferred: deque[Callable[[], None]] = deque()
        self._exit_code: int | None = None

    def emit(self, event: str, data: dict[str, object] | None = None) -> None:
        """Queue an event for the client, if there is one that has negotiated."""
        now = time.time_ns() // 1000
        stamp = {"seconds": now // 1_000_000, "microseconds": now % 1_000_000}
        message: dict[str, object] = {"timestamp": stamp, "event": event}
        if data is not None:
            message["data"] = data
        with self._lock:
            if self._session is not None and self._session.negotiated:
                self._queue(message)
        self.wake()

    def defer(self, work: Callable[[], None]) -> None:
        self._deferred.append(work)
        self.wake()

    def shut_down(self, exit_code: int) -> None:
        self._exit_code = exit_code
        self.wake()

    def wake(self) -> None:
        """Let the main loop look around; safe in any thread and in signal handlers."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self._wake, 1)

    def serve(self, emulated: Emulated) -> int:
        """Serve clients until the machine is shut down; return the exit code."""
        while self._exit_code is None:
            self._wait()
            if self._client is None:
                self._accept(emulated)
            else:
                self._receive()
            self._flush()
            while self._deferred and self._exit_code is None:
                self._deferred.popleft()()
                self._flush()
        self._flush()
        self._disconnect()
        return self._exit_code

    def _wait(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake, selectors.EVENT_READ)
            writes = selectors.EVENT_WRITE if self._client and self._out else 0
            selector.register(self._client or self._listener, selectors.EVENT_READ | writes)
            selector.select()
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)

    def _accept(self, emulated: Emulated) -> None:
        try:
            client, _ = self._listener.accept()
        except BlockingIOError:
            return
        client.setblocking(False)
        with self._lock:
            self._client, self._session = client, Session(emulated)
            self._queue(self._session.greeting)

    def _receive(self) -> None:
        """Read what is there and answer it.

        Without OOB each message is answered before the next is read. With OOB QEMU reads ahead, so
        that a descriptor sent with a second ``add-fd`` replaces that of the first.
        """
        assert self._session is not None
        for data, fds in self._chunks():
            if not data:
                self._disconnect()
                return
            self._requests.extend(self._session.receive(data, fds))
            if not self._session.oob or len(self._requests) >= _OOB_QUEUE:
                self._answer_all()
        self._answer_all()

    def _answer_all(self) -> None:
        while self._requests and self._exit_code is None:
            assert self._session is not None
            reply = self._session.answer(self._requests.popleft())
            with self._lock:
                self._queue(reply)

    def _chunks(self) -> Iterator[tuple[bytes, list[int]]]:
        """Yield descriptors and the data they came with, up to the next ones; empty is the end.

        Like QEMU it reads byte by byte: more at once would join what was sent before a descriptor
        to what came with it, and so lose the descriptor before.
        """
        data, fds = bytearray(), list[int]()
        while self._client is not None and self._exit_code is None and not self._deferred:
            try:
                byte, new = self._read_byte(self._client)
            except BlockingIOError:
                break
            if (new or not byte) and data:
                yield bytes(data), fds
                data, fds = bytearray(), []
            if not byte:
                yield b"", new
                return
            data += byte
            fds += new
        if data:
            yield bytes(data), fds

    @staticmethod
    def _read_byte(client: socket.socket) -> tuple[bytes, list[int]]:
        """Return the next byte and the descriptors that came with it; no byte at the end."""
        try:
            data, ancillary, _, _ = client.recvmsg(1, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            return b"", []
        fds = array.array("i")
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
        return data, fds.tolist()

    def _queue(self, message: dict[str, object]) -> None:
        self._out += encode(message) + b"\r\n"

    def _flush(self) -> None:
        with self._lock:
            if self._client is None:
                self._out.clear()
                return
            try:
                while self._out:
                    del self._out[: self._client.send(self._out)]
            except BlockingIOError:
                pass
            except ConnectionError:
                self._out.clear()

    def _disconnect(self) -> None:
        with self._lock:
            if self._client is not None:
                self._client.close()
            if self._session is not None:
                self._session.close()
            self._client = self._session = None
            self._requests.clear()
            self._out.clear()


def encode(message: dict[str, object]) -> bytes:
    """Return ``message`` as QEMU writes it: ASCII, with escapes in capital digits."""
    text = json.dumps(message)
    return re.sub(r"\\u[0-9a-f]{4}|\\.", _capital, text).encode()


def _capital(match: re.Match[str]) -> str:
    return match[0][:2] + match[0][2:].upper()


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """Listen at ``path``, in place of a stale socket; unlink it at the end. Raises OSError."""
    with socket.socket(socket.AF_UNIX) as listener:
        if path.is_socket():
            path.unlink()
        with unix_socket.to_bind(path) as address:
            listener.bind(address)
        listener.listen(8)
        listener.setblocking(False)
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)
