"""The same host at its next boot, a day later."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.kit import emulated, tree, wait
from tests.outside.guest import host

UNITS = ("mapsaved.service", "mapsave-save-all.service", "mapsave-restore-all.service")
_SCRIPTS = Path("/var/lib/dpkg/info")
_COMMAND = """\
#!/usr/bin/python3
import sys
sys.path.insert(0, "{sources}")
from mapsave.cli.{entry} as run
run()
"""
_SLOW_NAME = "slow"
_SLOW = f"qmp:{host.monitor(_SLOW_NAME)}"


def test_the_shutdown_has_saved_all_guests() -> None:
    saved = _last("save-all")
    assert saved["user"] == "user 'root'"
    assert emulated.outcomes(saved["result"]) == dict.fromkeys(host.GUESTS, "saved")


def test_the_boot_has_restored_all_guests() -> None:
    restored = _last("restore-all")
    journal = host.run("journalctl", "--boot", "--no-pager", "--unit=mapsave*").stdout
    assert restored["state"] == "done", f"{restored}\n{journal}"
    assert emulated.outcomes(restored["result"]) == dict.fromkeys(host.GUESTS, "restored")
    assert restored["created"] - _last("save-all")["ended"] > 3600  # the host was off
    for guest, digest in json.loads(host.NOTES.read_text()).items():
        assert host.is_active(f"guest-{guest}.service")
        assert emulated.status(host.monitor(guest)) == "running"
        assert host.digest(guest) == digest


def test_the_run_that_was_missed_came_after_them() -> None:
    restored = _last("restore-all")
    ran = host.await_operation(kind="job", after=restored["ended"])
    assert ran["state"] == "done", ran
    assert all(each["created"] < restored["created"] for each in host.operations(kind="job")[:-1])
    assert [guest["error"] for guest in ran["result"]["guests"]] == [None] * len(host.GUESTS), ran


def test_an_upgrade_waits_for_saves_and_starts_the_service_again() -> None:
    """As dpkg does it, without unpacking what would be the same."""
    _start_slow_guest()
    before = host.shown("mapsaved.service", "MainPID")
    begun = host.run("mapsave", "save", _SLOW, "--no-wait", "--then", "resume", "--json").json()
    stopping = time.time()
    host.run(_SCRIPTS / "mapsave.prerm", "upgrade", "9")
    assert not host.is_active("mapsaved.service")
    assert not host.is_active("mapsaved.socket")
    host.run(_SCRIPTS / "mapsave.postinst", "configure", "0")
    assert host.is_active("mapsaved.socket")
    assert host.shown("mapsaved.service", "MainPID") not in ("0", before)
    (saved,) = [each for each in host.operations(kind="save") if each["id"] == begun["id"]]
    assert (saved["state"], saved["error"]) == ("done", None)
    assert saved["ended"] > stopping
    for guest in (*host.GUESTS, _SLOW_NAME):
        assert emulated.status(host.monitor(guest)) == "running"


def test_no_unit_has_failed() -> None:
    assert [unit for unit in UNITS if not host.is_active(unit)] == []
    assert host.run("systemctl", "--failed", "--plain", "--no-legend").stdout == ""


def test_mapsave_is_not_removed_while_a_guest_is_paused() -> None:
    """Its save was killed. Removed then, the service has ended, and the guests run on."""
    command = ["mapsave", "--local", "--quiet", "save", _SLOW, "--then", "resume"]
    with subprocess.Popen(command) as saving:
        wait.until(
            lambda: any('"step": "migrate"' in each.read_text() for each in _journals()),
            what="the save",
        )
        saving.kill()
    refused = host.run("dpkg", "--remove", "mapsave", code=1)
    assert "not removed or replaced" in refused.stderr, refused
    assert host.is_active("mapsaved.service")
    host.run("mapsave", "--local", "recover")
    host.run("dpkg", "--remove", "mapsave")
    assert host.shown("mapsaved.service", "LoadState") == "not-found"
    assert not host.is_active("mapsaved.socket")
    for guest in (*host.GUESTS, _SLOW_NAME):
        assert emulated.status(host.monitor(guest)) == "running"


def test_setup_puts_the_units_down_where_no_package_has_them() -> None:
    """By a mapsave that is where pip would have put it; afterwards they are gone."""
    command = Path("/usr/local/bin/mapsave")
    served = command.with_name("mapsaved")
    for path, entry in ((command, "start import command"), (served, "daemon import main")):
        path.write_text(_COMMAND.format(sources=tree.SOURCES, entry=entry))
        path.chmod(0o755)
    host.run(command, "setup", "systemd")
    host.run("systemctl", "start", "mapsaved.socket")
    assert not host.is_active("mapsaved.service")
    told = host.run(command, "status", "--json").json()
    assert str(told["pid"]) == host.shown("mapsaved.service", "MainPID")
    host.run(command, "setup", "systemd", "--undo")
    for unit in ("mapsaved.service", "mapsaved.socket"):
        assert host.shown(unit, "LoadState") == "not-found"
        assert not host.is_active(unit)


def _start_slow_guest() -> None:
    """Start a guest whose save takes some seconds."""
    host.run(*host.start(_SLOW_NAME), "--pattern", "random", "--throttle", "1M")
    wait.until(lambda: emulated.answers(host.monitor(_SLOW_NAME)), what="its monitor")


def _journals() -> list[Path]:
    return list(Path("/var/lib/mapsave/state/journal").glob("save-*.jsonl"))


def _last(kind: str) -> dict[str, Any]:
    return host.operations(kind=kind)[-1]
