"""What an instant restore changes at the image while QEMU starts: its ACL, and a link beside it."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mapsave import errors
from mapsave.image import acl, image
from mapsave.image.image import Image
from mapsave.operations import instant, instant_libvirt, turns

from tests.image import build
from tests.kit import wait

UID = 65534


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Image]:
    """An image that only its owner may read."""
    path = tmp_path / "it"
    build.Image().built().write(path)
    path.chmod(0o600)
    with image.opened(str(path)) as opened:
        yield opened


def _start(opened: Image, state: Path, noted: list[bytes], left: list[OSError]) -> instant.Start:
    return instant.Start(
        opened=opened,
        contents=opened.validate(),
        guest="toy-1",
        state=state,
        on_acl=noted.append,
        on_acl_left=left.append,
        on_link=lambda _: None,
        on_left=lambda: None,
        labelled=contextlib.nullcontext,
    )


async def test_each_notes_what_no_other_has_changed(opened: Image, tmp_path: Path) -> None:
    """Of several clones of one image: the lock is one between processes, so is of two contexts."""
    noted: list[bytes] = []
    left: list[OSError] = []
    start = _start(opened, tmp_path, noted, left)
    entered, may_end = [asyncio.Event(), asyncio.Event()], [asyncio.Event(), asyncio.Event()]

    async def clone(number: int) -> None:
        async with instant.readable(opened.fd, UID, start):
            found = acl.read(opened.fd) or []
            assert acl.Entry(acl.USER, acl.READ, UID) in found
            entered[number].set()
            await may_end[number].wait()

    async with asyncio.timeout(wait.LONG), asyncio.TaskGroup() as group:
        group.create_task(clone(0))
        await entered[0].wait()
        group.create_task(clone(1))
        await asyncio.sleep(10 * turns._PAUSE)
        assert not entered[1].is_set()
        may_end[0].set()
        await entered[1].wait()
        may_end[1].set()
    assert noted[0] == noted[1]
    assert acl.read(opened.fd) is None
    assert left == []


async def test_a_turn_that_does_not_come(
    opened: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "LIMIT", 0.05)
    async with turns.taken(tmp_path, "label", opened.block.uuid):
        async with turns.taken(tmp_path, "ACL", opened.block.uuid):
            pass
        with pytest.raises(errors.Busy, match="the label of image"):
            async with turns.taken(tmp_path, "label", opened.block.uuid):
                pass


async def test_storage_is_waited_for_off_the_event_loop(
    opened: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loops, seen = threading.get_ident(), []

    def watched(name: str, plain: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            seen.append((name, threading.get_ident() == loops))
            return plain(*arguments)

        return call

    for name in ("setxattr", "symlink", "unlink", "fsync"):
        monkeypatch.setattr(os, name, watched(name, getattr(os, name)))
    start = _start(opened, tmp_path, [], [])
    async with instant.readable(opened.fd, UID, start), instant_libvirt._linked(start) as link:
        assert Path(link).samefile(opened.path)
    assert not os.path.lexists(link)
    assert {name for name, _ in seen} == {"setxattr", "symlink", "unlink", "fsync"}
    assert {name for name, is_on_the_loop in seen if is_on_the_loop} == set()


async def test_what_a_dead_process_has_left_is_not_taken_back_too_early(
    opened: Image, tmp_path: Path
) -> None:
    """It goes when that process is recovered; who came since has changed nothing, and says so."""
    noted: list[bytes] = []
    start = _start(opened, tmp_path, noted, [])
    before = acl.read(opened.fd)
    with acl.readable(opened.fd, UID, noted.append, lambda _: None):
        async with instant.readable(opened.fd, UID, start):
            pass
        assert acl.Entry(acl.USER, acl.READ, UID) in (acl.read(opened.fd) or [])
    assert len(noted) == 1
    assert acl.read(opened.fd) == before
