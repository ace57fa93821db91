"""``mapsave restore-all``: what save-all has saved comes back, once, and in order."""

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.kit import cli, emulated, patterns, qemu, ram, wait

MIB = emulated.MIB


@contextmanager
def restored(site: cli.Site, *names: str) -> Iterator[None]:
    """End the guests ``names`` that a restore starts."""
    try:
        yield
    finally:
        for name in names:
            emulated.end(emulated.socket_of(site, name))


def test_all_come_back_with_their_ram_and_run_state(site: cli.Site, tmp_path: Path) -> None:
    names = {"web": False, "db": False, "idle": True}
    before = {}
    with ExitStack() as stack:
        for name, paused in names.items():
            socket = stack.enter_context(emulated.guest(site, name, paused=paused))
            before[name] = emulated.ram_of(socket, tmp_path / "ram")
        site.run("save-all", check=0)
    assert len(set(before.values())) == 3
    with restored(site, *names):
        done = site.run("restore-all", "--json", check=0).json()
        assert emulated.outcomes(done) == dict.fromkeys(names, "restored")
        for name, paused in names.items():
            socket = emulated.socket_of(site, name)
            assert (emulated.status(socket) == "running") is not paused
            assert emulated.ram_of(socket, tmp_path / "ram") == before[name]
        assert emulated.recorded(site) == []
        again = site.run("restore-all", check=0)
        assert again.stdout.startswith("nothing to restore")
    assert len(list(site.images.iterdir())) == 3


def test_higher_priorities_first(site: cli.Site) -> None:
    priorities = {"low": -5, "high": 5, "middle": 0}
    with ExitStack() as stack:
        for name, priority in priorities.items():
            stack.enter_context(emulated.guest(site, name, size=4 * MIB, priority=priority))
        site.run("save-all", check=0)
    with restored(site, *priorities):
        planned = site.run("restore-all", "--dry-run", "--json", check=0).json()
        assert emulated.committed(site) == set(priorities)
        done = site.run("restore-all", "--parallel", "1", "--json", check=0).json()
        assert list(emulated.outcomes(done)) == ["high", "middle", "low"]
        assert list(emulated.outcomes(planned).items()) == [
            (name, "planned") for name in emulated.outcomes(done)
        ]
        pids = {}
        for name in priorities:
            pid = emulated.pid(emulated.socket_of(site, name))
            pids[name] = Path(f"/proc/{pid}/stat").read_text().split()[21]
        assert sorted(pids, key=lambda name: int(pids[name])) == ["high", "middle", "low"]


def test_killed_in_the_middle_what_was_committed_comes_back(site: cli.Site, tmp_path: Path) -> None:
    with (
        emulated.guest(site, "done", priority=2) as done,
        emulated.guest(site, "slow", throttle="1M", priority=1) as slow,
        emulated.guest(site, "next", size=16 * MIB) as following,
    ):
        before = emulated.ram_of(done, tmp_path / "ram")
        with site.start("save-all", "--parallel", "1") as process:
            wait.until(lambda: "done" in emulated.committed(site), what="the first image")
            wait.until(lambda: list(site.images.glob("slow*.partial")), what="the second save")
            process.send_signal(signal.SIGKILL)
            assert process.wait(wait.LONG) == -signal.SIGKILL
        planned = {each["guest"]: each["time"] for each in emulated.recorded(site)}
        assert set(planned) == {"done", "slow", "next"}
        assert (planned["slow"], planned["next"]) == (None, None)
        back = site.run("restore-all", "--json", check=0).json()
        assert emulated.status(done) == "running"
        assert emulated.ram_of(done, tmp_path / "ram") == before
        assert emulated.status(slow) == "running"
        assert emulated.status(following) == "running"
        found = emulated.outcomes(back)
        # QEMU may have written the image of the one under way whole, or was restored.
        assert (found["done"], found["next"]) == ("restored", "skipped")
        assert found["slow"] in ("restored", "skipped")
        assert [each["guest"] for each in back["recovered"]] == ["slow"]
        assert emulated.recorded(site) == []


