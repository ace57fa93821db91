"""AppArmor: the QEMU of a proof runs in a profile of its own, tighter than the guest's."""

import signal
from pathlib import Path

import pytest

from tests.kit import cli, patterns
from tests.mac.guest import apparmor_guests as guests
from tests.mac.guest import apparmor_manager as manager
from tests.mac.guest import proofs

_NAME = "mapsave-proof-"


def _loaded() -> list[str]:
    listed = Path("/sys/kernel/security/apparmor/profiles").read_text().splitlines()
    return [line for line in listed if line.startswith(_NAME)]


def _may(pid: int, *paths: Path) -> tuple[str, list[bool]] | None:
    """Return in which profile a QEMU runs, and which of these files it may read."""
    profile = guests.context_of(pid)
    if not profile.startswith(_NAME):
        return None
    name = profile.partition(" ")[0]
    return profile, [guests.allows_reading(name, path) for path in paths]


@pytest.mark.unconfined
@pytest.mark.once
def test_proven_in_a_profile_of_its_own(site: cli.Site) -> None:
    """It may read the one image, and neither another nor the guest's own files."""
    image, other, disk = site.images / "it", site.images / "other", Path("/srv/disk")
    with guests.profile(rules="/srv/disk rwk,") as profile:
        with guests.running(profile, ram=patterns.sparse) as guest:
            site.add_guest("web01", guest.qmp, launch=guest.argv, policy=guests.POLICY)
            words = ("save", "web01", "--image", image, "--prove", "pages", "--json")
            with site.start(*words) as process:
                found, _ = proofs.seen(process, lambda pid: _may(pid, image, other, disk))
                assert found.endswith(" (enforce)")
            guest.wait()
        assert (profile.rules(), _loaded()) == ([], [])
        with site.start("prove", image, "--json") as process:
            _, may = proofs.seen(process, lambda pid: _may(pid, image, other, disk))
            assert may == [True, False, False]
        core = site.images / "core"
        site.run("core", image, "-o", core, check=0)
        assert core.stat().st_size > 32 << 20
    assert _loaded() == []
    assert guests.refusals(_NAME, image.name) == []


@pytest.mark.unconfined
@pytest.mark.once
def test_proven_once_the_profile_of_libvirt_is_gone(site: cli.Site) -> None:
    """libvirt loads the profile of a guest as it starts, and unloads it at its end."""
    image = site.images / "one"
    name = "libvirt-8a4a3a4c-0a48-4a45-a7bb-8a7a4f0b2d61"
    with guests.libvirt_profile(name, "") as profile, guests.running(profile) as guest:
        site.run(*guests.save(guest, image), check=0)
        guest.wait()
        manager.unload(profile.file)
        profile.file.unlink()
        with site.start("prove", image, "--trust-recorded-command", "--json") as process:
            found, _ = proofs.seen(process, _may)
            assert found.endswith(" (enforce)")
    assert _loaded() == []


def test_profile_of_a_proof_that_was_killed(site: cli.Site) -> None:
    """The next proof removes it; without a process it lets nobody do anything."""
    image = site.images / "one"
    with guests.profile() as profile, guests.running(profile) as guest:
        site.add_guest("web01", guest.qmp, launch=guest.argv, policy=guests.POLICY)
        site.run("save", "web01", "--image", image, check=0)
        guest.wait()
        with site.start("prove", image) as process:
            while not _loaded() and process.poll() is None:
                pass
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert len(_loaded()) == 1
        site.run("prove", image, check=0)
        assert _loaded() == []


@pytest.mark.refusal
@pytest.mark.unconfined
@pytest.mark.once
def test_a_proof_that_cannot_be_confined_is_refused(site: cli.Site) -> None:
    """As in a unit with NoNewPrivileges: said before the guest is touched."""
    under = ["setpriv", "--no-new-privs", "--"]
    with guests.profile(rules="/var/lib/mapsave/** rw,") as profile, guests.running(profile) as one:
        words = guests.save(one, site.images / "no", guests.POLICY, "--prove", "load")
        done = site.run(*words, under=under)
        assert done.returncode != 0, "not refused"
        assert done.returncode == 3
        assert "NoNewPrivileges" in done.error("check.not_provable")["message"]
        assert "NoNewPrivileges" in site.run("check", one.address, "--json", under=under).stdout
    assert list(site.images.iterdir()) == []
