"""A user is let in to read a file, and the file is as it was after that."""

import errno
import os
from pathlib import Path

import pytest
from mapsave.image import acl

from tests.kit import files

UID = 65534
NONE = 0xFFFFFFFF


def _ignore(_: bytes) -> None:
    """Nothing is to be recovered."""


def _fail(what: bytes | OSError) -> None:
    pytest.fail(f"unexpected: {what!r}")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o620])
def test_readable_for_a_while(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"x")
    path.chmod(mode)
    noted: list[bytes] = []
    with files.opened(path) as fd:
        with acl.readable(fd, UID, noted.append, _fail):
            entries = acl.read(fd)
            assert entries is not None
            assert acl.Entry(acl.USER, acl.READ, UID) in entries
            (mask,) = (each.permissions for each in entries if each.tag == acl.MASK)
            assert mask == mode >> 3 & 7 | acl.READ
            (group,) = (each.permissions for each in entries if each.tag == acl.GROUP_OWNER)
            assert group == mode >> 3 & 7
        assert path.stat().st_mode & 0o777 == mode
        assert acl.read(fd) is None
        acl.write(fd, noted[0])  # as recovery does, be it done already
        assert path.stat().st_mode & 0o777 == mode


def test_an_acl_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"x")
    path.chmod(0o600)
    entries = [acl.Entry(acl.USER_OWNER, 6, NONE), acl.Entry(acl.USER, acl.READ, 1234)]
    entries += [acl.Entry(tag, acl.READ, NONE) for tag in (acl.GROUP_OWNER, acl.MASK)]
    entries.append(acl.Entry(acl.OTHER, 0, NONE))
    with files.opened(path) as fd:
        acl.write(fd, acl.packed(entries))
        with acl.readable(fd, UID, _ignore, _fail):
            found = acl.read(fd) or []
            assert [each.id for each in found if each.tag == acl.USER] == [1234, UID]
        assert acl.read(fd) == entries


def test_what_a_mask_holds_back_is_not_let_through(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"x")
    path.chmod(0o640)
    with files.opened(path) as fd, acl.readable(fd, 1234, _ignore, _fail):
        path.chmod(0o600)  # sets the mask of an ACL
        with acl.readable(fd, UID, _ignore, _fail):
            entries = acl.read(fd) or []
        others = [each for each in entries if each.tag in (acl.USER, acl.GROUP_OWNER)]
        assert {each.id: each.permissions for each in others if each.permissions} == {UID: acl.READ}


def test_nothing_is_changed_for_those_who_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"x")
    path.chmod(0o604)
    with files.opened(path) as fd, acl.readable(fd, UID, _fail, _fail):
        assert acl.read(fd) is None
        assert not acl.may_read(fd, os.geteuid()) or os.geteuid() in (0, path.stat().st_uid)


@pytest.mark.parametrize(
    ("mode", "entry", "may"),
    [
        (0o700, None, False),
        (0o701, None, True),
        (0o710, None, False),
        (0o700, acl.EXECUTE, True),
        (0o701, acl.READ, False),
    ],
)
def test_who_may_search_a_directory(
    tmp_path: Path, mode: int, entry: int | None, may: bool
) -> None:
    """An entry of the user's own counts, be it more or less than all others have."""
    directory = tmp_path / "images"
    directory.mkdir()
    directory.chmod(mode)
    if entry is not None:
        own = [acl.Entry(tag, mode >> at & 7, 0xFFFFFFFF) for tag, at in ((1, 6), (4, 3), (32, 0))]
        own += [acl.Entry(acl.USER, entry, UID), acl.Entry(acl.MASK, 7, 0xFFFFFFFF)]
        with files.opened(directory) as fd:
            acl.write(fd, acl.packed(sorted(own)))
    assert acl.may_search(str(directory), UID) == may
    assert acl.may_search(str(directory), os.geteuid())


def test_what_cannot_be_undone_is_reported(tmp_path: Path) -> None:
    """The user of the context has what it wanted: it goes on."""
    path = tmp_path / "image"
    path.write_bytes(b"x")
    path.chmod(0o600)
    noted: list[bytes] = []
    left: list[OSError] = []
    fd = os.open(path, os.O_RDONLY)
    with acl.readable(fd, UID, noted.append, left.append):
        os.close(fd)
    assert [error.errno for error in left] == [errno.EBADF]
    with files.opened(path) as again:
        assert acl.read(again) is not None
        acl.write(again, noted[0])
        assert acl.read(again) is None
