"""The metadata are in an image twice: one of both may rot."""

import os
from pathlib import Path

import pytest
from mapsave import errors
from mapsave.image import image, syscalls
from mapsave.image.libvirt_header import NewLibvirtHeader
from mapsave.image.superblock import State

from tests.image import build, ours
from tests.image.build_libvirt import COOKIE, XML
from tests.kit import cli, emulated, files

METADATA = {"guest": {"name": "toy"}, "run_state": "running", "host": {"name": "x" * 300}}
FORMATS = {
    "native": None,
    "libvirt": NewLibvirtHeader(XML.decode(), COOKIE.decode(), was_running=True),
}


@pytest.fixture(params=FORMATS)
def path(tmp_path: Path, held: int, request: pytest.FixtureRequest) -> Path:
    """An image that mapsave has just made."""
    new = FORMATS[request.param]
    before = {"guest": {"name": "toy"}}
    with image.creating(held, "a", before, stream_offset=build.M, libvirt=new) as partial:
        ours.fill(partial)
        partial.commit(METADATA, replace=False)
    return tmp_path / "a"


def copies(path: Path) -> list[tuple[int, int]]:
    """Return where the metadata are, those in force first: offset and length."""
    with image.opened(path) as opened:
        block = opened.block
        places = block.place.areas(block.stream_offset)[:2]
        offsets = sorted(places, key=lambda offset: offset != block.metadata_offset)
        return [(offset, block.metadata_length) for offset in offsets]


def flip(path: Path, at: int) -> None:
    with path.open("r+b", buffering=0) as file:
        was = os.pread(file.fileno(), 1, at)
        os.pwrite(file.fileno(), bytes([was[0] ^ 1 << at % 8]), at)


def test_any_byte_of_either_may_rot(path: Path) -> None:
    with image.opened(path) as opened:
        good = opened.metadata
    for number, (offset, length) in enumerate(copies(path)):
        for at in range(offset, offset + length):
            flip(path, at)
            with image.opened(path) as opened:
                assert opened.metadata == good
                assert opened.undigested is None
                assert [f"at {offset} are damaged" in text for text in opened.warnings] == (
                    [True] if number == 0 else []
                )
            flip(path, at)


@pytest.mark.parametrize("stale", [False, True])
def test_marks_keep_both(path: Path, stale: bool) -> None:
    with image.opened(path) as opened:
        if stale:
            opened.mark_stale()
        else:
            opened.mark(State.RESTORED)
        opened.reread()
        expected = opened.metadata
        assert bool(expected.get("continued")) is stale
    for offset, _ in copies(path):
        flip(path, offset)
        with image.opened(path) as opened:
            assert (opened.metadata, opened.block.state) == (expected, State.RESTORED)
            opened.validate()
        flip(path, offset)


def test_without_both_the_image_opens_only_if_that_is_wanted(path: Path) -> None:
    for offset, length in copies(path):
        flip(path, offset + length // 2)
    with pytest.raises(errors.MetadataLost, match="no good copy of it"), image.opened(path):
        pass
    with image.opened(path, without_metadata=True) as opened:
        opened.validate()
        opened.reread()
        assert opened.has_lost_metadata
        assert opened.warnings == ["both copies of its metadata are damaged"]
        # libvirt's header says who it is of as well.
        assert bool(opened.metadata.get("guest")) is (opened.libvirt is not None)
        opened.mark(State.RESTORED)
    with image.opened(path, without_metadata=True) as opened:
        assert opened.block.state is State.RESTORED


def test_crafted_metadata_are_not_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a"
    build.Image(metadata=b"[]").built().write(path)
    with (
        pytest.raises(errors.InvalidImage, match="not a JSON object"),
        image.opened(path, without_metadata=True),
    ):
        pass


def test_a_crash_before_the_copy_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both slots say "saved" by then, and the other area has what was before."""
    done: list[int] = []
    write_all = syscalls.write_all

    def dies(fd: int, data: bytes, offset: int) -> None:
        if len(done) == 3:  # metadata and both slots
            raise OSError("dead")
        write_all(fd, data, offset)
        done.append(offset)

    with files.opened(tmp_path, os.O_DIRECTORY) as held:
        with image.creating(held, "a", {"live": True}, stream_offset=build.M) as partial:
            ours.fill(partial)
            partial.keep()
            with monkeypatch.context() as patched:
                patched.setattr(syscalls, "write_all", dies)
                with pytest.raises(OSError, match="dead"):
                    partial.commit(METADATA, replace=False)
            assert len(done) == 3
        with image.adopting(held, "a") as partial:
            assert partial.metadata() == METADATA
            partial.commit({**METADATA, "recovered": True}, replace=False)
    for offset, _ in copies(tmp_path / "a"):
        flip(tmp_path / "a", offset)
        with image.opened(tmp_path / "a") as opened:
            assert opened.metadata["recovered"]
        flip(tmp_path / "a", offset)


def test_restored_in_spite_of_it(site: cli.Site, tmp_path: Path) -> None:
    with emulated.guest(site, "web") as socket:
        before = emulated.ram_of(socket, tmp_path / "ram")
        site.run("save", "web", "-o", "image", check=0)
        path = site.images / "image"
        (first, _), (second, _) = copies(path)
        flip(path, first)
        for command in ("verify", "inspect"):
            (warning,) = site.run(command, "image", "--json", check=0).json()["warnings"]
            assert "are damaged" in warning
        assert site.run("list", "--json", check=0).json()["images"][0]["state"] == "saved"
        flip(path, second)
        for command in ("verify", "inspect", "restore"):
            error = site.run(command, "image", "--json", check=6).error("image.metadata_lost")
        assert "--without-metadata" in error["hint"]
        words = ("restore", "image", "--without-metadata", "--json")
        assert "--guest" in site.run(*words, check=3).error("check.no_destination")["hint"]
        done = site.run(*words, "--guest", "web", check=0).json()
        assert (done["guest"], done["run_state"]) == ("web", "paused")
        warnings = " ".join(done["warnings"])
        for part in ("both copies", "version of QEMU", "whether the guest ran"):
            assert part in warnings
        assert emulated.ram_of(socket, tmp_path / "ram") == before
        error = site.run(*words, "--guest", "web", check=3).error("check.already_restored")
        assert "has been restored before" in error["message"]
