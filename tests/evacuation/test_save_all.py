"""``mapsave save-all`` with emulated guests: in order, in time, whatever befalls one of them."""

import signal
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from mapsave.monitor import process
from mapsave.operations import in_use

from tests.kit import cli, emulated, inject, processes, qmp, state, wait

MIB = emulated.MIB


def test_saves_all_by_priority_then_size(site: cli.Site) -> None:
    with (
        emulated.guest(site, "large", size=12 * MIB),
        emulated.guest(site, "small", size=4 * MIB),
        emulated.guest(site, "dear", size=16 * MIB, priority=5),
        emulated.guest(site, "cheap", size=4 * MIB, priority=-1),
    ):
        site.add_guest("off", emulated.socket_of(site, "off"), priority=9)
        done = site.run("save-all", "--parallel", "1", "--json", check=0).json()
        for name in ("small", "large", "dear", "cheap"):
            assert not emulated.answers(emulated.socket_of(site, name))
    order = ["dear", "small", "large", "cheap", "off"]
    assert list(emulated.outcomes(done).items()) == [
        *((name, "saved") for name in order[:-1]),
        ("off", "not_running"),
    ]
    assert (done["saved"], done["not_running"], done["failed"], done["exit_code"]) == (4, 1, 0, 0)
    written = {line["guest"]: line["size_bytes"] for line in done["guests"]}
    assert written["large"] == 12 * MIB
    entries = {each["guest"]: each for each in emulated.recorded(site)}
    times = [entries[name]["time"] for name in order[:-1]]
    assert times == sorted(times)
    for name in order[:2]:
        assert site.run("verify", entries[name]["image"], "--json", check=0).json()["valid"]
        uuid = site.run("inspect", entries[name]["image"], "--json", check=0).json()["uuid"]
        assert (entries[name]["uuid"], entries[name]["ran"]) == (uuid, True)
    assert entries["dear"]["priority"] == 5


def test_what_a_guest_maps_from_its_image_is_written_too(site: cli.Site) -> None:
    """It is not in memory, but takes its time all the same."""
    with emulated.guest(site, "toy", size=256 * MIB, pattern="zero") as socket:
        pid = emulated.pid(socket)
        user = in_use.User(
            guest="toy",
            image="/gone",
            uuid="",
            inode=0,
            pid=pid,
            started=process.start_time(pid) or 0,
            data_bytes=200 * MIB,
            end=200 * MIB,
            argv=("mapsave",),
        )
        in_use.note(site.state, user)
        (line,) = site.run("save-all", "--dry-run", "--json", check=0).json()["guests"]
        assert line["size_bytes"] == 200 * MIB


def test_names_patterns_and_addresses(site: cli.Site) -> None:
    with (
        emulated.guest(site, "web1"),
        emulated.guest(site, "web2"),
        emulated.guest(site, "db") as other,
        emulated.guest(site, "lone") as lone,
    ):
        del site.guests["lone"]
        site.write()
        site.run("save-all", "nosuch*", check=2)
        done = site.run("save-all", "web*", "web1", f"qmp:{lone}", "--json", check=0).json()
        assert emulated.status(other) == "running"
    names = {"web1", "web2", f"qmp:{lone}"}
    assert set(emulated.outcomes(done)) == names
    assert emulated.committed(site) == names


def test_no_guest_is_a_usage_error(site: cli.Site) -> None:
    assert "--libvirt" in site.run("save-all", check=2).stderr


