"""Saves and restores of emulated guests with hooks around them, in this process and by command."""

import asyncio
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mapsave import errors
from mapsave.config import Config, Guest
from mapsave.hooks import around
from mapsave.operations import journal, restore_request, save_request

from tests.jobs.scene import Scene
from tests.kit import cli, processes, qmp, wait


@pytest.fixture
def scene(site: cli.Site) -> Scene:
    return Scene(site)


def asked(config: Config, guest: Guest, **chosen: Any) -> save_request.Request:
    return save_request.request(config, guest, image="one", **chosen)


def run_state(socket: Path) -> str:
    with qmp.connect(socket) as monitor:
        return str(monitor.execute("query-status")["status"])


async def save(scene: Scene, **chosen: Any) -> dict[str, Any]:
    config = scene.config()
    guest = config.guest("web01")
    return (await around.save(guest, config, asked(config, guest, **chosen))).as_dict()


async def test_hooks_of_a_save(scene: Scene) -> None:
    with scene.guest():
        watch = journal.Watch("0123456789ab", lambda step, data: None)
        with journal.watched(watch):
            done = await save(scene, then="leave", job="nightly")
    before, after = scene.told()
    assert before.pop("mapsave") == after.pop("mapsave")
    assert before == {
        "moment": "before_save",
        "operation": "0123456789ab",
        "guest": "web01",
        "job": "nightly",
        "image": str(scene.site.images / "one"),
        "domain": None,
        "uri": None,
        "socket": str(scene.site.directory / "web01.qmp"),
        "outcome": None,
        "result": None,
        "error": None,
    }
    expected = {
        "moment": "after_save",
        "outcome": "success",
        "result": json.loads(json.dumps(done)),
    }
    assert after == {**before, **expected}


async def test_an_operation_that_nobody_watches_has_no_id(scene: Scene) -> None:
    assert journal.watching() is None
    with scene.guest():
        await save(scene)
    assert [each["operation"] for each in scene.told()] == [None, None]


def test_commands_run_the_hooks(scene: Scene) -> None:
    with scene.guest():
        saved = scene.site.run("save", "web01", "--json", check=0).json()
    scene.site.add_guest("web01", emulator={"memory": "16M"})
    done = scene.site.run("restore", saved["image"], "--json", check=0).json()
    try:
        assert scene.moments() == [
            ("before_save", None),
            ("after_save", "success"),
            ("before_restore", None),
            ("after_restore", "success"),
        ]
        unnamed, _, before, after = scene.told()
        assert unnamed["image"] is None
        assert (before["image"], before["guest"]) == (saved["image"], None)
        assert (after["image"], after["guest"]) == (saved["image"], "web01")
        assert done["warm"]["why_not"] == "no working set is recorded"
        assert after["result"] == {**done, "warm": None}  # which the hook does not wait for
        assert (before["socket"], f"qmp:{after['socket']}") == (None, done["monitor"])
    finally:
        processes.end(done["pid"])


def test_a_hook_before_refuses_and_nothing_is_touched(scene: Scene) -> None:
    (scene.here / "no-before_save").touch()
    with scene.guest() as socket:
        result = scene.site.run("save", "web01", "--json", check=3)
        with qmp.connect(socket) as monitor:
            assert monitor.execute("query-status")["status"] == "running"
            assert "status" not in monitor.execute("query-migrate")
    assert result.error_id() == "hook.refused"
    assert "not today" in result.error()["message"]
    assert list(scene.site.images.iterdir()) == []
    assert scene.moments() == [("before_save", None), ("on_failure", "failure")]
    assert scene.told()[1]["error"] == result.error()


def test_a_hook_before_refuses_a_restore(scene: Scene) -> None:
    with scene.guest():
        saved = scene.site.run("save", "web01", "--json", check=0).json()
    (scene.here / "no-before_restore").touch()
    scene.site.add_guest("web01", emulator={"memory": "16M"})
    result = scene.site.run("restore", saved["image"], "--json", check=3)
    assert result.error_id() == "hook.refused"
    assert scene.moments()[2:] == [("before_restore", None), ("on_failure", "failure")]
    shown = scene.site.run("inspect", saved["image"], "--json", check=0).json()
    assert shown["state"] == "saved"


def test_a_hook_behind_does_not_change_the_outcome(scene: Scene) -> None:
    (scene.here / "no-after_save").touch()
    with scene.guest():
        result = scene.site.run("save", "web01", "--json", check=0)
    assert "hook 'note' of after_save failed with exit status 1: not today" in result.stderr
    assert scene.moments() == [("before_save", None), ("after_save", "success")]


