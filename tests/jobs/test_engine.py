"""``mapsave job run`` with emulated guests: side by side, each on its own, the worst one counts."""

import hashlib
import json
import signal
import time
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from mapsave import config, errors
from mapsave.image import store
from mapsave.jobs import engine, job
from mapsave.migration.progress import Report
from mapsave.operations import save, save_request
from mapsave.operations.results import SaveResult

from tests.image import build
from tests.kit import cli, emulated, inject, processes, qmp, state, wait
from tests.kit.emulated import socket_of

SIZE = 16 << 20


def guest(site: cli.Site, name: str, **how: Any) -> AbstractContextManager[Path]:
    """Run an emulated guest that the site knows; see ``emulated.guest``."""
    return emulated.guest(site, name, size=SIZE, **how)


def write_job(site: cli.Site, **settings: Any) -> Path:
    return site.add_job("nightly", **{"guests": ["*"], **settings})


def memory_of(socket: Path, target: Path) -> tuple[str, str]:
    """Return a paused guest's name and the SHA-256 of its RAM, as its monitor writes it out."""
    with qmp.connect(socket) as monitor:
        name = monitor.execute("query-name")["name"]
        assert monitor.execute("query-status")["status"] != "running"
        monitor.execute("pmemsave", val=0, size=SIZE, filename=str(target))
    return name, hashlib.sha256(target.read_bytes()).hexdigest()


def end(socket: Path) -> None:
    with qmp.connect(socket) as monitor:
        pid = monitor.peer_pid()
        monitor.execute("quit")
    wait.until(lambda: pid not in processes.strays(), what="end of the emulated guest")


def test_saved_guests_come_back_with_their_ram(site: cli.Site, tmp_path: Path) -> None:
    # A writer changes their RAM while they run, so it is not what a new one is filled with.
    for name, pattern in (("toy1", "random"), ("toy2", "linux")):
        site.add_guest(name, emulator={"memory": "16M", "pattern": pattern, "writer": True})
    path = write_job(site, concurrency=2, save={"then": "leave", "image": "{guest}"})
    site.run("job", "run", path, check=0)
    before = set()
    for socket in site.state.glob("emulated/*.qmp"):
        before.add(memory_of(socket, tmp_path / "ram"))
        end(socket)
    assert {name for name, _ in before} == {"toy1", "toy2"}

    after = set()
    for name in ("toy1", "toy2"):
        done = site.run("restore", name, "--paused", "--json", check=0).json()
        socket = Path(done["monitor"].removeprefix("qmp:"))
        after.add(memory_of(socket, tmp_path / "ram"))
        end(socket)
    assert after == before


def test_guests_are_saved_side_by_side_up_to_concurrency(site: cli.Site) -> None:
    names = ["a", "b", "c", "d"]
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(guest(site, name, throttle="6M"))
        path = write_job(site, concurrency=2, save={"image": "{guest}"})
        most = 0
        with site.start("job", "run", path, "--json") as process:
            while process.poll() is None:
                most = max(most, len(list(site.images.glob("*.partial"))))
                time.sleep(0.005)
            assert process.returncode == 0
    assert most == 2
    assert sorted(path.name for path in site.images.iterdir()) == names


def test_failures_stop_nobody_and_the_worst_counts(site: cli.Site, tmp_path: Path) -> None:
    with (
        guest(site, "full", env=inject.environment(inject.FULL)),
        guest(site, "good"),
        guest(site, "well"),
    ):
        site.add_guest("gone", tmp_path / "nobody.qmp")
        path = write_job(site, guests=["gone", "full", "*"], save={"image": "{guest}"})
        result = site.run("job", "run", path, "--json", check=4)
        done = result.json()
        assert emulated.status(socket_of(site, "full")) == "running"
    assert (done["job"], done["saved"], done["failed"], done["exit_code"]) == ("nightly", 2, 2, 4)
    outcome = {line["guest"]: line["error"] and line["error"]["id"] for line in done["guests"]}
    assert list(outcome) == ["gone", "full", "good", "well"]
    assert list(outcome.values()) == ["check.unreachable", "save.failed", None, None]
    assert sorted(path.name for path in site.images.iterdir()) == ["good", "well"]
    for name in ("good", "well"):
        assert site.run("verify", name, "--json", check=0).json()["valid"] is True


