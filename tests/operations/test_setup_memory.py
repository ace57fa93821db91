"""``mapsave setup memory``: what stands in the way of checkpoints is said, nothing changed."""

from pathlib import Path

import pytest

from tests.kit import cli

ARGV = ["qemu-system-x86_64", "-m", "1G", "-display", "none"]


def test_as_text(site: cli.Site) -> None:
    site.add_guest("web01", Path("/run/web01.qmp"), launch=ARGV)
    before = site.config.read_bytes()
    done = site.run("setup", "memory", "web01", check=0)
    lines = done.stdout.splitlines()
    file = f"{site.images}/web01-main.ram"
    assert "in the launch: of guest 'web01':" in lines
    backend = f"memory-backend-file,id=pc.ram,size=1G,mem-path={file},share=on"
    assert f"  + -object {backend} -machine memory-backend=pc.ram" in lines
    assert any("shared_file: auto" in line for line in lines)
    assert site.config.read_bytes() == before
    assert not Path(file).exists()


def test_what_is_in_the_way(site: cli.Site) -> None:
    shared = "memory-backend-file,id=m,size=1G,mem-path=/dev/shm/none/m,share=on"
    argv = [*ARGV, "-object", shared, "-machine", "memory-backend=m", "-mem-prealloc"]
    site.add_guest("web01", Path("/run/web01.qmp"), launch=argv)
    advice = site.run("setup", "memory", "web01", "--json", check=0).json()
    assert advice["steps"] == []
    obstacles = "; ".join(advice["obstacles"])
    assert "'/dev/shm/none/m' is not on the file system of" in obstacles
    assert "preallocated" in obstacles
    assert f"'{site.images}' is on neither XFS nor btrfs" in obstacles


@pytest.mark.parametrize("how", [{"qmp": Path("/run/web01.qmp")}, {"emulator": {"memory": "1M"}}])
def test_what_starts_it_is_not_known(site: cli.Site, how: dict[str, object]) -> None:
    site.add_guest("web01", **how)  # type: ignore[arg-type]
    error = site.run("setup", "memory", "web01", "--json", check=2).error("unsupported")
    assert "what starts it is not known" in error["message"]