def test_committed_just_before_power_was_lost_is_not_forgotten(site: cli.Site) -> None:
    """The image is there, but the line that says so was not written any more."""
    with emulated.guest(site, "web"):
        site.run("save-all", check=0)
    path = site.state / "save-all.json"
    content = json.loads(path.read_text())
    lost = {**content["guests"][0], "guest": "lost", "image": str(site.images / "lost")}
    content["guests"].append(lost)
    for each in content["guests"]:
        each["uuid"] = each["time"] = None
    path.write_text(json.dumps(content))
    with restored(site, "web"):
        done = site.run("restore-all", "--json", check=0).json()
        assert emulated.outcomes(done) == {"web": "restored", "lost": "not_saved"}
        assert emulated.status(emulated.socket_of(site, "web")) == "running"
    assert emulated.recorded(site) == []


def test_failures_stay_for_the_next_try(site: cli.Site) -> None:
    with emulated.guest(site, "good"), emulated.guest(site, "bad", priority=1):
        site.run("save-all", check=0)
    right = site.guests["bad"]["launch"]
    site.guests["bad"]["launch"] = ["/nonexistent/qemu"]
    site.write()
    with restored(site, "good", "bad"):
        shown = site.run("restore-all", "--json", check=5).json()
        assert emulated.outcomes(shown) == {"bad": "failed", "good": "restored"}
        assert emulated.committed(site) == {"bad"}
        site.guests["bad"]["launch"] = right
        site.write()
        again = site.run("restore-all", "--json", check=0).json()
        assert emulated.outcomes(again) == {"bad": "restored"}
    assert emulated.recorded(site) == []


def test_never_twice(site: cli.Site) -> None:
    """An image restored by hand, whose guest has ended since, is not restored again."""
    with emulated.guest(site, "web"):
        site.run("save-all", check=0)
    content = (site.state / "save-all.json").read_text()
    with restored(site, "web"):
        site.run("restore", emulated.recorded(site)[0]["image"], check=0)
    assert not emulated.answers(emulated.socket_of(site, "web"))
    done = site.run("restore-all", "--json", check=0).json()
    assert emulated.outcomes(done) == {"web": "skipped"}
    assert "restored before" in done["guests"][0]["note"]
    assert not emulated.answers(emulated.socket_of(site, "web"))
    assert emulated.recorded(site) == []
    (site.state / "save-all.json").write_text(content)  # as after a write that was lost
    site.run("restore-all", check=0)
    assert not emulated.answers(emulated.socket_of(site, "web"))


def test_a_guest_that_runs_already_is_told(site: cli.Site) -> None:
    with emulated.guest(site, "web"):
        site.run("save-all", check=0)
    with emulated.guest(site, "web") as socket:
        shown = site.run("restore-all", check=0)
        assert emulated.status(socket) == "running"
    assert "the guest is already running, so its image is stale" in shown.stdout
    assert emulated.recorded(site) == []
    assert len(list(site.images.iterdir())) == 1


def test_an_image_that_is_away_or_another_fails_and_stays(site: cli.Site) -> None:
    with emulated.guest(site, "away"), emulated.guest(site, "other"):
        site.run("save-all", check=0)
    images = {each["guest"]: Path(each["image"]) for each in emulated.recorded(site)}
    images["away"].rename(site.directory / "kept")
    images["other"].write_bytes((site.directory / "kept").read_bytes())
    done = site.run("restore-all", "--json", check=3).json()
    errors = {line["guest"]: line["error"]["id"] for line in done["guests"]}
    assert errors == {"away": "image.not_found", "other": "check.refused"}
    assert emulated.committed(site) == {"away", "other"}


def test_discard_deletes_images_of_guests_that_are_back(site: cli.Site) -> None:
    with emulated.guest(site, "good"), emulated.guest(site, "bad"):
        site.run("save-all", check=0)
    site.guests["bad"]["launch"] = ["/nonexistent/qemu"]
    site.write()
    with restored(site, "good"):
        done = site.run("restore-all", "--discard", "--json", check=5).json()
        assert emulated.status(emulated.socket_of(site, "good")) == "running"
    assert {line["guest"]: line["discarded"] for line in done["guests"]} == {
        "good": True,
        "bad": False,
    }
    assert [path.name.partition("-")[0] for path in site.images.iterdir()] == ["bad"]