def test_summary_lists_each_guest(site: cli.Site, tmp_path: Path) -> None:
    with guest(site, "good"):
        site.add_guest("gone", tmp_path / "nobody.qmp")
        path = write_job(site, save={"image": "{guest}-{job}"})
        shown = site.run("job", "run", path, check=3).stdout.splitlines()
    assert shown[0].split() == ["guest", "outcome", "time", "image"]
    assert shown[1].split()[:2] == ["good", "saved"]
    assert str(site.images / "good-nightly") in shown[1]
    assert shown[2].split()[:2] == ["gone", "FAILED"]
    assert "[check.unreachable]" in shown[2]
    assert shown[-1] == "job nightly: 1 saved, 1 FAILED"


def test_job_check_touches_nothing(site: cli.Site, tmp_path: Path) -> None:
    with guest(site, "good"):
        site.add_guest("gone", tmp_path / "nobody.qmp")
        path = write_job(site)
        with qmp.connect(socket_of(site, "good")) as monitor:
            before = state.of(monitor)
        done = site.run("job", "check", path, "--json", check=3).json()
        with qmp.connect(socket_of(site, "good")) as monitor:
            assert state.of(monitor) == before
            assert "status" not in monitor.execute("query-migrate")
    assert list(site.images.iterdir()) == []
    assert (done["failed"], done["exit_code"]) == (1, 3)
    lines = {line["guest"]: line for line in done["guests"]}
    assert lines["good"]["result"]["can_save"] is True
    assert lines["gone"]["error"]["id"] == "check.unreachable"


def test_timeout_of_a_job_leaves_the_guest_running(site: cli.Site) -> None:
    with guest(site, "slow", throttle="1M"):
        path = write_job(site, timeout="1s")
        done = site.run("job", "run", path, "--json", check=4).json()
        assert done["guests"][0]["error"]["id"] == "save.timeout"
        with qmp.connect(socket_of(site, "slow")) as monitor:
            assert monitor.execute("query-status")["status"] == "running"
            assert monitor.execute("query-fdsets") == []
    assert list(site.images.iterdir()) == []


def images_of(site: cli.Site) -> dict[str, list[dict[str, Any]]]:
    """Return the metadata of the images of each guest, newest first."""
    found: dict[str, list[dict[str, Any]]] = {}
    with store.directory(site.images) as held:
        for entry in store.entries(held):
            found.setdefault(str(entry.guest), []).append(entry.metadata)
    return found


def test_old_images_go_after_a_run_of_the_guests_that_it_saved(site: cli.Site) -> None:
    how: dict[str, Any] = {"save": {"image": "{guest}-{uuid}", "then": "resume"}}
    with guest(site, "good"):
        with guest(site, "late"):
            for _ in range(2):
                done = site.run("job", "run", write_job(site, **how), "--json", check=0).json()
            assert done["pruned"] == []
            site.run("save", "good", "--image", "by-hand", "--then", "resume", check=0)
        path = write_job(site, **how, keep={"last": 1, "monthly": 1})
        done = site.run("job", "run", path, "--json", check=3).json()
        kept, *gone = done["pruned"]
        shown = site.run("job", "run", path, check=3).stdout.splitlines()
    assert done["guests"][0]["result"]["image"] == kept["image"]
    assert (kept["kept"], kept["reasons"][2]) == (True, "last 1 of 1")
    assert [(line["guest"], line["kept"]) for line in gone] == [("good", False)] * 2
    assert done["prune_error"] is None
    assert shown[-1] == "job nightly: 1 saved, 1 FAILED, 1 old images removed"
    found = images_of(site)
    assert [each["job"] for each in found["late"]] == ["nightly"] * 2
    assert sorted(str(each["job"]) for each in found["good"]) == ["None", "nightly"]
    assert not Path(kept["image"]).exists()