async def test_on_failure_is_told_the_error(scene: Scene, tmp_path: Path) -> None:
    scene.site.add_guest("web01", tmp_path / "nobody.qmp")
    with pytest.raises(errors.Unreachable) as caught:
        await save(scene)
    assert scene.moments() == [("before_save", None), ("on_failure", "failure")]
    assert scene.told()[1]["error"] == caught.value.as_dict()

    request = restore_request.Request("nowhere")
    with pytest.raises(errors.ImageNotFound) as missing:
        await around.restore(scene.config(), request)
    assert scene.moments()[2:] == [("before_restore", None), ("on_failure", "failure")]
    assert scene.told()[3]["error"] == missing.value.as_dict()


async def test_a_bug_is_told_as_one(scene: Scene) -> None:
    async def work() -> dict[str, Any]:
        raise ZeroDivisionError("of mine")

    with pytest.raises(ZeroDivisionError):
        await around._around("save", scene.config(), {}, {}, work)
    assert scene.told()[1]["error"]["id"] == "internal"
    assert "unexpected ZeroDivisionError: of mine" in scene.told()[1]["error"]["message"]


async def test_cancelled_in_the_middle_of_the_save(scene: Scene) -> None:
    with scene.guest("--throttle", "64K") as socket:
        saving = asyncio.ensure_future(save(scene))
        partials = scene.site.images
        await asyncio.to_thread(
            wait.until, lambda: list(partials.glob("*.partial")), what="partial image"
        )
        saving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await saving
        assert run_state(socket) == "running"
    assert scene.moments() == [("before_save", None), ("on_failure", "cancelled")]
    assert scene.told()[1]["error"]["id"] == "interrupted"
    assert list(partials.iterdir()) == []


async def test_cancelled_while_a_hook_before_runs(scene: Scene) -> None:
    (scene.here / "hang-before_save").touch()
    with scene.guest() as socket:
        saving = asyncio.ensure_future(save(scene))
        await scene.until("before_save")
        saving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await saving
        assert run_state(socket) == "running"
    assert scene.moments() == [("before_save", None), ("on_failure", "cancelled")]


async def test_cancelled_behind_the_save_it_is_done(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """Who cancels then must not be told that everything was rolled back: the guest has ended."""
    (scene.here / "hang-after_save").touch()
    with scene.guest():
        saving = asyncio.ensure_future(save(scene))
        await scene.until("after_save")
        saving.cancel()
        done = await saving
        assert saving.cancelling() == 0
    assert done["image"] == str(scene.site.images / "one")
    assert scene.moments() == [("before_save", None), ("after_save", "success")]
    (warning,) = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert "hooks of after_save were cancelled" in warning.getMessage()


async def test_cancelled_behind_a_failure_the_failure_is_told(scene: Scene, tmp_path: Path) -> None:
    (scene.here / "hang-on_failure").touch()
    scene.site.add_guest("web01", tmp_path / "nobody.qmp")
    saving = asyncio.ensure_future(save(scene))
    await scene.until("on_failure")
    saving.cancel()
    with pytest.raises(errors.Unreachable):
        await saving


async def test_hooks_of_the_job_run_behind_those_of_the_configuration(scene: Scene) -> None:
    extra = scene.hooks.directory / "extra"
    extra.write_text(
        f'#!/bin/sh\necho \'{{"moment": "extra", "outcome": null}}\' >>{scene.here}/told\n'
    )
    extra.chmod(0o755)
    config = scene.config()
    with scene.guest():
        config = scene.config()
        guest = config.guest("web01")
        request = asked(config, guest)
        await around.save(guest, config, request, more={"after_save": ("extra",)})
    assert [each for each, _ in scene.moments()] == ["before_save", "after_save", "extra"]


def test_without_hooks_nothing_of_them_is_loaded() -> None:
    program = (
        "import asyncio, sys; from mapsave.hooks import around\n"
        "from pathlib import Path; from mapsave.config import Config\n"
        "config = Config(*[Path('nowhere')] * 4)\n"
        "from mapsave.operations.results import RestoreResult\n"
        "facts = dict.fromkeys(('image', 'guest', 'downtime_s', 'run_state', 'monitor'))\n"
        "result = RestoreResult(**facts)\n"
        "async def work(): return result\n"
        "done = asyncio.run(around._around('save', config, {}, {}, work))\n"
        "print(done == result)\n"
        "print({'mapsave.hooks.runner', 'mapsave.hooks.process'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout == b"True\nset()\n"
