"""Both clients with what a service should not answer: no wait is without a limit."""

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mapsave import errors
from mapsave.client import AsyncClient, Client, Event

from tests.kit import wait

SHORT = 0.2
HEAD = b"HTTP/1.0 200 OK\r\n"


@contextlib.contextmanager
def answering(path: Path, answer: bytes, *, hangs: bool = False) -> Iterator[None]:
    """Answer each request at ``path`` with ``answer``, and hang up, unless it ``hangs``."""
    held = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            with contextlib.suppress(OSError):  # the end of the test
                while True:
                    client, _ = server.accept()
                    client.recv(65536)
                    client.sendall(answer)
                    held.append(client)
                    if not hangs:
                        client.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(30)
            for client in held:
                client.close()


async def health(kind: type[Client | AsyncClient], path: Path) -> Any:
    client = kind(str(path), timeout=SHORT)
    if isinstance(client, AsyncClient):
        return await client.health()
    return await asyncio.to_thread(client.health)


async def events(
    kind: type[Client | AsyncClient], path: Path, timeout: float = SHORT
) -> list[Event]:
    client = kind(str(path), timeout=timeout)
    if isinstance(client, AsyncClient):
        return [event async for event in client.events("0123")]
    return await asyncio.to_thread(lambda: list(client.events("0123")))


KINDS = pytest.mark.parametrize("kind", [Client, AsyncClient])


@KINDS
@pytest.mark.parametrize("ask", [health, events])
@pytest.mark.parametrize(
    "answer",
    [
        b"",
        HEAD,
        HEAD + b"\r\n",
        HEAD + b"Content-Length: 5\r\n\r\n[1, ",
        HEAD + b"Content-Length: 3\r\n\r\n[1]",
        HEAD + b"Content-Length: 3\r\n\r\n{1}",
        b"SSH-2.0-OpenSSH_10.0\r\n",
        b"HTTP/1.0 500 x\r\nContent-Length: 2\r\n\r\n{",
        HEAD + b"x: y\r\n" * 20_000,
        HEAD + b"\r\nevent: operation\ndata: {\n\n",
    ],
)
@pytest.mark.parametrize("hangs", [False, True])
async def test_what_is_not_an_answer(
    kind: type[Client | AsyncClient],
    ask: Callable[..., Any],
    answer: bytes,
    hangs: bool,
    tmp_path: Path,
) -> None:
    with answering(tmp_path / "s", answer, hangs=hangs), pytest.raises(errors.ServiceUnreachable):
        await ask(kind, tmp_path / "s")


@KINDS
async def test_an_event_of_any_length(kind: type[Client | AsyncClient], tmp_path: Path) -> None:
    data = json.dumps({"state": "done", "result": "x" * 300_000})
    lines = f"event: operation\ndata: {data}\n\n".encode()
    with answering(tmp_path / "s", HEAD + b"\r\n" + lines):
        (event,) = await events(kind, tmp_path / "s", wait.LONG)
    assert len(event.data["result"]) == 300_000
