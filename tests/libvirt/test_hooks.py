"""Hooks of libvirt guests: they find the domain, at the libvirt where it is."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.kit import cli, domain, patterns, tree
from tests.kit.libvirtd import Daemon
from tests.libvirt import scene

_WHERE = f"""#!{sys.executable}
from os import environ
print(*(environ[f"MAPSAVE_{{key}}"] for key in ("HOOK", "URI", "DOMAIN", "SOCKET")), sep="|")
"""


@pytest.fixture
def hooks(site: cli.Site) -> Path:
    """The hooks directory of the site."""
    made = site.directory / "hooks.d"
    made.mkdir(mode=0o755)
    moments = ("before_save", "after_save", "before_restore", "after_restore")
    site.settings["hooks"] = {"directory": str(made), **{key: ["hook"] for key in moments}}
    site.write()
    return made


def install(hooks: Path, text: str) -> None:
    (hooks / "hook").write_text(text)
    (hooks / "hook").chmod(0o755)


def test_where_the_domain_is(daemon: Daemon, site: cli.Site, hooks: Path) -> None:
    install(hooks, _WHERE)
    with domain.running(daemon, ram=patterns.sparse, transient=False) as guest:
        uri, _, name = guest.address.removeprefix("libvirt+").partition("#")
        shown = site.run("--debug", "save", guest.address, "-o", "image", check=0).stderr
        assert f"before_save|{uri}|{name}|" in shown
        assert f"after_save|{uri}|{name}|" in shown
        words = ("--debug", "restore", "image", "--guest", guest.address)
        shown = site.run(*words, check=0).stderr
        assert f"before_restore|{uri}|{name}|" in shown
        assert f"after_restore|{uri}|{name}|" in shown


def test_the_clock_is_set_through_libvirt(daemon: Daemon, site: cli.Site, hooks: Path) -> None:
    """The guest has no agent, which libvirt says of just this domain."""
    with scene.small(daemon, paused=False, transient=False) as guest:
        shutil.copy(tree.ROOT / "examples/hooks/set-clock", hooks / "hook")
        site.settings["hooks"] = {"directory": str(hooks), "after_restore": ["hook"]}
        site.write()
        site.run("save", guest.address, "-o", "image", check=0)
        shown = site.run("restore", "image", "--guest", guest.address, check=0).stderr
        assert "hook 'hook' of after_restore failed with exit status 1" in shown
        assert "QEMU guest agent is not configured" in shown