def test_deadline_names_what_did_not_fit_and_they_run_on(site: cli.Site) -> None:
    with (
        emulated.guest(site, "first", size=4 * MIB, priority=1) as first,
        emulated.guest(site, "slow", size=16 * MIB, throttle="1M") as slow,
        emulated.guest(site, "never", size=32 * MIB) as never,
    ):
        before = {}
        for socket in (slow, never):
            with qmp.connect(socket) as client:
                before[socket] = state.of(client)
        words = ("save-all", "--deadline", "10s", "--parallel", "1", "--json")
        done = site.run(*words, check=4).json()
        assert not emulated.answers(first)
        for socket in (slow, never):
            with qmp.connect(socket) as client:
                state.assert_left_as_found(before[socket], state.of(client))
                assert client.execute("query-status")["status"] == "running"
        with qmp.connect(never) as client:
            assert "status" not in client.execute("query-migrate"), "it was touched"
    assert emulated.outcomes(done) == {"first": "saved", "slow": "failed", "never": "no_time"}
    assert [line["error"] and line["error"]["id"] for line in done["guests"]] == [
        *(None, "save.timeout", "check.deadline")
    ]
    assert (done["no_time"], done["exit_code"]) == (1, 4)
    assert [each["guest"] for each in emulated.recorded(site)] == ["first"]
    assert [path.name for path in site.images.iterdir()] == [
        path.rpartition("/")[2] for path in (emulated.recorded(site)[0]["image"],)
    ]


def test_a_guest_that_cannot_fit_leaves_its_time_to_a_smaller_one(site: cli.Site) -> None:
    """The rate is measured with the first; by it the second would take half a minute and more."""
    with (
        emulated.guest(site, "first", size=32 * MIB, throttle="6M", priority=3),
        emulated.guest(site, "huge", size=256 * MIB, throttle="6M", priority=2) as huge,
        emulated.guest(site, "tiny", size=1 * MIB, priority=1),
    ):
        words = ("save-all", "--deadline", "30s", "--parallel", "1", "--json")
        done = site.run(*words, check=3).json()
        with qmp.connect(huge) as client:
            assert "status" not in client.execute("query-migrate"), "it was begun in vain"
    assert emulated.outcomes(done) == {"first": "saved", "huge": "no_time", "tiny": "saved"}
    assert done["duration_s"] < 30
    assert 2 * MIB < done["rate_bytes_per_s"] < 12 * MIB


def test_a_guest_that_fails_stops_nobody(site: cli.Site) -> None:
    with (
        emulated.guest(site, "full", priority=1, env=inject.environment(inject.FULL)) as full,
        emulated.guest(site, "held") as held,
        emulated.guest(site, "good"),
        emulated.guest(site, "well"),
    ):
        with qmp.connect(held):  # one client at a time: mapsave gets no greeting
            done = site.run("save-all", "--deadline", "40s", "--json", check=4).json()
        assert emulated.status(full) == "running"
        assert emulated.status(held) == "running"
    errors = {line["guest"]: (line["error"] or {}).get("id") for line in done["guests"]}
    assert errors == {
        "full": "save.failed",
        "held": "check.unreachable",
        "good": None,
        "well": None,
    }
    assert (done["saved"], done["failed"]) == (2, 2)
    assert emulated.committed(site) == {"good", "well"}
    assert len(list(site.images.iterdir())) == 2


def test_nobody_is_paused_while_waiting_for_a_slot(site: cli.Site) -> None:
    with (
        emulated.guest(site, "saving", throttle="512K", priority=1),
        emulated.guest(site, "waiting") as waiting,
        site.start("save-all", "--parallel", "1", "--json") as process,
    ):
        wait.until(lambda: list(site.images.glob("saving*.partial")), what="the first save")
        assert emulated.status(waiting) == "running"
        assert not list(site.images.glob("waiting*"))
        assert process.poll() is None, "the first save was over before we looked"
        process.terminate()
        assert process.wait(wait.LONG) == 9


def test_as_many_side_by_side_as_told(site: cli.Site) -> None:
    most = 0
    with ExitStack() as stack:
        for name in "abcdef":
            stack.enter_context(emulated.guest(site, name, throttle="3M"))
        with site.start("save-all", "--parallel", "3", "--json") as process:
            while process.poll() is None:
                most = max(most, len(list(site.images.glob("*.partial"))))
                threading.Event().wait(0.005)
            assert process.returncode == 0
    assert most == 3


