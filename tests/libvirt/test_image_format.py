"""Images of libvirt's format between mapsave and virsh: each takes the other's."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from mapsave import domain_xml, errors
from mapsave.image import data_digests, image
from mapsave.image.libvirt_header import NewLibvirtHeader
from mapsave.image.superblock import State

from tests.kit import cli, domain, patterns, ram, wait
from tests.kit.domain import Domain
from tests.kit.libvirtd import Daemon

NAME = "a \"b\" 'c' &<é> ünï"


@pytest.fixture
def guest(daemon: Daemon) -> Iterator[Domain]:
    with domain.running(daemon, NAME, ram=patterns.sparse, transient=False) as running:
        yield running


def secure_xml(guest: Domain) -> str:
    return guest.xml("--inactive", "--security-info", "--migratable")


def save_by_hand(
    guest: Domain, directory: Path, name: str, *, cookie: str | None = None, runs: bool = False
) -> Path:
    """Save the paused guest with our header and bare monitor commands, and destroy it."""
    held = os.open(directory, os.O_RDONLY)
    metadata = {"guest": {"name": "web01", "uuid": guest.uuid}, "run_state": "running"}
    new = NewLibvirtHeader(secure_xml(guest), cookie, runs)
    try:
        room = data_digests.room(64 << 20)
        with image.creating(
            held, name, metadata, stream_offset=1 << 20, libvirt=new, digest_room=room
        ) as partial:
            wanted = [{"capability": each, "state": True} for each in ("mapped-ram", "multifd")]
            guest.execute("migrate-set-capabilities", capabilities=wanted)
            offset = partial.block.stream_offset
            uri = f"file:{directory / partial.partial},offset={offset}"
            guest.execute("migrate", uri=uri)
            wait.until(
                lambda: guest.execute("query-migrate").get("status") == "completed", what="save"
            )
            guest.virsh("destroy")
            partial.sync()
            partial.validate()
            partial.take_digests(data_digests.ignore)
            partial.commit(metadata, replace=False)
    finally:
        os.close(held)
    return directory / name


def marked(path: Path) -> None:
    """Mark the image restored; nothing but 8 KiB of padding may change."""
    before = path.read_bytes()
    with image.opened(path) as opened:
        identity, offset = opened.block.uuid, opened.block.stream_offset
        opened.mark(State.RESTORED)
    after = path.read_bytes()
    slots = slice(offset - 8192, offset)
    assert before[: slots.start] == after[: slots.start]
    assert before[slots.stop :] == after[slots.stop :]
    with image.opened(path) as opened:
        assert (opened.block.state, opened.block.uuid) == (State.RESTORED, identity)
        opened.validate()


def test_virsh_restores_our_image(guest: Domain, tmp_path: Path) -> None:
    before = guest.snapshot_ram(tmp_path / "before")
    xml = secure_xml(guest)
    path = save_by_hand(guest, tmp_path, "image")
    shown = guest.daemon.virsh("save-image-dumpxml", path, "--security-info").stdout
    assert domain_xml.identity(shown) == domain_xml.identity(xml)  # virsh adds default devices
    assert cli.mapsave("inspect", "--xml", path, check=0).stdout.strip() == xml.strip()
    marked(path)
    found = cli.mapsave("verify", "--data", path, "--json", check=0).json()
    assert found["data"]["verified_bytes"] > found["data_bytes"] > 0
    guest.daemon.virsh("restore", path)
    assert guest.state().startswith("paused")
    ram.assert_same(before, guest.snapshot_ram(tmp_path / "after"))


def test_virsh_lets_the_guest_run_that_ran(guest: Domain, tmp_path: Path) -> None:
    path = save_by_hand(guest, tmp_path, "image", runs=True)
    guest.daemon.virsh("restore", path)
    guest.wait_state("running")


def test_virsh_edits_our_image(guest: Domain, tmp_path: Path) -> None:
    path = save_by_hand(guest, tmp_path, "image", cookie="<cookie><slirpHelper/></cookie>")
    with image.opened(path) as opened:
        offset = opened.block.stream_offset
        assert opened.has_superblock
    shown = guest.daemon.virsh("save-image-dumpxml", path, "--security-info").stdout
    edited = shown.replace("</name>", f"</name><description>{'x' * 70_000}</description>")
    file = tmp_path / "edited.xml"
    file.write_text(edited, encoding="utf-8")
    guest.daemon.virsh("save-image-define", path, file, "--running")
    with image.opened(path) as opened:
        assert not opened.has_superblock
        assert opened.libvirt is not None and opened.libvirt.cookie
        assert opened.block.stream_offset == offset
        assert "x" * 70_000 in opened.libvirt.xml
        assert opened.metadata["guest"]["qemu_name"] == NAME
        assert opened.metadata["run_state"] == "running"
    marked(path)
    lost = cli.mapsave("verify", "--data", path, "--json", check=0).json()
    assert lost["data"]["digests"] == "none"
    assert any("or rewrote its XML" in each for each in lost["warnings"])
    guest.daemon.virsh("restore", path)
    guest.wait_state("running")


def test_image_of_virsh(guest: Domain, tmp_path: Path) -> None:
    before = guest.snapshot_ram(tmp_path / "before")
    path = tmp_path / "virsh.save"
    guest.virsh("save", path, "--image-format", "sparse", "--paused")
    with image.opened(path) as opened:
        assert opened.libvirt is not None
        assert opened.block.stream_offset % 4096, "an offset that is no multiple of anything"
    found = cli.mapsave("inspect", path, "--json", check=0).json()
    assert found["libvirt"]["cookie"] and not found["libvirt"]["was_running"]
    assert (found["guest"], found["guest_uuid"]) == (NAME, guest.uuid)
    assert (found["format"], found["state"]) == ("libvirt", "saved")
    verified = cli.mapsave("verify", path, "--json", check=0).json()
    assert verified["verified"][0] == "libvirt header"
    assert "superblock" not in verified["verified"]
    marked(path)
    assert "superblock" in cli.mapsave("verify", path, "--json", check=0).json()["verified"]
    guest.daemon.virsh("restore", path, "--paused")
    ram.assert_same(before, guest.snapshot_ram(tmp_path / "after"))


def test_cookie_of_virsh_in_our_image(guest: Domain, tmp_path: Path) -> None:
    path = tmp_path / "virsh.save"
    guest.virsh("save", path, "--image-format", "sparse")
    with image.opened(path) as opened:
        assert opened.libvirt is not None
        cookie = opened.libvirt.cookie
    guest.daemon.virsh("restore", path)
    ours = save_by_hand(guest, tmp_path, "ours", cookie=cookie)
    guest.daemon.virsh("restore", ours, "--parallel-channels", "2", "--bypass-cache")
    assert guest.state().startswith("paused")
    guest.virsh("managedsave")
    guest.virsh("start", "--paused")


@pytest.mark.parametrize("format", ["raw", "gzip"])
def test_other_formats_of_virsh_are_named(guest: Domain, tmp_path: Path, format: str) -> None:
    path = tmp_path / "virsh save"
    guest.virsh("save", path, "--image-format", format)
    with pytest.raises(errors.UnsupportedImage, match=format) as caught, image.opened(path):
        pass
    assert f"virsh restore '{path}'" in str(caught.value.hint)
