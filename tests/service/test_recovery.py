"""The service killed at every step: the next one finishes or undoes what it had under way."""

import contextlib
import os
import signal
import sqlite3
from pathlib import Path

import pytest

from tests.faults import struck
from tests.faults.slow import await_writing, looked_at, slow_guest
from tests.kit import cli, emulated, patterns, qemu, ram, service, state, wait
from tests.kit.outcomes import COMMITTED, LOADED, NOTHING, PUT_BACK, RESTORED
from tests.service import interrupted
from tests.service.interrupted import IMAGE, NAME

# Step by step, and whether QEMU has written its stream whole by then.
_SAVE = (
    ("before", "begin", False),
    ("after", "begin", False),
    ("before", "label", False),
    ("after", "label", False),
    ("after", "hand-over", False),
    ("after", "pause", False),
    ("before", "migrate", False),
    ("after", "migrate", False),
    ("before", "complete", True),
    ("after", "complete", True),
    ("after", "commit", True),
    ("before", "committed", True),
    ("after", "committed", True),
    ("after", "end", True),
)
_THEN = ("quit", "resume", "leave")


@pytest.mark.parametrize(
    ("where", "step", "then"),
    [
        (where, step, _THEN[number % 3])
        for number, (where, step, whole) in enumerate(_SAVE)
        if not whole
    ],
)
def test_killed_before_the_stream_is_whole(
    site: cli.Site, where: str, step: str, then: str
) -> None:
    with qemu.guest(site, NAME, memory="16M", ram=patterns.dense, paused=False) as guest:
        before = guest.state()
        arguments = ("save", NAME, "--image", IMAGE, "--then", then)
        with interrupted.survived(site, where, step, *arguments) as (waiting, mapsaved):
            code, told = interrupted.outcome(waiting)
            assert (code, told["error"]["id"]) == (9, "interrupted"), told
            undone = NOTHING if (where, step) == ("before", "begin") else PUT_BACK
            interrupted.assert_undone(interrupted.the_only(mapsaved, kind="save"), undone)
            interrupted.await_recovery(mapsaved)
            state.assert_left_as_found(before, guest.state())
            interrupted.nothing_left(mapsaved)
            assert not list(site.images.iterdir())
            done = mapsaved.done(kind="save", guest=NAME, save={"image": IMAGE})
            assert done["image"] == str(site.images / IMAGE)


@pytest.mark.parametrize(
    ("where", "step", "then"),
    [
        *(
            (where, step, _THEN[number % 3])
            for number, (where, step, whole) in enumerate(_SAVE)
            if whole
        ),
        ("after", "resume", "resume"),
        ("after", "commit", "quit"),
    ],
)
def test_killed_when_the_stream_is_whole(site: cli.Site, where: str, step: str, then: str) -> None:
    with qemu.guest(site, NAME, memory="16M", ram=patterns.dense, paused=False) as guest:
        before = guest.state()
        arguments = ("save", NAME, "--image", IMAGE, "--then", then)
        with interrupted.survived(site, where, step, *arguments) as (waiting, mapsaved):
            code, told = interrupted.outcome(waiting)
            assert (code, told["image"], told["then"]) == (0, str(site.images / IMAGE), then)
            assert told["recovered"] is True
            assert told["ram_bytes"] >= told["data_bytes"] > 0
            saved = interrupted.the_only(mapsaved, kind="save")
            assert (saved["state"], saved["image"]) == ("done", told["image"])
            assert saved["result"] == told
            interrupted.await_recovery(mapsaved)
            interrupted.nothing_left(mapsaved)
            metrics = mapsaved.request("GET", "/metrics").body.decode()
            assert f'last_success_timestamp_seconds{{guest="{NAME}",job=""}}' in metrics
            if then == "quit":
                guest.wait()
            else:
                left = {"resume": "running", "leave": "postmigrate"}[then]
                state.assert_left_as_found(before, guest.state(), run_state=left)
                mapsaved.done(kind="verify", image=IMAGE)
                return
            mapsaved.done(kind="restore", image=IMAGE)
            with guest.successor() as restored:
                assert restored.status() == "running"