def test_more_side_by_side_while_that_is_faster(site: cli.Site) -> None:
    """Each guest writes 4 MiB/s, whatever the others do: so a third one is worth its slot."""
    most = 0
    with ExitStack() as stack:
        for name in "abcd":
            stack.enter_context(emulated.guest(site, name, size=32 * MIB, throttle="4M"))
        with site.start("save-all", "--json") as process:
            while process.poll() is None:
                most = max(most, len(list(site.images.glob("*.partial"))))
                threading.Event().wait(0.005)
            assert process.returncode == 0
    assert most >= 3


def test_dry_run_touches_nothing(site: cli.Site) -> None:
    with (
        emulated.guest(site, "teacher", size=80 * MIB) as teacher,
        emulated.guest(site, "fits", priority=1) as fits,
        emulated.guest(site, "vast", size=96 * MIB),
    ):
        unknown = site.run("save-all", "fits", "--deadline", "1s", "--dry-run", check=0)
        assert "no saved image to estimate the rate from" in unknown.stdout
        site.run("save", "teacher", check=0)
        assert not emulated.answers(teacher)
        before = sorted(site.images.iterdir())
        told = site.run("save-all", "--dry-run", "--json", check=0).json()
        seconds = {line["guest"]: line["estimate_s"] for line in told["guests"]}
        assert seconds["vast"] > 8 * seconds["fits"] > 0
        enough_for_one = seconds["fits"] + seconds["vast"] / 2
        words = ("save-all", "--deadline", str(enough_for_one), "--dry-run")
        done = site.run(*words, "--json", check=3).json()
        shown = site.run(*words, check=3).stdout
        assert emulated.status(fits) == "running"
        assert sorted(site.images.iterdir()) == before
    assert emulated.outcomes(done) == {
        "fits": "planned",
        "vast": "no_time",
        "teacher": "not_running",
    }
    lines = {line["guest"]: line for line in done["guests"]}
    assert lines["vast"]["error"]["id"] == "check.deadline"
    assert "would be saved" in shown
    assert "NO TIME" in shown
    assert emulated.recorded(site) == []
    assert done["needed_bytes"] == lines["fits"]["size_bytes"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda each: each.name)
def test_interrupted_committed_ones_stay_recorded(site: cli.Site, number: signal.Signals) -> None:
    with (
        emulated.guest(site, "quick", priority=1),
        emulated.guest(site, "slow", throttle="1M") as slow,
        emulated.guest(site, "next") as following,
    ):
        with qmp.connect(slow) as client:
            before = state.of(client)
        with site.start("save-all", "--parallel", "1", "--json") as process:
            wait.until(lambda: "quick" in emulated.committed(site), what="the first image")
            _await_writing(site, "slow")
            process.send_signal(number)
            assert cli.ended(process, check=9).error()["data"]["saved"] == ["quick"]
        with qmp.connect(slow) as client:
            state.assert_left_as_found(before, state.of(client))
        assert emulated.status(following) == "running"
        assert [each["guest"] for each in emulated.recorded(site)] == ["quick"]
        assert len(list(site.images.iterdir())) == 1


def _await_writing(site: cli.Site, name: str) -> None:
    def writes() -> bool:
        return any(path.stat().st_size > 3 * MIB for path in site.images.glob(f"{name}*.partial"))

    wait.until(writes, what=f"pages of {name}")


def test_two_at_once_do_not_meet(site: cli.Site) -> None:
    with emulated.guest(site, "slow", throttle="512K"), site.start("save-all", "--json") as first:
        wait.until(lambda: list(site.images.iterdir()), what="the save")
        assert "check.refused" not in site.run("save-all", check=8).stderr
        site.run("restore-all", check=8)
        first.terminate()
        assert first.wait(wait.LONG) == 9


