"""Who can write an image: owner, mode, ACL, and each directory and link on the way to it."""

import os
import struct
from pathlib import Path

import pytest
from mapsave.image import ownership

from tests.kit import files, fuse

pytestmark = pytest.mark.root

EVE, OPERATOR, GROUP = 54321, 12345, 54322
TRUSTED = {0, OPERATOR}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image two directories below what only root can write."""
    path = tmp_path / "vms" / "images" / "web01"
    path.parent.mkdir(parents=True, mode=0o755)
    path.touch(mode=0o600)
    return path


def problems(path: Path | str) -> list[str]:
    with files.opened(path) as fd:
        return ownership.of_file(str(path), fd, TRUSTED)


def acl(path: Path, *entries: tuple[int, int, int]) -> None:
    """Set a POSIX ACL: tag, permissions and id of each entry (linux/posix_acl_xattr.h)."""
    raw = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *each) for each in entries)
    os.setxattr(path, "system.posix_acl_access", raw)


def named(kind: int, number: int, mask: int = 7) -> list[tuple[int, int, int]]:
    """Return an ACL that lets one more user (2) or group (8) write, but for its mask."""
    nobody = 0xFFFFFFFF
    return [
        (0x01, 7, nobody),
        *([(0x02, 7, number), (0x04, 5, nobody)] if kind == 2 else [(0x04, 5, nobody)]),
        *([(0x08, 7, number)] if kind == 8 else []),
        (0x10, mask, nobody),
        (0x20, 0, nobody),
    ]


def test_what_only_root_can_write_is_trusted(image: Path) -> None:
    assert problems(image) == []
    assert ownership.of_directory(str(image.parent), TRUSTED) == []


@pytest.mark.parametrize("which", [0, 1, 2], ids=["image", "directory", "directory above"])
def test_owner_and_mode_of_all_on_the_way_count(image: Path, which: int) -> None:
    path = [image, image.parent, image.parent.parent][which]
    mode = path.stat().st_mode
    os.chown(path, OPERATOR, GROUP)
    assert problems(image) == []
    for bits, words in ((0o020, f"gid {GROUP}"), (0o002, "everyone")):
        path.chmod(mode | bits)
        assert problems(image) == [f"{str(path)!r} can be written by {words}"]
    path.chmod(mode & 0o555)  # what is taken from an owner, the owner gives back
    os.chown(path, EVE, 0)
    assert problems(image) == [f"{str(path)!r} belongs to uid {EVE}"]
    if which:
        found = ownership.of_directory(str(image.parent), TRUSTED)
        assert found == [f"{str(path)!r} belongs to uid {EVE}"]


@pytest.mark.parametrize("which", [0, 1], ids=["image", "directory"])
def test_acls_count(image: Path, which: int) -> None:
    path = [image, image.parent][which]
    for kind, words in ((2, f"uid {EVE}"), (8, f"gid {EVE}")):
        acl(path, *named(kind, EVE))
        assert problems(image) == [f"{str(path)!r} can be written by {words} (ACL)"]
        acl(path, *named(kind, EVE, mask=5))
        assert problems(image) == []
    acl(path, *named(2, OPERATOR))
    assert path.stat().st_mode & 0o020, "the mode alone says that a group can write it"
    assert problems(image) == []


def test_a_sticky_directory_is_safe_where_the_next_name_is_ours(image: Path) -> None:
    middle = image.parent.parent
    middle.chmod(0o1777)
    assert problems(image) == []
    os.chown(image.parent, EVE, EVE)
    assert f"{str(middle)!r} can be written by everyone" in problems(image)
    os.chown(image.parent, 0, 0)
    os.chown(middle, EVE, EVE)  # its owner deletes and renames there as root does
    assert f"{str(middle)!r} belongs to uid {EVE}" in problems(image)
    os.chown(middle, 0, 0)
    # An image is made in such a directory, and is ours.
    assert ownership.of_directory(str(middle), TRUSTED) == []
    middle.chmod(0o777)
    assert ownership.of_directory(str(middle), TRUSTED) != []


def test_links_are_followed_and_their_own_directories_count(image: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    other.mkdir(mode=0o755)
    for target in (image.parent, os.path.relpath(image.parent, other)):
        link = other / "link"
        link.symlink_to(target)
        assert problems(link / image.name) == []
        other.chmod(0o777)  # where the link can be exchanged
        assert f"{str(other)!r} can be written by everyone" in problems(link / image.name)
        other.chmod(0o755)
        image.parent.chmod(0o777)  # where it leads to
        assert f"{str(image.parent)!r} can be written by everyone" in problems(link / image.name)
        image.parent.chmod(0o755)
        link.unlink()
    loop = other / "loop"
    loop.symlink_to(loop)
    assert "cannot be followed" in ownership.of_directory(str(loop), TRUSTED)[0]
    # A stranger's link in a sticky directory leads where the stranger says.
    other.chmod(0o1777)
    link.symlink_to(image.parent)
    os.lchown(link, EVE, EVE)
    assert f"{str(other)!r} can be written by everyone" in problems(link / image.name)


def test_dots_are_followed_as_the_kernel_does(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = tmp_path / "away"
    away.mkdir(mode=0o777)
    away.chmod(0o777)
    (away / "link").symlink_to(image.parent)
    path = f"{away}/link/../images/./web01"  # not away/images
    assert f"{str(away)!r} can be written by everyone" in problems(path)
    monkeypatch.chdir(image.parent)
    assert problems("web01") == []
    image.parent.chmod(0o777)
    assert f"{str(image.parent)!r} can be written by everyone" in problems("web01")


def test_another_file_under_the_name_is_noticed(image: Path) -> None:
    with files.opened(image) as fd:
        image.rename(image.with_name("old"))
        image.touch(mode=0o600)
        (words,) = ownership.of_file(str(image), fd, TRUSTED)
        assert "leads to a different file" in words
        image.unlink()
        (words,) = ownership.of_file(str(image), fd, TRUSTED)
        assert "cannot be followed: No such file" in words


def test_no_descriptor_is_left_open(image: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    problems(image)
    ownership.of_directory(str(image), TRUSTED)
    ownership.of_directory("/nowhere", TRUSTED)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_system_that_a_stranger_serves_is_theirs(tmp_path: Path) -> None:
    """FUSE: its server says whose the files seem to be."""
    place = tmp_path / "mounted"
    place.mkdir(mode=0o755)
    for user, found in (
        (EVE, [f"{str(place)!r} is in a file system served by uid {EVE} (FUSE)"]),
        (OPERATOR, []),
    ):
        with fuse.mounted(place, user=user):
            assert place.stat().st_uid == 0
            assert ownership.of_directory(str(place), TRUSTED) == found