def test_a_save_that_qemu_still_does_is_adopted(site: cli.Site, tmp_path: Path) -> None:
    """Slowed down by its share of the bandwidth, QEMU writes on while there is no service."""
    site.settings["service"] = {"bandwidth": "6M"}
    with qemu.guest(site, NAME, memory="16M", ram=patterns.dense) as guest:
        before = guest.snapshot_ram(tmp_path / "before")
        with (
            service.running(site) as doomed,
            site.start("save", NAME, "--image", IMAGE, "--json") as waiting,
        ):
            wait.until(
                lambda: guest.control.execute("query-migrate").get("status") == "active",
                what="the migration",
            )
            doomed.kill()
            assert guest.control.execute("query-migrate")["status"] == "active"
            guest.kill(signal.SIGSTOP)  # while the next one starts, however long that takes
            with service.running(site) as mapsaved:
                assert mapsaved.get("/v1/health")["status"] == "degraded"
                assert interrupted.the_only(mapsaved, kind="save")["state"] == "running"
                guest.kill(signal.SIGCONT)
                code, told = interrupted.outcome(waiting)
                assert (code, told["image"]) == (0, str(site.images / IMAGE)), told
                assert interrupted.the_only(mapsaved, kind="save")["state"] == "done"
                interrupted.await_recovery(mapsaved)
                guest.wait()
                interrupted.nothing_left(mapsaved)
                mapsaved.done(kind="restore", image=IMAGE)
                with guest.successor() as restored:
                    ram.assert_same(before, restored.ram)


def test_adopted_at_a_slow_emulated_guest_and_told_to_people(site: cli.Site) -> None:
    with (
        emulated.guest(site, NAME, size=16 << 20, throttle="4M") as path,
        service.running(site) as doomed,
        site.start("save", NAME, "--image", IMAGE, "--then", "resume") as waiting,
    ):
        await_writing(site)
        doomed.kill()
        assert looked_at(path).run_state != "running"
        with service.running(site) as mapsaved:
            stdout = cli.ended(waiting, check=0).stdout
            assert stdout.startswith(f"saved {NAME} to {site.images / IMAGE}: 16"), stdout
            assert stdout.endswith("guest resumed\n")
            interrupted.await_recovery(mapsaved)
            assert looked_at(path).run_state == "running"
            mapsaved.done(kind="verify", image=IMAGE)


def test_a_service_that_stops_leaves_the_rest_of_the_recovery_to_the_next(site: cli.Site) -> None:
    with slow_guest(site) as path, service.running(site) as doomed:
        begun = doomed.begin(kind="save", guest=NAME, save={"image": IMAGE, "then": "resume"})
        await_writing(site)
        doomed.kill()
        with service.running(site) as between:
            assert between.get("/v1/health")["recovered"] is False
            assert between.stop() == 0
        with service.running(site) as mapsaved:
            assert mapsaved.ended(begun["id"])["state"] == "done"
            assert looked_at(path).run_state == "running"


def test_a_partial_image_without_an_owner_is_swept(site: cli.Site) -> None:
    at = ("before", "label", "save", NAME, "--image", IMAGE)
    with (
        qemu.guest(site, NAME, memory="16M", ram=patterns.dense, paused=False),
        interrupted.until_killed(site, *at) as waiting,
    ):
        (journal,) = struck.journals(site)
        journal.unlink()
        assert struck.partials(site)
        with service.running(site) as mapsaved:
            assert interrupted.outcome(waiting)[0] == 9
            interrupted.assert_undone(interrupted.the_only(mapsaved, kind="save"), NOTHING)
            interrupted.await_recovery(mapsaved)
            assert not struck.partials(site)


