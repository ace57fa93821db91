"""An operator who is not root, with a configuration that he may not read."""

import grp

import pytest

from tests.kit import service
from tests.kit.libvirtd import NOBODY
from tests.kit.nobody import all_as_nobody

pytestmark = pytest.mark.root

_GROUP = grp.getgrgid(NOBODY).gr_name


@pytest.mark.parametrize("role", ["operators", "readers", None])
def test_commands_find_the_service(role: str | None) -> None:
    """By the default socket; the service knows the guests, and goes by the groups alone."""
    with service.reachable_site() as site:
        site.directory.chmod(0o755)
        site.add_guest("db", emulator={"memory": "8M"})
        site.settings["service"] = {role: [_GROUP]} if role else {}
        site.write()
        site.config.chmod(0o600)
        commands = [
            ["list"],
            ["ps"],
            ["check", "db"],
            ["save", "db", "--image", "one", "--then", "resume"],
            ["inspect", "one"],
            ["config", "show"],
            ["save", "db", "--local"],
        ]
        patched = (
            "import pathlib; from mapsave import config\n"
            f"config.SYSTEM_FILE = pathlib.Path({str(site.config)!r})\n"
            f"config.SYSTEM_SOCKET = pathlib.Path({str(site.socket)!r})"
        )
        with service.running(site) as mapsaved:
            results = all_as_nobody(site, commands, before=patched)
            codes = [each.returncode for each in results]
            mapsaved.stop()
        allowed = {"operators": [0, 0, 0, 0, 0], "readers": [0, 0, 7, 7, 2], None: [7] * 5}[role]
        assert codes == [*allowed, 7, 7], results
        for each in results[5:]:
            assert "cannot read" in each.error("permission.denied")["message"]
        if role == "operators":
            assert results[3].json()["image"] == str(site.images / "one")
        else:
            assert "ask root" in results[3].error("permission.role")["hint"]
        (alone,) = all_as_nobody(site, [["save", "db"]], before=patched)
        assert "does not run" in alone.error("permission.denied")["hint"]
