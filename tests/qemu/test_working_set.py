"""The working set of a guest: what its processor touched, and nothing that a save reads."""

from mapsave.image import image
from mapsave.image.working_set import WorkingSet
from mapsave.operations import working_sets

from tests.kit import cli, patterns, wait
from tests.qemu import helpers
from tests.qemu.scene import saved

PAGE = 4096


def _recorded(site: cli.Site, name: str) -> WorkingSet:
    with image.opened(site.images / name) as opened:
        found = working_sets.read(site.state, opened.block.uuid)
    assert found is not None
    return found


def test_what_a_guest_touches(site: cli.Site) -> None:
    """A firmware that counts in half a MiB of its memory; the image has some of all of it."""
    start, length = (part // PAGE for part in helpers.COUNTED)
    firmware = helpers.counting_firmware(site.directory)
    with saved(site, *firmware, ram=patterns.sparse) as scene:
        site.run("restore", scene.image, "--instant", "on", "--run", check=0)
        with scene.guest.successor() as guest:
            wait.until(lambda: all(helpers.counts(guest)), what="the firmware's counting")
            learned = site.run("warm", scene.image, "--learn", "--json", check=0).json()
            assert learned["learned_from"] == [{"guest": "web01", "pid": guest.pid}]
            site.run("save", "web01", "-o", "again", "--json", check=0)
        bits = _recorded(site, scene.image.name).blocks["pc.ram"]
        assert bits[start : start + length].all()
        # Others are the firmware's copies, and pages that the kernel maps around those.
        assert bits.count() < len(bits) / 8
        assert _recorded(site, "again").blocks["pc.ram"][start : start + length].all()
        done = site.run("restore", "again", "--instant", "on", "--json", check=0).json()
        assert done["warm"]["why_not"] is None
        # Where it has just counted to 256, a page is zero, and not in the image.
        assert done["warm"]["bytes"] == done["warm"]["of_bytes"]
        with scene.guest.successor():
            pass
