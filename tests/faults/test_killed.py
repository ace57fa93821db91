"""mapsave, or QEMU, killed at every step: no guest is lost, and ``mapsave recover`` tidies up."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults import struck
from tests.faults.slow import IMAGE, NAME, await_writing, looked_at, slow_guest
from tests.faults.struck import NOT_YET, RESTORE, THEN, WHOLE
from tests.kit import cli, inject, patterns, qemu, ram, state, wait
from tests.kit.outcomes import COMMITTED, LOADED, PUT_BACK, UNDONE

_LEFT = {"resume": "running", "leave": "postmigrate"}


def _killed(site: cli.Site, where: str, step: str, then: str) -> None:
    struck.killed(site, where, step, "save", NAME, "--image", IMAGE, "--then", then)


def _recovered(site: cli.Site, outcome: str) -> None:
    """Recover as ``struck.recovered`` does; again finds nothing to do."""
    struck.recovered(site, outcome)
    again = site.run("recover", "--json", check=0).json()
    assert (again["operations"], again["swept"]) == ([], [])


@contextmanager
def _saved(site: cli.Site) -> Iterator[qemu.Qemu]:
    """Save a running guest, which is gone then."""
    with qemu.guest(site, NAME, memory="16M", ram=patterns.dense, paused=False) as guest:
        site.run("save", NAME, "--image", IMAGE, check=0)
        guest.wait()
        yield guest


@pytest.mark.parametrize(
    ("where", "step", "runs"),
    [
        *((*at, number % 2 == 1) for number, at in enumerate(NOT_YET)),
        ("after", "hand-over", True),
        ("after", "migrate", False),
    ],
)
def test_killed_before_the_stream_is_whole(
    site: cli.Site, tmp_path: Path, where: str, step: str, runs: bool
) -> None:
    then = THEN[NOT_YET.index((where, step)) % 3]
    with qemu.guest(site, NAME, memory="16M", ram=patterns.dense, paused=not runs) as guest:
        found = guest.state()
        before = None if runs else guest.snapshot_ram(tmp_path / "before")
        _killed(site, where, step, then)
        _recovered(site, PUT_BACK)
        state.assert_left_as_found(found, guest.state())
        if before is not None:
            ram.assert_same(before, guest.ram)
        assert not list(site.images.iterdir())
        site.run("save", NAME, "--image", IMAGE, check=0)
        guest.wait()


@pytest.mark.parametrize("step", ["migrate", "complete"])
def test_before_recovery_nothing_is_taken_for_an_image(site: cli.Site, step: str) -> None:
    outcome = {"migrate": PUT_BACK, "complete": COMMITTED}[step]
    with qemu.guest(site, NAME, memory="16M", ram=patterns.dense) as guest:
        _killed(site, "after", step, "leave")
        found, files = guest.state(), struck.contents(site)
        partial = f"{IMAGE}.partial"
        assert set(struck.states(site).values()) <= {"partial"}
        site.run("restore", site.images / partial, check=6)
        site.run("verify", site.images / partial, check=6)
        dry = site.run("recover", "--dry-run", "--json", check=0).json()
        assert [line["outcome"] for line in dry["operations"]] == [f"would be: {outcome}"]
        assert struck.contents(site) == files
        state.assert_left_as_found(found, guest.state())
        # Its own name is taken; the guest is as the dead one left it.
        assert site.run("save", NAME, "--image", IMAGE).returncode in (3, 8)
        state.assert_left_as_found(found, guest.state())
        _recovered(site, outcome)


def test_killed_in_the_middle_while_qemu_writes(site: cli.Site, tmp_path: Path) -> None:
    """QEMU goes on without mapsave; recover waits for it and commits what it has written."""
    writes, go = tmp_path / "writes", tmp_path / "go"
    held = inject.environment(inject.Rule("pwritev", "hold", count=-1), met=writes, go=go)
    with qemu.guest(site, NAME, ram=patterns.dense, env=held) as guest:
        before = guest.snapshot_ram(tmp_path / "before")
        with site.start("save", NAME, "--image", IMAGE) as saving:
            wait.until(writes.exists, what="QEMU to write")
            saving.kill()
            saving.wait(wait.LONG)
        with site.start("recover", "--json") as recovering:
            go.touch()
            done = cli.ended(recovering, check=0).json()["operations"]
        assert [line["outcome"] for line in done] == [COMMITTED]
        guest.wait()
        site.run("restore", IMAGE, check=0)
        with guest.successor() as restored:
            ram.assert_same(before, restored.ram)


def test_killed_in_the_middle_of_a_slow_save(site: cli.Site) -> None:
    """The emulated QEMU is still writing when recover comes: it is waited for."""
    with slow_guest(site) as path:
        with site.start("save", NAME, "--image", IMAGE, "--then", "resume") as saving:
            await_writing(site)
            saving.kill()
            saving.wait(wait.LONG)
        assert looked_at(path).run_state != "running"
        _recovered(site, COMMITTED)
        assert looked_at(path).run_state == "running"
        site.run("verify", IMAGE, check=0)


@pytest.mark.parametrize(
    ("step", "outcome"),
    [
        (
            "complete",
            "the host went down before the image was on stable storage: nothing to commit, "
            "partial image removed",
        ),
        ("commit", "image committed (QEMU had finished before it exited)"),
    ],
)
def test_the_whole_host_goes_down(site: cli.Site, step: str, outcome: str) -> None:
    """Written but not synced, pages may be missing though the structure is whole."""
    with qemu.guest(site, NAME, memory="16M", ram=patterns.dense):
        _killed(site, "after", step, "quit")
    (journal,) = struck.journals(site)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert boot in journal.read_text()
    struck.rewrite(journal, lambda record: {**record, "boot": "another-boot"})
    _recovered(site, outcome)
    assert [each.name for each in site.images.iterdir()] == ([IMAGE] if step == "commit" else [])


@pytest.mark.parametrize(
    ("step", "code"),
    [("hand-over", 4), ("pause", 4), ("migrate", 4), ("complete", 0), ("commit", 0)],
)
def test_qemu_killed_while_it_saves(site: cli.Site, step: str, code: int) -> None:
    """Where the stream was whole it is committed, else the save failed; nothing partial stays."""
    with qemu.guest(site, NAME, memory="16M", ram=patterns.dense, paused=False) as guest:
        arguments = ("save", NAME, "--image", IMAGE, "--json")
        result = struck.run(site, "after", step, f"{guest.pid}:KILL", *arguments)
        assert result.returncode == code, result
        assert not struck.partials(site)
        assert not struck.journals(site)
        if code:
            assert result.error_id() == "save.qemu_died"
            assert not list(site.images.iterdir())
            return
        guest.wait()
        site.run("restore", IMAGE, check=0)
        with guest.successor() as restored:
            assert restored.status() == "running"


@pytest.mark.parametrize(("where", "step", "outcome"), RESTORE)
def test_killed_in_a_restore(site: cli.Site, where: str, step: str, outcome: str) -> None:
    with _saved(site) as guest:
        struck.killed(site, where, step, "restore", IMAGE, "--instant", "off")
        _recovered(site, outcome)
        if outcome == UNDONE:
            assert struck.states(site) == {IMAGE: "saved"}
            site.run("restore", IMAGE, check=0)
        assert struck.states(site) == {IMAGE: "restored"}
        with guest.successor() as restored:
            assert restored.status() == ("paused" if outcome == LOADED else "running")


@pytest.mark.parametrize("where", ["before", "after"])
def test_restored_guest_that_was_used_since_is_not_ended(site: cli.Site, where: str) -> None:
    """Its owner let it run, and paused it: its disks have moved on, and only it has them."""
    with _saved(site) as guest:
        struck.run(site, where, "mark", "KILL", "restore", IMAGE)
        with guest.successor() as used:
            used.control.execute("cont")
            used.control.execute("stop")
            dry = site.run("recover", "--dry-run", "--json", check=0).json()
            assert [line["outcome"] for line in dry["operations"]] == [f"would be: {LOADED}"]
            _recovered(site, LOADED)
            assert used.status() == "paused"
            assert struck.states(site) == {IMAGE: "restored"}


def test_restored_guest_that_was_used_and_ended_since(site: cli.Site) -> None:
    """No one can tell any more whether its disks have moved on: the image stays marked."""
    with _saved(site) as guest:
        struck.run(site, "after", "end", "KILL", "restore", IMAGE)
        (journal,) = struck.journals(site)
        lines = journal.read_text().splitlines(keepends=True)
        assert json.loads(lines[-1])["step"] == "run"
        journal.write_text("".join(lines[:-1]))  # as if it had died before it let the guest run
        with guest.successor() as used:
            used.kill()
        done = site.run("recover", "--json", check=0).json()["operations"]
        assert "may have run, so the image remains marked" in done[0]["outcome"]
        assert struck.states(site) == {IMAGE: "restored"}


@pytest.mark.parametrize("step", ["load", "mark", "run"])
def test_qemu_killed_in_a_restore(site: cli.Site, step: str) -> None:
    with _saved(site) as guest:
        result = struck.run(site, "after", step, "child:KILL", "restore", IMAGE, "--json")
        assert result.returncode == 5, result
        assert result.error_id() == "restore.failed"
        assert not struck.journals(site)
        assert struck.states(site) == {IMAGE: "saved"}
        site.run("restore", IMAGE, check=0)
        with guest.successor() as restored:
            assert restored.status() == "running"


def test_a_guest_started_since_at_the_socket_of_a_dead_restore_is_left_alone(
    site: cli.Site,
) -> None:
    """Its owner started it again: it is not the destination, and must not be ended."""
    with _saved(site) as guest:
        struck.run(site, "after", "launch", "KILL", "restore", IMAGE)
        with qemu.running(
            name=NAME, memory="16M", directory=guest.directory, paused=False
        ) as innocent:
            _recovered(site, UNDONE)
            assert innocent.status() == "running"


def test_a_guest_that_ran_is_not_restored_again(site: cli.Site) -> None:
    """Killed as it let the guest run, which ended since: its disks have moved on."""
    with _saved(site) as guest:
        struck.run(site, "after", "end", "KILL", "restore", IMAGE)
        with guest.successor() as restored:
            restored.kill()
        _recovered(site, "guest restored, and exited since; the image remains marked as restored")
        assert site.run("restore", IMAGE, "--json", check=3).error_id() == (
            "check.already_restored"
        )


@pytest.mark.parametrize(
    ("where", "step", "then", "runs"),
    [
        *((*at, THEN[number % 3], number % 2 == 0) for number, at in enumerate(WHOLE)),
        ("after", "complete", "quit", False),
        ("before", "committed", "resume", True),
        ("after", "committed", "quit", False),
        ("after", "resume", "resume", True),
    ],
)
def test_killed_when_the_stream_is_whole(
    site: cli.Site, tmp_path: Path, where: str, step: str, then: str, runs: bool
) -> None:
    with qemu.guest(site, NAME, memory="16M", ram=patterns.dense, paused=not runs) as guest:
        found = guest.state()
        before = None if runs else guest.snapshot_ram(tmp_path / "before")
        _killed(site, where, step, then)
        _recovered(site, COMMITTED)
        if then == "quit":
            guest.wait()
        else:
            # One that did not run is not started by a resume.
            left = _LEFT[then] if runs else "postmigrate"
            state.assert_left_as_found(found, guest.state(), run_state=left)
            guest.kill()
            guest.wait()
        site.run("restore", IMAGE, check=0)
        with guest.successor() as restored:
            if before is None:
                assert restored.status() == "running"
            else:
                assert restored.status() != "running"
                ram.assert_same(before, restored.ram)
