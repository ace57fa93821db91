"""AppArmor: ``mapsave recover`` takes out the rules of a mapsave that was killed at any step."""

import signal
import subprocess
from pathlib import Path

from tests.kit import cli, patterns, ram, state, wait
from tests.mac.guest import apparmor_guests as guests
from tests.mac.guest import apparmor_manager as manager
from tests.mac.guest.apparmor_guests import Profile

# Before the first of these nothing was added, after the last everything is taken out.
_PUT_BACK = ("after rules", "before label", "before migrate")
_COMMITTED = ("after complete", "after committed")


def test_killed_before_the_stream_is_whole(site: cli.Site, tmp_path: Path) -> None:
    image = site.images / "killed"
    with guests.profile() as profile, guests.running(profile, ram=patterns.sparse) as guest:
        found, before = guest.state(), guest.snapshot_ram(tmp_path / "before")
        for moment in _PUT_BACK:
            _killed(site, moment, *guests.save(guest, image))
            # The rules are there, in the journal at least, from which they are taken out.
            assert profile.rules() == ([] if moment == "after rules" else guests.both_names(image))
            _recovered(site, profile, image, "save rolled back")
            state.assert_left_as_found(found, guest.state())
        ram.assert_same(before, guest.ram)
        site.run(*guests.save(guest, image), check=0)


def test_killed_behind_that(site: cli.Site) -> None:
    with guests.profile() as profile, guests.running(profile, paused=False) as guest:
        for number, moment in enumerate(_COMMITTED):
            image = site.images / str(number)
            _killed(site, moment, *guests.save(guest, image, guests.POLICY, "--then", "resume"))
            assert profile.rules() == guests.both_names(image)
            _recovered(site, profile, image, "image committed")
            assert guest.status() == "running"


def test_killed_while_taking_them_out(site: cli.Site) -> None:
    """The lines are gone, but the profile is still loaded with them."""
    image = site.images / "loaded"
    with guests.profile() as profile, guests.running(profile) as guest:
        _killed(site, "after label", *guests.save(guest, image))
        profile.rules_file.write_text("")
        assert guests.allows(profile, image)
        _recovered(site, profile, image, "save rolled back")


def test_killed_and_the_image_is_gone_since(site: cli.Site) -> None:
    image = site.images / "gone"
    with guests.profile() as profile:
        with guests.running(profile) as guest:
            _killed(site, "after label", *guests.save(guest, image))
        image.with_name("gone.partial").unlink()
        done = site.run("recover", "--json", check=0).json()
        assert [line["error"] for line in done["operations"]] == [None]
        assert profile.rules() == []
        assert not guests.allows(profile, image)


def test_killed_while_restoring(site: cli.Site) -> None:
    image = site.images / "restored"
    with guests.profile() as profile:
        with guests.running(profile) as guest:
            site.run(*guests.save(guest, image), check=0)
        for moment in ("after load", "after mark"):
            with guests.running(profile, incoming=True) as guest:
                words = ("restore", str(image), "--into", guest.address, "--policy", guests.POLICY)
                _killed(site, moment, *words)
                rules = [f'"{image}" r,  {guests.MARK}']
                gone = not manager.CONFINED or moment == "after mark"
                assert profile.rules() == ([] if gone else rules)
                done = site.run("recover", "--json", check=0).json()
                assert [line["error"] for line in done["operations"]] == [None], done
            assert profile.rules() == []
            assert not guests.allows(profile, image)


def _killed(site: cli.Site, moment: str, *words: str) -> None:
    """Run ``mapsave``, confined if it is to be, until it is killed before or after a step."""
    where, step = moment.split()
    command = [*manager.KILLER, where, step, "KILL", "--config", str(site.config), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=wait.LONG, check=False)
    # aa-exec is replaced by what it runs.
    assert done.returncode == -signal.SIGKILL, done


def _recovered(site: cli.Site, profile: Profile, image: Path, outcome: str) -> None:
    done = site.run("recover", "--json", check=0).json()
    assert [line["outcome"] for line in done["operations"]] == [outcome], done
    assert profile.rules() == []
    for name in (image, image.with_name(f"{image.name}.partial")):
        assert not guests.allows(profile, name)
