"""AppArmor: the rule for an image, which is in QEMU's profile exactly as long as it is needed."""

from pathlib import Path

import pytest

from tests.kit import cli, patterns, ram, wait
from tests.mac.guest import apparmor_guests as guests
from tests.mac.guest import apparmor_manager as manager
from tests.mac.guest import meddling

ODD = "two words, @{HOME} #" + 'a*b?[c]{d,e}^f"g\\h' + "new\nline\ttab \u00e9\u2028"


def _context(pid: int) -> str:
    ran = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return guests.context_of(pid) if bytes(manager.COMMAND) in ran else ""


@pytest.mark.unconfined
def test_mapsave_is_confined_if_it_is_to_be(site: cli.Site) -> None:
    expected = "mapsave (enforce)" if manager.CONFINED else "unconfined"
    with (
        guests.profile() as profile,
        guests.running(profile) as guest,
        guest.frozen(),
        site.start("check", guest.address) as process,
    ):
        wait.until(lambda: _context(process.pid) == expected, what=f"mapsave: {expected}")


def test_own_profile_is_enforced(site: cli.Site) -> None:
    """What the rest is worth: mapsave may not read what is none of its business."""
    secret = Path("/srv") / manager.SECRET
    secret.write_text("secret")
    done = site.run("inspect", secret)
    assert done.returncode not in (0, 1), done
    assert "Permission denied" in done.stderr
    assert guests.refusals('profile="mapsave"', 'operation="open"', str(secret))


@pytest.mark.unconfined
def test_saves_and_restores(site: cli.Site, tmp_path: Path) -> None:
    image = site.images / "one"
    with guests.profile() as profile:
        with guests.running(profile, ram=patterns.dense) as guest:
            site.add_guest("web01", guest.qmp, launch=guest.argv, policy=guests.POLICY)
            before = guest.snapshot_ram(tmp_path / "before")
            words = ("save", "web01", "--image", image, "--json")
            label = site.run(*words, check=0).json()["label"]
            guest.wait()
            assert label["process"] == "qemu-web01 (enforce)"
            wanted = [f'"{image}.partial" rw,', f'"{image}" rw,']
            assert label["detail"]["rules"] == wanted
            assert profile.rules() == []
            assert not guests.allows(profile, image)
            # QEMU opens it itself, which takes a rule while it starts, be mapsave confined or not.
            done = site.run("restore", image, "--instant", "on", "--json", check=0).json()
            assert done["instant"] is True
            assert not guests.allows(profile, image)
            with guest.successor() as restored:
                assert guests.context_of(restored.pid) == "qemu-web01 (enforce)"
                ram.assert_same(before, restored.ram)
        assert profile.rules() == []
    assert guests.refusals(str(image)) == []


def test_rule_is_there_while_the_save_lasts(site: cli.Site) -> None:
    """Both names, and neither others that the name would match as a pattern, nor other files."""
    image = site.images / "a*"
    with guests.profile() as profile, guests.running(profile) as guest:
        with site.start(*guests.save(guest, image, guests.POLICY, "--then", "leave")) as process:
            with meddling.held(process, lambda: meddling.handed_over(guest)):
                assert profile.rules() == guests.both_names(site.images / "a\\*")
                assert guests.allows(profile, image)
                assert guests.allows(profile, image.with_name("a*.partial"))
                assert not guests.allows(profile, image.with_name("ab"))
                assert not guests.allows(profile, site.config)
            cli.ended(process, check=0)
        assert profile.rules() == []
        assert not guests.allows(profile, image)


@pytest.mark.refusal
def test_refused_before_with_the_rule_that_is_missing(site: cli.Site) -> None:
    """The profile has no line for mapsave's rules. With the rule of the error, it works."""
    with guests.profile(include="") as profile, guests.running(profile, paused=False) as guest:
        before = guest.state()
        words = guests.save(guest, site.images / "refused")
        rule = f'"{site.images}/*" rw,'
        error = guests.assert_refused(site.run(*words), "qemu-web01 (enforce)", rule)
        assert error["hint"] == f"add to the profile qemu-web01: {rule}"
        assert "include if exists <local/mapsave-qemu-web01>" in error["message"]
        assert guest.state() == before
        assert not [event for event in guest.control.events if event["event"] == "STOP"]
        assert list(site.images.iterdir()) == []
        assert guests.refusals("refused") == [], "the kernel was asked, so it was handed over"
        profile.write(rules=rule, include="")
        assert site.run(*words, check=0).json()["label"]["detail"] == {"rules": []}