def test_what_was_recovered_by_hand_meanwhile_is_known(site: cli.Site) -> None:
    with qemu.guest(site, NAME, memory="16M", ram=patterns.dense, paused=False) as guest:
        with interrupted.until_killed(
            site, "after", "complete", "save", NAME, "--image", IMAGE
        ) as waiting:
            files = struck.contents(site)
            dry = site.run("recover", "--dry-run", "--json", "--local", check=0).json()
            (line,) = dry["operations"]
            assert line["outcome"] == f"would be: {COMMITTED}"
            assert line["image"] == str(site.images / IMAGE)
            assert struck.contents(site) == files
            site.run("recover", check=0)  # the socket is there, and no one listens
            guest.wait()
            with service.running(site) as mapsaved:
                assert interrupted.outcome(waiting)[0] == 0
                assert interrupted.the_only(mapsaved, kind="save")["state"] == "done"
        with interrupted.until_killed(site, "after", "run", "restore", IMAGE) as waiting:
            done = site.run("recover", "--json", check=0).json()
            assert [line["outcome"] for line in done["operations"]] == [RESTORED]
            # The history is written beside: a service may die before it has the last steps.
            with contextlib.closing(sqlite3.connect(site.state / "journal.db")) as history, history:
                history.execute("UPDATE operations SET step = 'launch' WHERE kind = 'restore'")
            assert list((site.state / "recovered").iterdir())
            with service.running(site) as mapsaved:
                assert interrupted.outcome(waiting)[0] == 0
                assert interrupted.the_only(mapsaved, kind="restore")["state"] == "done"
            assert not list((site.state / "recovered").iterdir())
        with guest.successor() as restored:
            assert restored.status() == "running"


def test_the_service_recovers_what_a_command_left(site: cli.Site) -> None:
    """Asked to; and asked for a dry run it tells, and changes nothing."""
    with qemu.guest(site, NAME, memory="16M", ram=patterns.dense, paused=False) as guest:
        before = guest.state()
        with service.running(site) as mapsaved:
            interrupted.await_recovery(mapsaved)
            struck.run(site, "after", "pause", "KILL", "save", NAME, "--image", IMAGE, "--local")
            left = guest.state()
            files = _but_the_journal(struck.contents(site))
            dry = site.run("recover", "--dry-run", "--json", check=0).json()
            assert [line["outcome"] for line in dry["operations"]] == [f"would be: {PUT_BACK}"]
            assert _but_the_journal(struck.contents(site)) == files
            state.assert_left_as_found(left, guest.state())
            done = site.run("recover", "--json", check=0).json()
            assert [line["outcome"] for line in done["operations"]] == [PUT_BACK]
            state.assert_left_as_found(before, guest.state())
            interrupted.nothing_left(mapsaved)
            assert {each["kind"] for each in mapsaved.get("/v1/operations")["operations"]} == {
                "recover"
            }


