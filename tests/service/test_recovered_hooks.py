"""What hooks after an operation are told where mapsave died of it: by the next one, and once."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults import struck
from tests.jobs.scene import Scene
from tests.kit import cli, emulated, service, wait
from tests.service import interrupted

NAME = "web01"
IMAGE = "one.mapsave"
SAVE = ("save", NAME, "--image", IMAGE)


@pytest.fixture
def scene(site: cli.Site) -> Scene:
    return Scene(site)


@pytest.fixture
def guest(scene: Scene) -> Iterator[Path]:
    with emulated.guest(scene.site, NAME) as socket:
        yield socket


def told_last(scene: Scene) -> dict[str, Any]:
    """Return what the hook after the operation was told, the only one that recovery has run."""
    told = scene.told()
    assert [each.get("recovered") for each in told[:-1]] == [None] * (len(told) - 1)
    assert told[-1]["recovered"] is True
    return told[-1]


def nothing_to_recover(scene: Scene) -> None:
    """Fail where a further recovery would run a hook again."""
    before = scene.moments()
    assert not struck.journals(scene.site)
    shown = scene.site.run("recover", "--local", check=0).stdout
    assert shown == "nothing to recover\n"
    assert scene.moments() == before


@pytest.mark.parametrize(
    ("step", "moment", "outcome", "state"),
    [
        ("pause", "on_failure", "cancelled", "cancelled"),
        ("committed", "after_save", "success", "done"),
    ],
)
def test_the_next_service_runs_them_where_one_was_killed(
    scene: Scene, guest: Path, step: str, moment: str, outcome: str, state: str
) -> None:
    with interrupted.survived(scene.site, "after", step, *SAVE) as (waiting, mapsaved):
        interrupted.outcome(waiting)
        interrupted.await_recovery(mapsaved)
        operation = interrupted.the_only(mapsaved, kind="save")
        assert operation["state"] == state
        interrupted.nothing_left(mapsaved)
        if outcome == "cancelled":
            assert emulated.status(guest) == "running"
    assert scene.moments() == [("before_save", None), (moment, outcome)]
    before, behind = scene.told()
    image = str(scene.site.images / IMAGE)
    assert (behind["operation"], behind["guest"], behind["image"]) == (operation["id"], NAME, image)
    assert behind.keys() == before.keys() | {"recovered"}
    assert told_last(scene)["result"] == operation["result"]
    if outcome == "cancelled":
        assert behind["error"]["id"] == "interrupted"
        assert behind["error"]["message"] == "mapsave exited during the operation; save rolled back"
    nothing_to_recover(scene)


@pytest.mark.parametrize(
    ("moment", "state", "behind"),
    [
        ("before_save", "cancelled", [("on_failure", "cancelled")]),
        ("after_save", "done", [("after_save", "success")] * 2),
    ],
)
@pytest.mark.usefixtures("guest")
def test_killed_in_a_hook(
    scene: Scene, moment: str, state: str, behind: list[tuple[str, str]]
) -> None:
    """What one before had begun, to freeze file systems, is ended; one behind is run again."""
    hang = scene.here / f"hang-{moment}"
    hang.touch()
    with service.running(scene.site) as doomed:
        begun = doomed.begin(kind="save", guest=NAME)["id"]
        asyncio.run(scene.until(moment))
        doomed.kill()
    hang.unlink()
    with service.running(scene.site) as mapsaved:
        assert mapsaved.ended(begun)["state"] == state
        interrupted.await_recovery(mapsaved)
    assert scene.moments() == [("before_save", None), *behind]
    last = told_last(scene)
    assert (last["operation"], last["guest"]) == (begun, NAME)
    if moment == "after_save":
        assert last == {**scene.told()[-2], "recovered": True}
    nothing_to_recover(scene)


@pytest.mark.usefixtures("guest")
def test_a_recovery_that_is_killed_in_a_hook_leaves_it_to_the_next(scene: Scene) -> None:
    struck.run(scene.site, "after", "committed", "KILL", *SAVE)
    hang = scene.here / "hang-after_save"
    hang.touch()
    with scene.site.start("recover") as doomed:
        asyncio.run(scene.until("after_save"))
        doomed.kill()
        doomed.wait(wait.LONG)
    hang.unlink()
    line = scene.site.run("recover", check=0).stdout
    assert line == f"save of {NAME}, interrupted at 'after_save': its hooks were run\n"
    first, again = scene.told()[1:]
    assert first == again
    assert first["outcome"] == "success"
    nothing_to_recover(scene)


def test_the_command_line_recovers_with_them(scene: Scene, guest: Path) -> None:
    site = scene.site
    struck.run(site, "after", "pause", "KILL", *SAVE)
    dry = site.run("recover", "--dry-run", "--json", check=0).json()
    assert len(dry["operations"]) == 1
    assert scene.moments() == [("before_save", None)]
    site.run("recover", check=0)
    assert scene.moments() == [("before_save", None), ("on_failure", "cancelled")]
    assert told_last(scene)["operation"] is None
    assert emulated.status(guest) == "running"
    nothing_to_recover(scene)

    site.run(*SAVE, check=0)
    struck.run(site, "after", "run", "KILL", "restore", IMAGE)
    site.run("recover", check=0)
    assert scene.moments()[2:] == [
        ("before_save", None),
        ("after_save", "success"),
        ("before_restore", None),
        ("after_restore", "success"),
    ]
    after = scene.told()[-1]
    assert (after["recovered"], after["guest"]) == (True, NAME)
    assert after["result"]["run_state"] == "running"
    nothing_to_recover(scene)


@pytest.mark.usefixtures("guest")
def test_hooks_of_a_job_are_run_behind_those_of_the_configuration(scene: Scene) -> None:
    extra = scene.hooks.directory / "extra"
    extra.write_text(f"#!/bin/sh\n{{ cat; echo; }} >>{scene.here}/told\n")
    extra.chmod(0o755)
    job = scene.site.directory / "job.yaml"
    hooks = {"on_failure": ["extra"]}
    job.write_text(json.dumps({"job": "nightly", "guests": [NAME], "hooks": hooks}))
    struck.run(scene.site, "after", "pause", "KILL", "job", "run", job)
    scene.site.run("recover", check=0)
    before, behind, of_the_job = scene.told()
    assert [before["moment"], behind["moment"]] == ["before_save", "on_failure"]
    assert behind == of_the_job
    assert (behind["job"], behind["recovered"]) == ("nightly", True)
    nothing_to_recover(scene)


@pytest.mark.usefixtures("guest")
def test_a_hook_that_fails_is_a_warning(scene: Scene) -> None:
    struck.run(scene.site, "after", "pause", "KILL", *SAVE)
    (scene.here / "no-on_failure").touch()
    result = scene.site.run("recover", check=0)
    assert "hook 'note' of on_failure failed with exit status 1: not today" in result.stderr
    assert told_last(scene)["outcome"] == "cancelled"
    nothing_to_recover(scene)


@pytest.mark.parametrize("where", ["before", "after"])
def test_what_died_between_its_save_and_the_hooks_is_told_as_saved(
    scene: Scene, guest: Path, where: str
) -> None:
    """The image tells: the journal of the save is gone, and nothing of hooks was written yet."""
    struck.run(scene.site, where, "behind", "KILL", *SAVE, "--then", "resume")
    wait.until(lambda: emulated.status(guest) == "running", what="the guest to run on")
    assert scene.moments() == [("before_save", None)]
    scene.site.run("recover", check=0)
    assert scene.moments() == [("before_save", None), ("after_save", "success")]
    assert told_last(scene)["result"]["image"] == str(scene.site.images / IMAGE)
    nothing_to_recover(scene)
