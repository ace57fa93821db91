"""Hooks of libvirt guests: they find the domain, at the libvirt where it is."""

import shutil

from tests.kit import cli, domain, patterns, tree
from tests.kit.libvirtd import Daemon
from tests.libvirt import scene

_WHERE = 'echo "$MAPSAVE_HOOK|$MAPSAVE_URI|$MAPSAVE_DOMAIN|$MAPSAVE_SOCKET"'
_MOMENTS = ("before_save", "after_save", "before_restore", "after_restore")


def test_where_the_domain_is(daemon: Daemon, site: cli.Site) -> None:
    site.add_hook("hook", _WHERE, *_MOMENTS)
    with domain.running(daemon, ram=patterns.sparse, transient=False) as guest:
        uri, _, name = guest.address.removeprefix("libvirt+").partition("#")
        shown = site.run("--debug", "save", guest.address, "-o", "image", check=0).stderr
        assert f"before_save|{uri}|{name}|" in shown
        assert f"after_save|{uri}|{name}|" in shown
        words = ("--debug", "restore", "image", "--guest", guest.address)
        shown = site.run(*words, check=0).stderr
        assert f"before_restore|{uri}|{name}|" in shown
        assert f"after_restore|{uri}|{name}|" in shown


def test_the_clock_is_set_through_libvirt(daemon: Daemon, site: cli.Site) -> None:
    """The guest has no agent, which libvirt says of just this domain."""
    with scene.small(daemon, paused=False, transient=False) as guest:
        hook = site.add_hook("hook", "", "after_restore")
        shutil.copy(tree.ROOT / "examples/hooks/set-clock", hook)
        site.run("save", guest.address, "-o", "image", check=0)
        shown = site.run("restore", "image", "--guest", guest.address, check=0).stderr
        assert "hook 'hook' of after_restore failed with exit status 1" in shown
        assert "QEMU guest agent is not configured" in shown
