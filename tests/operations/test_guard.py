"""``mapsave guard``: a guest is not started afresh while its memory is in an image."""

from pathlib import Path

import pytest

from tests.kit import cli, emulated, processes, tree
from tests.kit.nobody import as_nobody
from tests.kit.service import reachable_site


@pytest.fixture
def site(site: cli.Site) -> cli.Site:
    """A site whose guests find mapsave where we do."""
    site.settings["launch_environment"] = ["PATH", "LANG", processes.MARK, "PYTHONPATH"]
    site.write()
    return site


def guarded(site: cli.Site, check: int, *more: str) -> cli.Result:
    return site.run("guard", "web", *more, check=check)


def test_until_the_image_is_restored_or_discarded(site: cli.Site) -> None:
    with emulated.guest(site, "web"):
        guarded(site, 0)
        site.run("save", "web", "--image", "one", "--then", "resume", check=0)
        guarded(site, 0)
        site.run("save", "web", "--image", "two", check=0)
        error = guarded(site, 3, "--json").error("check.guest_saved")
        assert str(site.images / "two") in error["message"]
        assert f"mapsave restore {site.images / 'two'}" in error["hint"]
        by_address = site.run("guard", f"qmp:{emulated.socket_of(site, 'web')}", check=3)
        assert "mapsave discard --yes" in by_address.stderr
        site.run("restore", "two", check=0)
        guarded(site, 0)
        site.run("save", "web", "--image", "three", check=0)
        guarded(site, 3)
        site.run("discard", "three", "--yes", check=0)
        guarded(site, 0)


def test_a_script_that_starts_the_guest_may_ask_it(site: cli.Site) -> None:
    """Also where mapsave itself starts the guest by it, to restore it."""
    with emulated.guest(site, "web"):
        script = site.directory / "start-web"
        asks = " ".join([*cli.COMMAND, "--config", str(site.config), "guard", "web"])
        script.write_text(
            f"#!/bin/sh\nexport PYTHONPATH='{tree.PYTHONPATH}'\n{asks} || exit 1\nexec \"$@\"\n"
        )
        script.chmod(0o755)
        site.guests["web"]["launch"].insert(0, str(script))
        site.write()
        site.run("save", "web", "--image", "one", check=0)
        guarded(site, 3)
        site.run("restore", "one", check=0)
        guarded(site, 0)


def test_an_image_that_cannot_be_looked_at_may_be_the_guest(site: cli.Site) -> None:
    """Such as one on a file system that is not mounted yet."""
    with emulated.guest(site, "web"):
        site.run("save", "web", "--image", "one", check=0)
        site.images.rename(site.directory / "elsewhere")
        assert "cannot be looked at" in guarded(site, 3).stderr
        site.images.mkdir()
        guarded(site, 0)  # mounted, and it is gone


@pytest.mark.root
def test_a_state_directory_that_cannot_be_read_says_so() -> None:
    with reachable_site() as site:
        site.add_guest("web", qmp=Path("/nonexistent"))
        (site.state / "whereabouts").mkdir(mode=0o700)
        for path in (site.directory, site.state):
            path.chmod(0o755)
        site.config.chmod(0o644)
        error = as_nobody(site, "guard", "web", check=7).error("permission.denied")
        assert "cannot find out whether guest 'web' is in an image" in error["message"]
