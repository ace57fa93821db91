"""AppArmor: refusals that only the kernel sees, and what is taken out when a save fails."""

import signal
import subprocess
from typing import Any

import pytest

from tests.kit import cli, state, wait
from tests.kit.qemu import Qemu
from tests.mac.guest import apparmor_guests as guests
from tests.mac.guest import apparmor_manager as manager
from tests.mac.guest import meddling

DROPPED = "No file descriptor supplied via SCM_RIGHTS"
COMPLAINS = "attach_disconnected, complain"


@pytest.mark.refusal
def test_nothing_was_added_for_a_save(site: cli.Site, flags: str = guests.FLAGS) -> None:
    """The policy none: the descriptor of a confined mapsave is dropped, another not truncated."""
    image = site.images / "none"
    with guests.profile(flags=flags) as profile, guests.running(profile, paused=False) as guest:
        found = guest.state()
        done = site.run(*guests.save(guest, image, "none"))
        error = _assert_as_before(site, guest, found, done)
        assert f'"{image}.partial" rw' in error["message"]
        assert "has no rule to write" in error["message"]
        seen = DROPPED if manager.CONFINED else "Permission denied"
        assert seen in error["data"]["qemu"]
        operation = "file_receive" if manager.CONFINED else "truncate"
        assert guests.refusals(f'operation="{operation}"', image.name)
        assert profile.rules() == []


@pytest.mark.refusal
@pytest.mark.unconfined
def test_nothing_was_added_for_a_restore(site: cli.Site) -> None:
    """QEMU may read what somebody who is not confined has opened."""
    image = site.images / "none"
    with guests.profile() as profile:
        with guests.running(profile) as guest:
            site.run(*guests.save(guest, image), check=0)
        with guests.running(profile, incoming=True) as guest:
            done = site.run("restore", image, "--into", guest.address, "--policy", "none", "--json")
            if not manager.CONFINED:
                assert done.returncode == 0, done
                return
            error = guests.assert_refused(done, f'"{image}" r', "has no rule to read")
            assert DROPPED in error["data"]["qemu"]
            assert guest.status() == "inmigrate"
            assert site.run("inspect", image, "--json", check=0).json()["state"] == "saved"
            words = ("restore", image, "--into", guest.address, "--policy", guests.POLICY)
            site.run(*words, check=0)
        assert profile.rules() == []


@pytest.mark.refusal
def test_rule_goes_between_hand_over_and_migrate(site: cli.Site, flags: str = guests.FLAGS) -> None:
    image = site.images / "meanwhile"
    with guests.profile(flags=flags) as profile, guests.running(profile, paused=False) as guest:
        found = guest.state()
        with site.start(*guests.save(guest, image)) as process:
            with meddling.held(process, lambda: meddling.handed_over(guest)):
                # A profile that complains has not been given any.
                profile.rules_file.unlink(missing_ok=flags == COMPLAINS)
                manager.load(profile.file)
            done = cli.ended(process)
        error = _assert_as_before(site, guest, found, done)
        assert "has no rule to write" in error["message"]
        assert "Permission denied" in error["data"]["qemu"]
        # As before means that it can be saved.
        site.run(*guests.save(guest, image), check=0)
        assert profile.rules() == []


def test_refusals_of_the_kernel_need_enforcement(site: cli.Site) -> None:
    """The control: in a profile that complains, what the two cases before see does not happen."""
    for case in (test_nothing_was_added_for_a_save, test_rule_goes_between_hand_over_and_migrate):
        with pytest.raises(AssertionError, match="not refused"):
            case(site, COMPLAINS)


@pytest.mark.refusal
@pytest.mark.unconfined
def test_file_system_of_another_mount_namespace(site: cli.Site) -> None:
    """The kernel goes by the whole path there as well, and all that it takes is the flag.

    Said before where mapsave's rule would go there, and by the kernel where it is not asked to.
    """
    place = site.images / "private"
    place.mkdir()
    rule = f'  "{place}/one{{,.partial}}" rw,'
    with guests.profile(rule, flags="") as profile, guests.running(profile, paused=False) as guest:
        found = guest.state()
        needed = ("another mount namespace", "flags=(attach_disconnected)")
        # On the root file system as well, which both have mounted.
        done = _in_a_namespace_of_its_own(site, "true", *guests.save(guest, site.images / "root"))
        guests.assert_refused(done, "lacks", *needed)
        assert guests.refusals("root.partial") == [], "the kernel was asked"
        mount = f"mount -t tmpfs -o mode=700 none '{place}'"
        done = _in_a_namespace_of_its_own(site, mount, *guests.save(guest, place / "one", "none"))
        guests.assert_refused(done, "has a rule to", *needed)
        state.assert_left_as_found(found, guest.state())
        path = str(place / "one.partial").lstrip("/")
        assert guests.refusals("disconnected path", f'name="{path}"')
        profile.write()
        done = _in_a_namespace_of_its_own(site, mount, *guests.save(guest, place / "one"))
        assert done.returncode == 0, done
        assert profile.rules() == []


def _in_a_namespace_of_its_own(site: cli.Site, mount: str, *words: str) -> cli.Result:
    """Run ``mapsave`` after ``mount`` where no one else sees what that does, as of a service."""
    command = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh", *cli.COMMAND]
    done = subprocess.run(
        [*command, "--config", site.config, *words],
        capture_output=True, text=True, timeout=wait.LONG, check=False,
    )  # fmt: skip
    return cli.Result(words, done.returncode, done.stdout, done.stderr)


def test_rules_are_taken_out_when_qemu_dies(site: cli.Site) -> None:
    image = site.images / "died"
    with guests.profile() as profile, guests.running(profile) as guest:
        with site.start(*guests.save(guest, image)) as process:
            with meddling.held(process, lambda: meddling.handed_over(guest)):
                assert profile.rules() == guests.both_names(image)
                guest.kill()
            cli.ended(process, check=4)
        assert profile.rules() == []
        assert not guests.allows(profile, image)
    assert list(site.images.iterdir()) == []


@pytest.mark.cancels
def test_rules_are_taken_out_when_mapsave_is_interrupted(site: cli.Site) -> None:
    image = site.images / "interrupted"
    with guests.profile() as profile, guests.running(profile, paused=False) as guest:
        found = guest.state()
        with site.start(*guests.save(guest, image)) as process:
            with meddling.held(process, lambda: meddling.handed_over(guest)):
                process.send_signal(signal.SIGTERM)
            cli.ended(process, check=9)
        assert profile.rules() == []
        assert not guests.allows(profile, image)
        state.assert_left_as_found(found, guest.state())
    assert list(site.images.iterdir()) == []


def _assert_as_before(
    site: cli.Site, guest: Qemu, found: state.State, done: cli.Result
) -> dict[str, Any]:
    """Refused by AppArmor with nothing left behind; return the error."""
    error = guests.assert_refused(done)
    state.assert_left_as_found(found, guest.state())
    assert guest.status() == "running"
    assert list(site.images.iterdir()) == []
    return error