def test_what_a_run_saves_is_not_removed_by_it_where_the_clock_was_ahead(site: cli.Site) -> None:
    how: dict[str, Any] = {"save": {"image": "{guest}-{uuid}", "then": "resume"}}
    path = write_job(site, **how, keep={"last": 1})
    ahead = {"guest": {"name": "good"}, "job": "nightly", "then": "resume"}
    ahead["started"] = "2999-01-01T00:00:00.000+00:00"
    made = build.Image(metadata=json.dumps(ahead).encode(), header={"state": build.SAVED})
    made.built().write(site.images / "ahead")
    with guest(site, "good"):
        first = site.run("job", "run", path, "--json", check=0).json()
        second = site.run("job", "run", path, "--json", check=0).json()
    images = [Path(done["guests"][0]["result"]["image"]) for done in (first, second)]
    assert [image.exists() for image in images] == [False, True]
    assert (site.images / "ahead").exists()
    kept = {line["image"]: line["reasons"] for line in second["pruned"] if line["kept"]}
    assert kept[str(images[1])][0] == "made by this run"
    assert "in the future" in kept[str(site.images / "ahead")][0]


def test_a_guest_that_was_saved_to_quit_is_removed_once_it_was_saved_again(site: cli.Site) -> None:
    path = write_job(site, save={"image": "{guest}-{uuid}"}, keep={"last": 1})
    for _ in range(2):
        with guest(site, "good"):
            done = site.run("job", "run", path, "--json", check=0).json()
    assert [line["kept"] for line in done["pruned"]] == [True, False]
    assert "the only copy of its guest: not restored since" in done["pruned"][0]["reasons"]
    assert len(images_of(site)["good"]) == 1


def test_where_old_images_cannot_be_looked_at_the_saves_are_told_as_well(site: cli.Site) -> None:
    path = write_job(site, save={"image": "{guest}"}, keep={"daily": 1})
    with guest(site, "good"):
        result = site.run("job", "run", path, "--json", check=2, env={"TZ": "Mars/Olympus"})
    done = result.json()
    assert (done["saved"], done["failed"], done["pruned"]) == (1, 0, [])
    assert done["prune_error"]["id"] == "config.invalid"
    assert (site.images / "good").exists()


def test_a_guest_that_comes_late_is_saved_by_a_later_try(site: cli.Site) -> None:
    late = socket_of(site, "late")
    site.add_guest("late", late)
    path = write_job(
        site, save={"image": "{guest}"}, retries={"times": 100, "wait": "500ms"}, guests=["late"]
    )
    with site.start("job", "run", path) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        assert first.startswith("mapsave: job nightly: guest late: ")
        assert first.endswith("; retrying in 500 ms\n")
        # The job alone asks its monitor: the save may be over before anybody else could.
        with cli.started("emulate", "--qmp", late, "--memory", str(SIZE)):
            done = cli.ended(process, check=0)
    row = done.stdout.splitlines()[1].split()
    assert row[:2] == ["late", "saved"]
    assert row[3] == "tries)"
    assert int(row[2].removeprefix("(")) > 1


def test_tries_end_after_as_many_as_it_says(site: cli.Site) -> None:
    site.add_guest("gone", socket_of(site, "gone"))
    path = write_job(site, retries={"times": 2, "wait": "10ms"})
    done = site.run("job", "run", path, "--json", check=3).json()
    (line,) = done["guests"]
    assert [each["error"]["id"] for each in line["tries"]] == ["check.unreachable"] * 3
    assert line["tries"][0]["started"] < line["tries"][2]["started"]
    assert line["error"] == line["tries"][2]["error"]
    assert "(3 tries)" in site.run("job", "run", path, check=3).stdout


def test_a_save_that_failed_behind_its_beginning_is_not_tried_again(site: cli.Site) -> None:
    with guest(site, "full", env=inject.environment(inject.FULL)):
        path = write_job(site, retries={"times": 5, "wait": "10ms"})
        done = site.run("job", "run", path, "--json", check=4).json()
    assert [each["error"]["id"] for each in done["guests"][0]["tries"]] == ["save.failed"]


def test_a_guest_that_waits_for_its_next_try_holds_nobody_up(site: cli.Site) -> None:
    site.add_guest("gone", socket_of(site, "gone"))
    with guest(site, "good"):
        path = write_job(
            site,
            guests=["gone", "good"],
            concurrency=1,
            save={"image": "{guest}", "then": "resume"},
            retries={"times": 5, "wait": "1h"},
        )
        with site.start("job", "run", path) as process:
            wait.until((site.images / "good").exists, what="the image of the other guest")
            process.send_signal(signal.SIGTERM)
            assert process.wait(wait.LONG) == 9


