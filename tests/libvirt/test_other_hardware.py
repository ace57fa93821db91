"""``restore --xml`` of a domain whose guest would see another machine than it was saved in."""

from pathlib import Path

import pytest

from tests.kit import cli, domain, patterns, ram
from tests.kit.libvirtd import Daemon
from tests.libvirt import ways

_CPU = "<cpu mode='custom' match='exact' check='none'><model>Nehalem</model></cpu>"
_VMPORT = "<features><vmport state='off'/></features>"


def _changed(site: cli.Site, image: Path, old: str, new: str) -> Path:
    xml = site.run("inspect", "--xml", image, check=0).stdout
    assert old in xml
    path = site.directory / "changed.xml"
    path.write_text(xml.replace(old, new), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (">1</vcpu>", ">2</vcpu>", "1 vCPUs, here 2"),
        ("<devices>", f"{_VMPORT}<devices>", "machine option vmport=on, here off"),
    ],
)
def test_refused_before_it_is_loaded(
    daemon: Daemon, site: cli.Site, tmp_path: Path, old: str, new: str, words: str
) -> None:
    with domain.running(daemon, ram=patterns.sparse) as guest:
        before = ram.snapshot(guest.ram, tmp_path / "before")
        image = ways.save("native", guest, site)
        xml = _changed(site, image, old, new)
        options = ("--guest", guest.address, "--xml", xml, "--json")
        error = site.run("restore", image, *options, check=3).json()["error"]
        assert error["id"] == "check.destination"
        assert words in error["message"]
        assert guest.state() == domain.GONE
        ways.restore("own", guest, site, image)
        ram.assert_same(before, guest.ram)


def test_the_processor_stays_as_it_was_saved(daemon: Daemon, site: cli.Site) -> None:
    """As libvirt does: what it recorded of the processor counts, whatever the definition says."""
    with domain.running(daemon, ram=patterns.sparse) as guest:
        image = ways.save("native", guest, site)
        xml = _changed(site, image, "<devices>", f"{_CPU}<devices>")
        ways.restore("own", guest, site, image, "--xml", str(xml))
        assert "Nehalem" not in guest.xml()