def test_an_image_of_before_is_stale_once_its_guest_is_seen_alive(site: cli.Site) -> None:
    """Or a restore-all would bring old memory back onto disks that have moved on."""
    with emulated.guest(site, "web"):
        site.run("save-all", check=0)
        old = emulated.recorded(site)
    assert [each["guest"] for each in old] == ["web"]
    still_off = site.run("save-all", "--json", check=0).json()
    assert still_off["guests"][0]["image"] == old[0]["image"]
    assert emulated.recorded(site) == old
    # Started again, and its disk is full.
    with emulated.guest(site, "web", env=inject.environment(inject.FULL)):
        site.run("save-all", check=4)
        assert emulated.recorded(site) == []


def test_guests_that_go_on_are_not_to_be_brought_back(site: cli.Site) -> None:
    with emulated.guest(site, "web") as socket:
        done = site.run("save-all", "--then", "resume", "--json", check=0).json()
        assert emulated.status(socket) == "running"
    assert emulated.outcomes(done) == {"web": "saved"}
    assert emulated.recorded(site) == []
    assert len(list(site.images.iterdir())) == 1


def test_a_guest_left_in_its_image_is_told(site: cli.Site) -> None:
    with emulated.guest(site, "web") as socket:
        image = site.run("save", "web", "--then", "leave", "--json", check=0).json()["image"]
        done = site.run("save-all", "--json", check=0).json()
        assert emulated.outcomes(done) == {"web": "skipped"}
        assert done["guests"][0]["image"] == image
        site.run("discard", image, "--yes", check=0)
        lost = site.run("save-all", "--json", check=3).json()
        assert lost["guests"][0]["error"]["id"] == "check.run_state"
        assert emulated.status(socket) == "postmigrate"


def test_emulated_guests_are_not_started_to_be_saved(site: cli.Site) -> None:
    site.add_guest("toy", emulator={"memory": "1M"})
    done = site.run("save-all", "--json", check=0).json()
    assert emulated.outcomes(done) == {"toy": "not_running"}
    assert processes.strays() == {}


def test_guests_of_names_that_file_names_cannot_tell_apart(site: cli.Site, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    places = [tmp_path / "a" / "b.qmp", tmp_path / "a_b.qmp"]
    with emulated.guest(site, "one") as one, emulated.guest(site, "two") as two:
        for socket, place in zip((one, two), places, strict=True):
            place.symlink_to(socket)
        done = site.run("save-all", *(f"qmp:{place}" for place in places), "--json", check=0).json()
    assert done["saved"] == 2
    assert len({line["image"] for line in done["guests"]}) == 2


def test_a_record_that_cannot_be_read_is_set_aside(site: cli.Site) -> None:
    (site.state / "save-all.json").write_text('{"version": 1, "guests": [')
    with emulated.guest(site, "web"):
        shown = site.run("save-all", check=0)
    assert "set aside" in shown.stderr
    assert (site.state / "save-all.json.unreadable").exists()
    assert emulated.committed(site) == {"web"}


def test_without_a_record_nothing_is_begun(site: cli.Site) -> None:
    (site.state / "save-all.json.new").mkdir()  # where the next version would be written
    with emulated.guest(site, "web") as socket:
        refused = site.run("save-all", "--json", check=3).json()
        assert "save-all.json" in refused["error"]["message"]
        assert emulated.status(socket) == "running"
    assert list(site.images.iterdir()) == []


def test_summary_for_people(site: cli.Site) -> None:
    with emulated.guest(site, "web", priority=7):
        site.add_guest("off", emulated.socket_of(site, "off"))
        shown = site.run("save-all", check=0).stdout.splitlines()
    assert shown[0].split() == ["guest", "priority", "size", "time", "outcome", "image"]
    assert shown[1].split()[:2] == ["web", "7"]
    assert str(site.images) in shown[1]
    assert "not running" in shown[2]
    assert shown[3].startswith("save-all: 1 saved, 1 not running, in ")
