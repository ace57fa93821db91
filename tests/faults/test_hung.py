"""A QEMU that stops answering in the middle of a save is left to ``mapsave recover``."""

import os
import signal
import sys

from tests.faults import struck
from tests.kit import cli, qemu

_IMPATIENT = """
import os, signal, sys
from mapsave.cli import main
from mapsave.monitor import qmp
from mapsave.operations import ending, journal
plain = journal.Journal.record
def record(self, step, data):
    plain(self, step, data)
    if step == sys.argv[2]:
        # From here on QEMU hangs, and no one waits for it longer than half a second.
        os.kill(int(sys.argv[1]), signal.SIGSTOP)
        qmp.QmpSession.execute.__kwdefaults__["timeout"] = ending.QUIT_TIMEOUT = 0.5
journal.Journal.record = record
main.main(sys.argv[3:])
"""


def _impatient(site: cli.Site, guest: qemu.Qemu, step: str, then: str) -> str:
    """Save a guest that hangs from ``step`` on; return what is said of the failure."""
    site.add_guest("web01", guest.qmp)
    command = [sys.executable, "-c", _IMPATIENT, str(guest.pid), step]
    try:
        done = site.run("save", "web01", "--then", then, check=4, command=command)
    finally:
        os.kill(guest.pid, signal.SIGCONT)  # whatever came of it, the kit ends it
    assert "mapsave recover" in done.stderr
    assert struck.journals(site), "the journal is what recover works from"
    return done.stderr


def test_save_of_a_hung_guest_is_finished_by_recover(site: cli.Site) -> None:
    with qemu.running(memory="32M", paused=False) as guest:
        _impatient(site, guest, "migrate", "resume")
        site.run("recover", check=0)
        assert guest.status() == "running"
        assert not struck.journals(site)
        assert not struck.partials(site)


def test_a_guest_that_does_not_end_behind_its_save_is_ended_by_recover(site: cli.Site) -> None:
    """No one may believe that it has ended: what would be restored is a second one."""
    with qemu.running(memory="32M", paused=False) as guest:
        assert "[save.guest_not_ended]" in _impatient(site, guest, "committed", "quit")
        site.run("recover", check=0)
        guest.wait()
        assert not struck.journals(site)
        (image,) = site.run("list", "--json", check=0).json()["images"]
        assert image["state"] == "saved"
