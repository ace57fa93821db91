"""libvirt guests: pages that were not written, and memory that no QEMU can load."""

from pathlib import Path

import pytest

from tests.kit import cli, domain, inject, patterns
from tests.kit.libvirtd import Daemon

MIB = 1 << 20
_JOB = 128 * 4096


@pytest.mark.parametrize("cut", [5 * 4096, _JOB - 512])
@pytest.mark.parametrize("format", ["libvirt", "native"])
def test_pages_that_were_not_written(daemon: Daemon, site: cli.Site, format: str, cut: int) -> None:
    """The guest is resumed; QEMU's pid and memory are found through libvirt."""
    rule = inject.Rule("pwritev", "short", cut, path=".partial", first=10 * MIB, last=40 * MIB)
    env = inject.environment(rule)
    with domain.running(
        daemon, ram=patterns.zero_tails, env=env, paused=False, transient=False
    ) as guest:
        save = ("save", guest.address, "--image", "one", "--format", format, "--json")
        error = site.run(*save, check=4).error()
        assert error["data"]["found"]["id"] == "image.pages_missing"
        assert guest.state().startswith("running")
        assert not list(site.images.iterdir())
        written = site.run(*save, check=0).json()["written"]
        assert written == {**written, "holes": "checked", "not_compared": 0}
    assert site.run("verify", "one", "--json", check=0).json()["written"] == written


def test_read_only_memory(daemon: Daemon, site: cli.Site, tmp_path: Path) -> None:
    path = patterns.write(tmp_path / "disk", 16 * MIB)
    backend = f"memory-backend-file,id=n,size=16M,mem-path={path},share=on,readonly=on"
    more = ["-object", backend, "-device", "ivshmem-plain,memdev=n,master=on"]
    with domain.running(daemon, arguments=more, paused=False) as guest:
        error = site.run("save", guest.address, "--json", check=3).error("check.not_migratable")
        assert "read-only memory" in error["message"]
        assert guest.state().startswith("running")
