"""Rot in header, domain XML, cookie and metadata is found; what has no digests says so."""

import os
from pathlib import Path

import pytest
from mapsave import errors
from mapsave.image import image
from mapsave.image.libvirt_header import NewLibvirtHeader

from tests.image import build, ours
from tests.image.build_libvirt import COOKIE, XML, LibvirtImage, of_virsh
from tests.kit import cli

METADATA = {"guest": {"name": "toy"}, "run_state": "running"}
NEW = NewLibvirtHeader(XML.decode(), COOKIE.decode(), was_running=True)


@pytest.fixture
def path(tmp_path: Path, held: int) -> Path:
    """An image in libvirt format that mapsave has just made."""
    with image.creating(held, "a", METADATA, stream_offset=build.M, libvirt=NEW) as partial:
        ours.fill(partial)
        partial.commit(METADATA, replace=False)
    return tmp_path / "a"


def test_no_bit_of_header_xml_and_cookie_turns_unnoticed(path: Path) -> None:
    with image.opened(path) as opened:
        good = (opened.libvirt, opened.metadata)
        assert opened.undigested is None
    end = 92 + len(XML) + 1 + len(COOKIE) + 1
    unnoticed = []
    with path.open("r+b", buffering=0) as file:
        for at in range(end):
            bit = 1 << at % 8
            was = os.pread(file.fileno(), 1, at)
            os.pwrite(file.fileno(), bytes([was[0] ^ bit]), at)
            try:
                with image.opened(path) as opened:
                    opened.validate()  # another length has us look for the stream elsewhere
                    if (opened.libvirt, opened.metadata) != good:
                        unnoticed.append(at)
            except errors.InvalidImage:
                pass
            os.pwrite(file.fileno(), was, at)
    assert unnoticed == []
    with image.opened(path) as opened:
        assert (opened.libvirt, opened.metadata) == good


def test_another_program_in_the_xml_is_damage(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content.replace(b"not this", b"not that", 1))
    for command in ("inspect", "verify", "check"):
        error = cli.mapsave(command, path, "--json", check=6).error("image.corrupt")
        assert "digest does not match" in error["message"]


def test_marks_leave_the_digests(path: Path) -> None:
    with image.opened(path) as opened:
        opened.mark_stale()
        opened.reread()
        assert opened.metadata["continued"]
        assert opened.undigested is None


@pytest.mark.parametrize(
    ("made", "words"),
    [(LibvirtImage(metadata=b"{}"), "older mapsave"), (of_virsh(), "save-image-edit")],
    ids=["older mapsave", "virsh"],
)
def test_without_digests_it_is_good_and_says_so(
    tmp_path: Path, made: LibvirtImage, words: str
) -> None:
    path = tmp_path / "old"
    made.built().write(path)
    for command in ("inspect", "verify", "check"):
        found = cli.mapsave(command, path, "--json", check=0).json()
        (warning,) = [each for each in found["warnings"] if "no digest" in each]
        assert words in warning
        assert f"warning: {warning}" in cli.mapsave(command, path, check=0).stdout


def test_native_images_have_had_digests_from_the_first(tmp_path: Path) -> None:
    path = tmp_path / "native"
    build.Image().built().write(path)
    assert cli.mapsave("inspect", path, "--json", check=0).json()["warnings"] == []