@pytest.mark.refusal
def test_profile_that_denies_it_whatever_is_added(site: cli.Site) -> None:
    with (
        guests.profile(rules="deny /var/lib/mapsave/*/images/** w,") as profile,
        guests.running(profile, paused=False) as guest,
    ):
        before = guest.state()
        done = site.run(*guests.save(guest, site.images / "denied"))
        guests.assert_refused(done, "look for a deny rule")
        assert guest.state() == before
        assert profile.rules() == []
    assert list(site.images.iterdir()) == []


def test_complaining_profile_needs_nothing(site: cli.Site) -> None:
    with guests.profile(flags="complain", include="") as profile, guests.running(profile) as guest:
        saved = site.run(*guests.save(guest, site.images / "complain"), check=0).json()
        assert saved["label"]["process"] == "qemu-web01 (complain)"
        assert saved["label"]["detail"] == {}


def test_odd_name(site: cli.Site) -> None:
    with guests.profile() as profile, guests.running(profile) as guest:
        saved = site.run(*guests.save(guest, site.images / ODD), check=0).json()
        assert len(saved["label"]["detail"]["rules"]) == 2
        assert profile.rules() == []
    assert [path.name for path in site.images.iterdir()] == [ODD]


@pytest.mark.unconfined
def test_restore_takes_a_rule_only_if_mapsave_is_confined(site: cli.Site) -> None:
    image = site.images / "one"
    with guests.profile() as profile:
        with guests.running(profile) as guest:
            site.run(*guests.save(guest, image), check=0)
        profile.write(include="")
        with guests.running(profile, incoming=True) as guest:
            words = ("restore", image, "--into", guest.address, "--policy", guests.POLICY, "--json")
            done = site.run(*words)
            if manager.CONFINED:
                guests.assert_refused(done, f'"{site.images}/*" r,', "no rule")
                assert guest.status() == "inmigrate"
                profile.write(rules=f'"{image}" r,', include="")
                done = site.run(*words)
            assert done.returncode == 0, done
            assert guest.status() != "inmigrate"
        assert profile.rules() == []
    assert guests.refusals(str(image)) == []


def test_profile_as_libvirt_lays_it_out(site: cli.Site) -> None:
    """The rule goes where libvirt has the guest's disks, and that file is as before."""
    image = site.images / "one"
    name = "libvirt-8a4a3a4c-0a48-4a45-a7bb-8a7a4f0b2d61"
    disks = '  "/var/log/libvirt/**/x.log" w,\n  "/srv/disk.qcow2" rwk,\n'
    with guests.libvirt_profile(name, disks) as profile:
        with guests.running(profile) as guest, site.start(*guests.save(guest, image)) as process:
            with meddling.held(process, lambda: meddling.handed_over(guest)):
                assert profile.rules_file.read_text().startswith(disks)
                assert profile.rules() == guests.both_names(image)
            cli.ended(process, check=0)
        assert profile.rules_file.read_text() == disks
        assert not guests.allows(profile, image)


def test_two_guests_of_one_profile(site: cli.Site) -> None:
    """The rule of the one stays while that of the other is taken out."""
    first, second = site.images / "first", site.images / "second"
    with guests.profile() as profile, guests.running(profile) as one:
        with guests.running(profile) as other, site.start(*guests.save(one, first)) as process:
            with meddling.held(process, lambda: meddling.handed_over(one)):
                site.run(*guests.save(other, second), check=0)
                assert profile.rules() == guests.both_names(first)
                assert not guests.allows(profile, second)
            cli.ended(process, check=0)
        assert profile.rules() == []
