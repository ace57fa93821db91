"""The hooks in examples/hooks do what they say, run as mapsave runs them."""

import asyncio
import base64
import contextlib
import fcntl
import json
import os
import re
import shutil
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

from tests.kit import need, tree

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
async def guest_agent(
    path: Path, *, refuses: bool = False, exit_code: int = 0
) -> AsyncIterator[list[dict[str, Any]]]:
    """Serve what set-clock asks as QEMU's guest agent does, and yield what it was asked.

    Its own program would set the clock of this host.
    """
    asked: list[dict[str, Any]] = []
    failed = base64.b64encode(b"no hostname").decode()
    status = {"exited": True, "exitcode": exit_code, "err-data": failed if exit_code else ""}
    results = {"guest-exec": {"pid": 5}, "guest-exec-status": status}

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
                writer.write(json.dumps({"return": results.get(command["execute"], {})}).encode())
                writer.write(b"\n")
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    async with server:
        yield asked


@pytest.mark.parametrize("refuses", [False, True])
async def test_the_clock_of_a_restored_guest_is_set(tmp_path: Path, refuses: bool) -> None:
    moment: Moment = "before_restore"  # where a failure is not only a line in the log
    configured = example(tmp_path, "set-clock", "/run/qemu/{guest}.qga", f"{tmp_path}/{{guest}}")
    before = time.time_ns()
    async with guest_agent(tmp_path / "web01", refuses=refuses) as asked:
        if refuses:
            with pytest.raises(errors.HookRefused, match="the guest agent refuses: no clock"):
                await runner.run(configured, moment, FACTS)
        else:
            await runner.run(configured, moment, FACTS)
    assert [each["execute"] for each in asked] == ["guest-sync-delimited", "guest-set-time"]
    assert before <= asked[1]["arguments"]["time"] <= time.time_ns()


async def test_a_clone_gets_an_identity(tmp_path: Path) -> None:
    """Its machine id is made here: clones have the same random numbers at first."""
    configured = example(tmp_path, "set-clock", "/run/qemu/{guest}.qga", f"{tmp_path}/{{guest}}")
    facts = {**FACTS, "guest": "web01-2", "clone_of": "web01"}
    ids = set()
    for _ in range(2):
        async with guest_agent(tmp_path / "web01-2") as asked:
            await runner.run(configured, "before_restore", facts)
        commands = [each["execute"] for each in asked[1:]]
        assert commands == ["guest-set-time", "guest-exec", "guest-exec-status"]
        options = asked[2]["arguments"]
        assert options["arg"][-2] == "web01-2"
        ids.add(options["arg"][-1])
        assert re.fullmatch("[0-9a-f]{32}", options["arg"][-1])
        assert len(base64.b64decode(options["input-data"])) == 64
        assert asked[3]["arguments"] == {"pid": 5}
    assert len(ids) == 2
    await _run("bash", "-nc", options["arg"][1])


async def test_a_clone_that_gets_no_identity_is_told(tmp_path: Path) -> None:
    configured = example(tmp_path, "set-clock", "/run/qemu/{guest}.qga", f"{tmp_path}/{{guest}}")
    facts = {**FACTS, "guest": "web01-2", "clone_of": "web01"}
    async with guest_agent(tmp_path / "web01-2", exit_code=127):
        with pytest.raises(errors.HookRefused, match="has the identity of web01: no hostname"):
            await runner.run(configured, "before_restore", facts)


async def _run(*words: str | Path) -> str:
    """Run a command, and return what it prints."""
    how = {"check": True, "stdout": subprocess.PIPE, "text": True}
    return str((await asyncio.to_thread(subprocess.run, words, **how)).stdout)


async def test_a_clone_gets_a_disk(tmp_path: Path) -> None:
    """None that is there is written over, and a guest that is restored keeps its own."""
    need.skip_if(None if shutil.which("qemu-img") else "there is no qemu-img")
    text = (EXAMPLES / "clone-disk").read_text()
    hook = tmp_path / "clone-disk"
    hook.write_text(text.replace("/srv/", f"{tmp_path}/"))
    hook.chmod(0o755)
    configured = Hooks(tmp_path, before_restore=(hook.name,))
    (tmp_path / "clones").mkdir()
    disk = tmp_path / "web01.qcow2"
    await _run("qemu-img", "create", "-q", "-f", "qcow2", disk, "1M")
    await runner.run(configured, "before_restore", FACTS)
    assert not list((tmp_path / "clones").iterdir())
    facts = {**FACTS, "guest": "web01-2", "clone_of": "web01"}
    await runner.run(configured, "before_restore", facts)
    (overlay,) = (tmp_path / "clones").iterdir()
    assert f"backing file: {disk}" in await _run("qemu-img", "info", overlay)
    # Of a clone that failed: it is as it was at the save.
    await runner.run(configured, "before_restore", facts)
    await _run("qemu-io", "-c", "write 0 512", overlay)
    with pytest.raises(errors.HookRefused, match=r"web01-2.qcow2 is there already"):
        await runner.run(configured, "before_restore", facts)
