"""AppArmor: mapsaved in the profile that ships, in a mount namespace of its own as its unit has."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kit import cli, patterns, ram, state
from tests.kit.service import Service
from tests.mac.guest import apparmor_guests as guests
from tests.mac.guest import mapsaved, meddling

_HOOKS = Path("/etc/mapsave/hooks.d")
_TEXTFILE = Path("/var/lib/prometheus/node-exporter/mapsave.prom")
_TOLD = Path("/run/told")  # where mapsave itself may not write
_SCRIPTS = {
    "tell": f"""
read -r confinement </proc/self/attr/apparmor/current
echo "$MAPSAVE_HOOK $MAPSAVE_GUEST $confinement" >>{_TOLD}
""",
    "hang": "exec sleep 600",
}


@pytest.fixture
def furnished(site: cli.Site) -> Iterator[cli.Site]:
    """The site with hooks, of which one is over its time, groups, and a file for node_exporter."""
    made = [_HOOKS, _TEXTFILE.parent]
    for directory in made:
        directory.mkdir(parents=True)
    for name, script in _SCRIPTS.items():
        (_HOOKS / name).write_text(f"#!/bin/sh\n{script}\n")
        (_HOOKS / name).chmod(0o755)
    hooks = {"before_save": ["tell"], "after_save": ["hang"], "timeout": "1s"}
    settings = {"operators": ["adm"], "textfile": str(_TEXTFILE)}
    site.settings.update(hooks=hooks, service=settings)
    yield site
    _TOLD.unlink(missing_ok=True)
    for directory in made:
        shutil.rmtree(directory)


def test_service_recovers_saves_and_restores(furnished: cli.Site, tmp_path: Path) -> None:
    """One that is killed amid a save, and the next one: a start takes ten seconds here."""
    site, image = furnished, furnished.images / "served"
    with guests.profile() as profile, guests.running(profile, ram=patterns.dense) as guest:
        site.add_guest("web01", guest.qmp, launch=guest.argv, policy=guests.POLICY)
        found, before = guest.state(), guest.snapshot_ram(tmp_path / "before")
        words = ("save", "web01", "--image", str(image), "--json")
        with _running(site) as doomed, site.start(*words) as process:
            mapsaved.await_begin(site)
            with meddling.held(doomed.process, lambda: meddling.handed_over(guest)):
                assert profile.rules() == guests.both_names(image)
                assert guests.allows(profile, image)
                doomed.kill()
            with _running(site) as service:
                cli.ended(process, check=9)
                _assert_taken_out(profile, image)
                state.assert_left_as_found(found, guest.state())
                saved = site.run(*words, check=0).json()
                guest.wait()
                assert len(saved["label"]["detail"]["rules"]) == 2
                _assert_taken_out(profile, image)
                listed = site.run("ps", "--all", "--json", check=0).json()["operations"]
                assert [each["state"] for each in listed] == ["done", "cancelled"]
                assert listed[0]["result"] == saved
                mapsaved.done(service, kind="restore", image=image.name)
                with guest.successor() as restored:
                    assert guests.context_of(restored.pid) == "qemu-web01 (enforce)"
                    ram.assert_same(before, restored.ram)
                assert b"\nprocess_open_fds " in service.request("GET", "/metrics").body
                assert service.stop() == 0
    assert _TOLD.read_text() == "before_save web01 unconfined\n" * 2
    assert "'hang' of after_save did not finish within 1 s" in service.logged()
    assert "mapsave_operations_begun_total{" in _TEXTFILE.read_text()


def _assert_taken_out(profile: guests.Profile, image: Path) -> None:
    assert profile.rules() == []
    assert not guests.allows(profile, image)


@contextmanager
def _running(site: cli.Site) -> Iterator[Service]:
    with mapsaved.running(site, ["unshare", "-m", *cli.COMMAND]) as service:
        assert guests.context_of(service.pid) == "mapsave (enforce)"
        yield service
