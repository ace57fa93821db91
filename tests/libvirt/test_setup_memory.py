"""What ``mapsave setup memory`` says of a libvirt guest, by its definition, started or not."""

from typing import Any

import pytest

from tests.kit import cli, domain
from tests.kit.libvirtd import Daemon

NAME = "web01"
BACKING = "<memoryBacking><source type='file'/><access mode='shared'/></memoryBacking>"


def _steps(site: cli.Site) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = site.run("setup", "memory", NAME, "--json", check=0).json()[
        "steps"
    ]
    return found


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_domain_that_is_shut_off(daemon: Daemon, site: cli.Site, is_shared: bool) -> None:
    site.add_guest(NAME, libvirt={"uri": daemon.uri, "domain": NAME})
    text = domain.definition(NAME)
    if is_shared:
        text = text.replace("<memory ", f"{BACKING}<memory ", 1)
    with domain.defined(daemon, text, NAME):
        steps = _steps(site)
    added = [step["after"] for step in steps if "XML" in step["where"]]
    parts = ["<source type='file'/>", "<access mode='shared'/>"]
    assert added == ([] if is_shared else [f"<memoryBacking>{part}" for part in parts])
    # Images on a file system that shares nothing, as here, are not where libvirt's RAM files are.
    assert any("memory_backing_dir" in step["before"] for step in steps)


def test_no_such_domain(daemon: Daemon, site: cli.Site) -> None:
    site.add_guest(NAME, libvirt={"uri": daemon.uri, "domain": NAME})
    site.run("setup", "memory", NAME, "--json", check=2).error("guest.unknown")
