"""What may happen right when a restored guest is resumed: it never runs beside an unused image."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.faults import struck
from tests.kit import cli, patterns, qemu, service

NAME = "web01"
IMAGE = "one.mapsave"
RESTORE = ("restore", IMAGE, "--json")


@contextmanager
def _about_to_resume(
    site: cli.Site, *, step: str = "run", paused: bool = False
) -> Iterator[tuple[subprocess.Popen[str], qemu.Qemu]]:
    """Save a guest, and restore it up to a step: "run" is where it is about to be resumed."""
    with qemu.guest(site, NAME, memory="16M", ram=patterns.sparse, paused=paused) as guest:
        site.run("save", NAME, "--image", IMAGE, check=0)
        guest.wait()
        with struck.stopped(site, step, *RESTORE) as process, guest.successor() as restored:
            yield process, restored


def test_a_paused_guest_whose_destination_is_gone_is_restored_again(site: cli.Site) -> None:
    with _about_to_resume(site, step="mark", paused=True) as (process, restored):
        restored.kill()
        restored.wait()
        assert (
            "exited before the guest was resumed" in cli.ended(process, check=5).error()["message"]
        )
        site.run("restore", IMAGE, check=0)
        with restored.successor() as again:
            assert again.status() != "running"


def _is_used_up(site: cli.Site) -> None:
    refused = site.run("restore", IMAGE, "--json", check=3).error()
    assert refused["id"] == "check.already_restored"


def test_a_destination_that_is_not_reached_lives_and_is_resumed_by_recovery(site: cli.Site) -> None:
    """`cont` may have been on its way: whether the guest runs cannot be known."""
    with _about_to_resume(site) as (process, restored):
        struck.cut_off(process, restored.qmp)
        error = cli.ended(process, check=5).error()
        assert "recover" in error["hint"]
        assert "remains marked" in error["message"]
        assert restored.alive()
        _is_used_up(site)
        (line,) = site.run("recover", "--json", check=0).json()["operations"]
        assert (line["error"], line["outcome"]) == (None, "guest restored")
        assert restored.status() == "running"
        assert not struck.journals(site)
        _is_used_up(site)


def test_a_paused_guest_whose_monitor_is_lost_in_the_end_is_restored(site: cli.Site) -> None:
    with _about_to_resume(site, step="mark", paused=True) as (process, restored):
        struck.cut_off(process, restored.qmp)
        done = cli.ended(process, check=0).json()
        assert done["run_state"] == "unknown"
        assert any("could not be queried" in words for words in done["warnings"])
        assert restored.status() != "running"
        assert not struck.journals(site)
        _is_used_up(site)


# The destination is killed as soon as it has resumed the guest.
_ENDS_AT_ONCE = """
import sys
from mapsave.cli import main
from mapsave.monitor import qmp
from tests.faults import killer
plain = qmp.QmpSession.resume
async def resume(self):
    await plain(self)
    killer.strike("child:KILL")
qmp.QmpSession.resume = resume
main.main(sys.argv[1:])
"""


def test_a_guest_that_ran_and_is_gone_leaves_its_image_marked(site: cli.Site) -> None:
    with qemu.guest(site, NAME, memory="16M", ram=patterns.sparse, paused=False) as guest:
        site.run("save", NAME, "--image", IMAGE, check=0)
        guest.wait()
        done = site.run(*RESTORE, check=5, command=[sys.executable, "-c", _ENDS_AT_ONCE])
    assert "the image remains marked as restored" in done.stdout
    assert not struck.journals(site)
    _is_used_up(site)


def test_a_clone_that_ran_and_is_gone_says_nothing_of_a_mark(site: cli.Site) -> None:
    """Its image has none: it was not restored by it."""
    site.add_guest("toy", emulator={"memory": "8M"}, clone={})
    with service.emulated_ended(site):
        site.run("save", "toy", "-o", IMAGE, check=0)
        words = ("clone", IMAGE, "--json")
        done = site.run(*words, check=5, command=[sys.executable, "-c", _ENDS_AT_ONCE]).json()
    error = done["clones"][0]["error"]
    assert "has exited since" in error["message"]
    assert ("marked" in error["message"], error["hint"]) == (False, None)
