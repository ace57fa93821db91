"""Storage that hangs under a restore through libvirt: the domain is ended, the image as before."""

import signal
from pathlib import Path

import pytest

from tests.faults import struck
from tests.faults.in_time import calls, stopped
from tests.kit import cli, inject, wait
from tests.kit.domain import Domain
from tests.kit.libvirtd import Daemon
from tests.libvirt.scene import IMAGE, small

_WAYS = pytest.mark.parametrize("through", [[], ["--through-libvirt"]], ids=["own", "through"])
_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"


def saved(site: cli.Site, guest: Domain) -> Path:
    """Save the guest; return a definition whose QEMU hangs in its first read of a page."""
    site.run("save", guest.address, "--image", IMAGE, check=0)
    rules = inject.environment(inject.Rule("preadv", "hang", first=4 << 20, count=-1))
    variables = "".join(f"<q:env name='{key}' value='{rules[key]}'/>" for key in rules)
    text = site.run("inspect", IMAGE, "--xml", check=0).stdout
    more = f"<q:commandline xmlns:q='{_NAMESPACE}'>{variables}</q:commandline></domain>"
    file = site.directory / "hanging.xml"
    file.write_text(text.replace("</domain>", more))
    return file


@_WAYS
def test_load_that_stalls(daemon: Daemon, site: cli.Site, through: list[str]) -> None:
    site.settings["restore"] = {"stall": "2s"}
    site.write()
    with small(daemon, transient=False) as guest:
        xml = saved(site, guest)
        words = ("--guest", guest.address, "--xml", xml, "--trust-image", *through, "--json")
        result = site.run("restore", IMAGE, *words, check=5)
        assert result.error_id() == "restore.stalled"
        guest.wait_state("shut off")
        assert site.run("inspect", IMAGE, "--json", check=0).json()["state"] == "saved"
        assert not struck.journals(site)


@_WAYS
def test_signal_while_the_load_hangs(daemon: Daemon, site: cli.Site, through: list[str]) -> None:
    with small(daemon, transient=False) as guest:
        xml = saved(site, guest)
        words = ("--guest", guest.address, "--xml", str(xml), "--trust-image", *through, "--json")
        with site.start("restore", IMAGE, *words) as process:
            wait.until(
                lambda: any("pause" in calls(pid) for pid in daemon.guests()),
                what="the read that hangs",
            )
            stopped(process, signal.SIGINT)
        guest.wait_state("shut off")
        site.run("recover", check=0)
        assert site.run("inspect", IMAGE, "--json", check=0).json()["state"] == "saved"
        assert not struck.journals(site)