def _but_the_journal(files: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    ours = ("journal.db", "service.log")
    return {path: found for path, found in files.items() if not any(each in path for each in ours)}


@pytest.mark.parametrize(
    ("where", "step", "outcome"),
    [
        ("before", "begin", NOTHING),
        *struck.RESTORE,
    ],
)
def test_killed_in_a_restore(site: cli.Site, where: str, step: str, outcome: str) -> None:
    with qemu.guest(site, NAME, memory="16M", ram=patterns.dense, paused=False) as guest:
        site.run("save", NAME, "--image", IMAGE, check=0)
        guest.wait()
        with interrupted.survived(site, where, step, "restore", IMAGE) as (waiting, mapsaved):
            code, told = interrupted.outcome(waiting)
            interrupted.await_recovery(mapsaved)
            operation = interrupted.the_only(mapsaved, kind="restore")
            if outcome == RESTORED:
                assert (code, operation["state"]) == (0, "done"), told
                assert operation["result"] == told
                assert (told["guest"], told["image"]) == (NAME, str(site.images / IMAGE))
                assert (told["run_state"], told["monitor"]) == ("running", f"qmp:{guest.qmp}")
            else:
                assert (code, told["error"]["id"]) == (9, "interrupted")
                interrupted.assert_undone(operation, outcome)
                (image,) = mapsaved.get("/v1/images")["images"]
                assert image["state"] == ("restored" if outcome == LOADED else "saved")
                if outcome != LOADED:
                    mapsaved.done(kind="restore", image=IMAGE)
            interrupted.nothing_left(mapsaved)
            with guest.successor() as restored:
                assert restored.status() == ("paused" if outcome == LOADED else "running")


def test_a_job_that_was_interrupted_is_settled_with_its_saves(site: cli.Site) -> None:
    site.settings["service"] = {"concurrency": 1}
    site.add_job("nightly", guests=["one", "two"], concurrency=2)
    with (
        qemu.guest(site, "one", memory="16M", ram=patterns.dense, paused=False) as one,
        qemu.guest(site, "two", memory="16M", ram=patterns.dense, paused=False) as two,
    ):
        before = [guest.state() for guest in (one, two)]
        with service.started(site, command=struck.killer("after", "migrate")) as doomed:
            service.await_answer(doomed)
            doomed.begin(kind="job", job="nightly")
            assert doomed.process.wait(wait.LONG) == -signal.SIGKILL
        with service.running(site) as mapsaved:
            interrupted.await_recovery(mapsaved)
            job = interrupted.the_only(mapsaved, kind="job")
            interrupted.assert_undone(job, NOTHING)
            saves = mapsaved.get(f"/v1/operations?parent={job['id']}")["operations"]
            assert len(saves) == 2
            interrupted.assert_undone(next(each for each in saves if each["started"]), PUT_BACK)
            interrupted.assert_undone(next(each for each in saves if not each["started"]), NOTHING)
            for guest, found in zip((one, two), before, strict=True):
                state.assert_left_as_found(found, guest.state())
            interrupted.nothing_left(mapsaved)
            done = mapsaved.done(kind="job", job="nightly")
            assert (done["saved"], done["failed"]) == (2, 0)


def test_a_guest_that_does_not_answer_is_tried_again(site: cli.Site) -> None:
    with qemu.guest(site, NAME, memory="16M", ram=patterns.dense, paused=False) as guest:
        before = guest.state()
        with interrupted.until_killed(
            site, "after", "pause", "save", NAME, "--image", IMAGE
        ) as waiting:
            os.kill(guest.pid, signal.SIGSTOP)
            try:
                with service.running(site) as mapsaved:
                    mapsaved.await_log("retrying in")
                    health = mapsaved.get("/v1/health")
                    assert (health["status"], health["recovered"]) == ("degraded", False)
                    assert interrupted.the_only(mapsaved, kind="save")["state"] == "running"
                    assert waiting.poll() is None
                    os.kill(guest.pid, signal.SIGCONT)
                    assert interrupted.outcome(waiting)[0] == 9
                    interrupted.assert_undone(interrupted.the_only(mapsaved, kind="save"), PUT_BACK)
                    interrupted.await_recovery(mapsaved)
                    assert mapsaved.get("/v1/health")["status"] == "ok"
                    state.assert_left_as_found(before, guest.state())
                    interrupted.nothing_left(mapsaved)
            finally:
                os.kill(guest.pid, signal.SIGCONT)


def test_an_image_that_was_taken_away_since(site: cli.Site) -> None:
    """It may be restored elsewhere, so the guest stays as it is, and who asked is told."""
    with qemu.guest(site, NAME, memory="16M", ram=patterns.dense, paused=False) as guest:
        arguments = ("save", NAME, "--image", IMAGE, "--then", "resume")
        with interrupted.until_killed(site, "after", "committed", *arguments) as waiting:
            (site.images / IMAGE).unlink()
            left = guest.state()
            with service.running(site) as mapsaved:
                code, told = interrupted.outcome(waiting)
                assert (code, told["image"]) == (0, str(site.images / IMAGE))
                assert "no longer in its place" in told["warnings"][0]
                interrupted.await_recovery(mapsaved)
                assert guest.state().run_state == left.run_state


def test_a_journal_that_cannot_be_read_keeps_no_other_from_being_recovered(site: cli.Site) -> None:
    with qemu.guest(site, NAME, memory="16M", ram=patterns.dense, paused=False) as guest:
        before = guest.state()
        at = ("after", "pause", "save", NAME, "--image", IMAGE)
        with interrupted.until_killed(site, *at) as waiting:
            damaged = site.state / "journal" / "save-damaged.jsonl"
            damaged.write_text('{"step": "begin", "kind": "save", "guest": "lost"}\n')
            with service.running(site) as mapsaved:
                assert interrupted.outcome(waiting)[0] == 9
                state.assert_left_as_found(before, guest.state())
                mapsaved.await_log("recovery of the save of lost")
                assert str(damaged) in mapsaved.logged()
                assert mapsaved.get("/v1/health")["status"] == "degraded"
                damaged.unlink()
                interrupted.await_recovery(mapsaved)