def test_who_was_saved_before_an_interruption_is_told(site: cli.Site) -> None:
    """Those guests have ended: not everything was rolled back."""
    path = write_job(site, concurrency=2, save={"image": "{guest}"})
    with guest(site, "quick"), guest(site, "slow", throttle="64K"):
        with site.start("job", "run", path, "--json") as process:
            wait.until((site.images / "quick").exists, what="the image of the quick guest")
            wait.until((site.images / "slow.partial").exists, what="the save of the slow guest")
            process.send_signal(signal.SIGINT)
            done = cli.ended(process, check=9)
        assert emulated.status(socket_of(site, "slow")) == "running"
    error = done.error("interrupted")
    assert error["message"].endswith("were rolled back, saved before that: quick")
    assert error["data"] == {"saved": ["quick"], "images": [str(site.images / "quick")]}
    assert "mapsave restore" in error["hint"]
    assert [each.name for each in site.images.iterdir()] == ["quick"]


def test_an_interruption_before_anything_was_saved_is_told(site: cli.Site) -> None:
    path = write_job(site, save={"image": "{guest}"})
    with (
        guest(site, "slow", throttle="64K"),
        site.start("job", "run", path) as process,
    ):
        wait.until((site.images / "slow.partial").exists, what="the save of the slow guest")
        process.send_signal(signal.SIGTERM)
        stderr = cli.ended(process, check=9).stderr
    assert "were rolled back, no guest had been saved [interrupted]" in stderr
    assert "hint" not in stderr


def test_only_what_may_pass_by_itself_is_tried_again() -> None:
    def classes(cls: type[errors.MapsaveError]) -> list[type[errors.MapsaveError]]:
        return [cls, *(each for child in cls.__subclasses__() for each in classes(child))]

    def made(cls: type[errors.MapsaveError]) -> errors.MapsaveError:
        return cls("a", "b", "c") if cls is errors.CommandRefused else cls("words")

    again = {cls for cls in classes(errors.MapsaveError) if engine.may_pass(made(cls))}
    busy = {errors.Busy, errors.AlreadyMigrating, errors.ImageInUse, errors.ServiceBusy}
    assert again == {errors.Unreachable, errors.NoRoom, *busy}
    assert {cls.exit_code for cls in again} == {3, 8}
    assert not engine.may_pass(OSError())


async def test_whoever_runs_a_job_may_save_in_its_own_way(site: cli.Site) -> None:
    asked: list[save_request.Request] = []

    with guest(site, "good"), guest(site, "poor"):
        configured = config.load(site.config, {})
        path = write_job(
            site, save={"image": "{guest}", "then": "resume"}, timeout="1m", keep={"last": 1}
        )

        async def saver(
            guest: config.Guest, request: save_request.Request, _: Report
        ) -> SaveResult:
            asked.append(request)
            if guest.name == "poor":
                raise ZeroDivisionError("a bug")
            return await save.save(guest, configured, request)

        done = await engine.run(job.load(path), configured, saver=saver)
    assert [(each.image, each.job, each.timeout) for each in asked] == [
        ("good", "nightly", 60.0),
        ("poor", "nightly", 60.0),
    ]
    assert done["exit_code"] == 1
    assert done["guests"][0]["result"]["guest"] == "good"
    assert done["guests"][0]["error"] is None
    assert done["guests"][1]["error"]["message"] == "unexpected ZeroDivisionError: a bug"
    assert (site.images / "good").exists()


def test_hooks_of_the_job_run_behind_those_of_the_configuration(site: cli.Site) -> None:
    told = site.directory / "told"
    words = f'$MAPSAVE_JOB $MAPSAVE_GUEST" >> {told}'
    site.add_hook("first", f'echo "first {words}', "after_save")
    site.add_hook("second", f'echo "second {words}')
    with guest(site, "good"):
        path = write_job(site, hooks={"after_save": ["second"], "before_save": ["second"]})
        site.run("job", "run", path, check=0)
    assert told.read_text().splitlines() == [
        "second nightly good",
        "first nightly good",
        "second nightly good",
    ]
