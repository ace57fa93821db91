"""The hooks in examples/hooks do what they say, run as mapsave runs them."""

import asyncio
import contextlib
import fcntl
import json
import os
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from mapsave import errors
from mapsave.hooks import runner
from mapsave.service_settings import Hooks, Moment

from tests.kit import tree

EXAMPLES = tree.ROOT / "examples/hooks"
FACTS = {"guest": "web01", "outcome": None, "error": None}


def example(directory: Path, name: str, old: str, new: Path | str) -> Hooks:
    """Put an example where hooks are, with one of its settings changed."""
    text = (EXAMPLES / name).read_text()
    assert text.count(old) == 1
    path = directory / name
    path.write_text(text.replace(old, str(new)))
    path.chmod(0o755)
    names = (name,)
    return Hooks(directory, before_save=names, after_save=names, before_restore=names)


@pytest.mark.parametrize("path", sorted(EXAMPLES.iterdir()), ids=lambda path: path.name)
def test_examples_can_be_parsed_and_run(path: Path) -> None:
    first, text = path.read_text().splitlines()[0], path.read_text()
    assert os.access(path, os.X_OK)
    if first == "#!/usr/bin/python3":
        compile(text, path, "exec")
    else:
        assert first == "#!/bin/sh"
        subprocess.run(["bash", "-n", path], check=True)


async def test_a_save_waits_for_the_backup(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    configured = example(tmp_path, "not-during-backup", "/run/lock/backup.lock", lock)
    await runner.run(configured, "before_save", FACTS)
    with lock.open("w") as held:
        await runner.run(configured, "before_save", FACTS)
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(errors.HookRefused, match=rf"said no: the backup holds {lock}; web01"):
            await runner.run(configured, "before_save", FACTS)


@contextlib.asynccontextmanager
async def pinged() -> AsyncIterator[tuple[str, list[tuple[str, str]]]]:
    """Yield an address, and what came there: path and body."""
    came: list[tuple[str, str]] = []

    async def answer(request: web.Request) -> web.Response:
        came.append((request.path, await request.text()))
        return web.Response()

    application = web.Application()
    application.router.add_post("/{tail:.*}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/ping", came
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"outcome": "success"}, ("/ping", "web01: success")),
        (
            {"outcome": "failure", "error": {"id": "save.failed", "message": "disk full"}},
            ("/ping/fail", "web01: failure: disk full [save.failed]"),
        ),
    ],
)
async def test_a_monitor_is_pinged(
    tmp_path: Path, facts: dict[str, Any], expected: tuple[str, str]
) -> None:
    address = tmp_path / "url"
    configured = example(tmp_path, "healthcheck", "/etc/mapsave/healthcheck.url", address)
    async with pinged() as (url, came):
        address.write_text(url + "\n")
        await runner.run(configured, "after_save", {**FACTS, **facts})
    assert came == [expected]


@contextlib.asynccontextmanager
async def guest_agent(path: Path, refuses: bool) -> AsyncIterator[list[dict[str, Any]]]:
    """Serve what set-clock asks as QEMU's guest agent does, and yield what it was asked.

    Its own program would set the clock of this host.
    """
    asked: list[dict[str, Any]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'{"return": 7}\n')  # the answer that an earlier client did not wait for
        while line := await reader.readline():
            command = json.loads(line.removeprefix(b"\xff"))
            asked.append(command)
            if command["execute"] == "guest-sync-delimited":
                writer.write(b'\xff{"return": %d}\n' % command["arguments"]["id"])
            elif refuses:
                writer.write(b'{"error": {"class": "GenericError", "desc": "no clock"}}\n')
            else:
                writer.write(b'{"return": {}}\n')
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    async with server:
        yield asked


@pytest.mark.parametrize("refuses", [False, True])
async def test_the_clock_of_a_restored_guest_is_set(tmp_path: Path, refuses: bool) -> None:
    moment: Moment = "before_restore"  # where a failure is not only a line in the log
    configured = example(tmp_path, "set-clock", "/run/qemu/{guest}.qga", f"{tmp_path}/{{guest}}")
    before = time.time_ns()
    async with guest_agent(tmp_path / "web01", refuses) as asked:
        if refuses:
            with pytest.raises(errors.HookRefused, match="the guest agent refuses: no clock"):
                await runner.run(configured, moment, FACTS)
        else:
            await runner.run(configured, moment, FACTS)
    assert [each["execute"] for each in asked] == ["guest-sync-delimited", "guest-set-time"]
    assert before <= asked[1]["arguments"]["time"] <= time.time_ns()
