"""What mapsave cannot do with libvirt, it says: other formats, and libvirt-python missing."""

import shlex
from pathlib import Path

import pytest

from tests.kit import cli, domain, patterns, qemu, ram, tree
from tests.kit.libvirtd import Daemon
from tests.libvirt import ways


def test_formats_that_only_virsh_restores(daemon: Daemon, site: cli.Site, tmp_path: Path) -> None:
    path = site.images / "it's raw"
    with domain.running(daemon, boot=ways.halting(tmp_path), transient=False) as guest:
        for format in ("raw", "zstd"):
            guest.virsh("save", path, "--image-format", format)
            address = ["--guest", guest.address]
            commands: list[list[str | Path]] = [
                ["restore", path, *address],
                ["restore", path, *address, "--through-libvirt"],
                ["inspect", path],
                ["verify", path],
                ["check", path],
            ]
            for words in commands:
                error = site.run(*words, "--json", check=6).error("image.unsupported")
                assert repr(format) in error["message"]
                assert f"virsh restore {shlex.quote(str(path))}" in error["hint"]
                assert guest.state() == "shut off (saved)"
            # And so it does.
            daemon.virsh("restore", path)
            assert guest.state().startswith("paused")


@pytest.fixture
def without_libvirt(tmp_path: Path) -> dict[str, str]:
    """An environment in which Python finds no libvirt-python."""
    directory = tmp_path / "without"
    directory.mkdir()
    (directory / "libvirt.py").write_text("raise ImportError('No module named libvirt')\n")
    return {"PYTHONPATH": f"{directory}:{tree.PYTHONPATH}"}


def test_all_else_works_without_libvirt_python(
    site: cli.Site, tmp_path: Path, without_libvirt: dict[str, str]
) -> None:
    env = without_libvirt
    with qemu.guest(site, "web01", ram=patterns.sparse) as guest:
        site.add_guest("db01", libvirt={"domain": "db01"})
        before = guest.snapshot_ram(tmp_path / "before")
        site.run("check", "web01", check=0, env=env)
        site.run("save", "web01", "-o", "image", check=0, env=env)
        guest.wait()
        for words in (["list"], ["inspect", "image"], ["verify", "image"], ["config", "show"]):
            site.run(*words, check=0, env=env)
        site.run("restore", "image", check=0, env=env)
        with guest.successor() as restored:
            ram.assert_same(before, restored.ram)


def test_guests_of_libvirt_without_libvirt_python(
    site: cli.Site, without_libvirt: dict[str, str]
) -> None:
    site.add_guest("db01", libvirt={"domain": "db01"})
    for words in (
        ["save", "libvirt:x"],
        ["save", "libvirt+qemu:///session#x"],
        ["save", "db01"],
        ["check", "libvirt:x"],
        ["list", "--libvirt"],
    ):
        error = site.run(*words, "--json", check=2, env=without_libvirt).error()
        assert error["id"] == "unsupported", words
        assert "libvirt-python" in error["message"]
        assert "pip install 'mapsave[libvirt]'" in error["hint"]
    assert not any(site.images.iterdir())


def test_images_of_libvirt_without_libvirt_python(
    daemon: Daemon, site: cli.Site, tmp_path: Path, without_libvirt: dict[str, str]
) -> None:
    with domain.running(daemon, boot=ways.halting(tmp_path)) as guest:
        path = ways.save("libvirt", guest, site)
        image = path.read_bytes()
        for command in ("inspect", "verify"):
            site.run(command, path, check=0, env=without_libvirt)
        site.run("list", check=0, env=without_libvirt)
        words = ("restore", path, "--guest", guest.address, "--json")
        error = site.run(*words, check=2, env=without_libvirt).error()
        assert "pip install" in error["hint"]
        assert path.read_bytes() == image