def test_dry_run_starts_nothing(site: cli.Site) -> None:
    with emulated.guest(site, "web"):
        site.run("save-all", check=0)
    before = emulated.recorded(site)
    shown = site.run("restore-all", "--dry-run", check=0).stdout
    assert "would be restored" in shown
    assert emulated.recorded(site) == before
    assert not emulated.answers(emulated.socket_of(site, "web"))


def test_damaged_record(site: cli.Site) -> None:
    path = site.state / "save-all.json"
    path.write_text("{")
    failed = site.run("restore-all", check=3)
    assert str(path) in failed.stderr
    assert path.read_text() == "{"


def test_interrupted(site: cli.Site) -> None:
    """The one under way is undone and stays in the record; the next restore-all brings it back."""
    with emulated.guest(site, "web"):
        site.run("save-all", check=0)
    launch = list(site.guests["web"]["launch"])
    site.guests["web"]["launch"] = [
        "sh",
        "-c",
        "exec sleep 60",
    ]  # a destination that does not come up
    site.write()
    with site.start("restore-all") as process:
        wait.until(lambda: list(site.state.glob("journal/restore-*")), what="the restore")
        process.send_signal(signal.SIGTERM)
        cli.ended(process, check=9)
    assert emulated.committed(site) == {"web"}
    site.guests["web"]["launch"] = launch
    site.write()
    with restored(site, "web"):
        site.run("restore-all", check=0)
        assert emulated.status(emulated.socket_of(site, "web")) == "running"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda each: each.name)
def test_interrupted_it_tells_who_is_back(site: cli.Site, number: signal.Signals) -> None:
    with emulated.guest(site, "web", priority=1), emulated.guest(site, "slow"):
        site.run("save-all", check=0)
    site.guests["slow"]["launch"] = ["sh", "-c", "exec sleep 60"]  # it does not come up
    site.write()
    with restored(site, "web"):
        with site.start("restore-all", "--parallel", "1", "--json") as process:
            wait.until(lambda: emulated.committed(site) == {"slow"}, what="the first guest")
            wait.until(lambda: list(site.state.glob("journal/restore-*")), what="the second one")
            process.send_signal(number)
            done = cli.ended(process, check=9)
        assert done.error()["data"]["restored"] == ["web"]
        assert "restored before that: web" in done.stderr
        assert "everything was rolled back" not in done.stderr
        assert emulated.status(emulated.socket_of(site, "web")) == "running"
    assert emulated.committed(site) == {"slow"}


def test_real_guests_side_by_side(site: cli.Site, tmp_path: Path) -> None:
    with ExitStack() as stack:
        guests, before = {}, {}
        for number, pattern in enumerate((patterns.dense, patterns.sparse, patterns.single_bytes)):
            name = f"real{number}"
            guest = stack.enter_context(
                qemu.running(name=name, memory=f"{64 + 32 * number}M", ram=pattern)
            )
            site.add_guest(name, guest.qmp, launch=guest.argv, priority=number)
            before[name] = guest.snapshot_ram(tmp_path / name)
            guests[name] = guest
        done = site.run(
            "save-all", "--parallel", "3", "--deadline", "10m", "--json", check=0
        ).json()
        assert emulated.outcomes(done) == dict.fromkeys(["real2", "real1", "real0"], "saved")
        for guest in guests.values():
            guest.wait()
        back = site.run("restore-all", "--parallel", "3", "--json", check=0).json()
        assert emulated.outcomes(back) == dict.fromkeys(["real2", "real1", "real0"], "restored")
        for name, guest in guests.items():
            successor = stack.enter_context(guest.successor())
            assert successor.status() in ("paused", "prelaunch")
            ram.assert_same(before[name], successor.ram)
