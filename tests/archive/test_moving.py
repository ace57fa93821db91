"""``mapsave export`` and ``mapsave import``: whole images, what is refused, what is left behind."""

import asyncio
import contextlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mapsave import errors
from mapsave.archive import coding, ends, keys, libraries, reading, sparse_tar, writing
from mapsave.archive.coding import Coding
from mapsave.config import Config
from mapsave.image import holes, image, piece_reader, syscalls
from mapsave.operations import export, importing

from tests.archive import moved
from tests.image import build
from tests.kit import cli, files, storage, wait

MIB = build.MIB


async def exported(path: Path, coded: Coding | None = None, **how: bool) -> Path:
    """Export an image to a file beside the image directory."""
    archive = path.parent.parent / f"{path.name}.archive"
    request = export.Request(str(path), str(archive), coded or Coding(), **how)
    done = await export.export(request)
    assert done["archive_bytes"] == archive.stat().st_size
    return archive


def names(directory: Path) -> set[str]:
    return set(os.listdir(directory))


def assert_same(one: Path, other: Path) -> None:
    """Compare contents, and where the holes are."""
    assert one.read_bytes() == other.read_bytes()
    with files.opened(one) as left, files.opened(other) as right:
        size = one.stat().st_size
        assert [*holes.extents(left, 0, size)] == [*holes.extents(right, 0, size)]


@pytest.mark.parametrize("kind", moved.FORMATS)
@pytest.mark.parametrize("how", ["zstd", "tar", "age"])
async def test_there_and_back(tmp_path: Path, kind: str, how: str) -> None:
    path = moved.made(tmp_path, header=moved.FORMATS[kind])
    identity = moved.Identity(tmp_path)
    recipients = identity.recipients if how == "age" else ()
    archive = await exported(path, Coding(None if how == "tar" else 5, recipients))
    identities = identity.identities if how == "age" else ()
    request = importing.Request(str(archive), "back", identities)
    done = await importing.import_(moved.config(tmp_path), request)
    assert_same(path, path.parent / "back")
    assert (done["format"], done["state"], done["guest"]) == (kind, "saved", "web01")
    assert names(path.parent) == {path.name, "back"}
    assert (path.parent / "back").stat().st_mode & 0o777 == 0o600
    with image.opened(path.parent / "back") as opened:
        assert str(opened.block.uuid) == done["uuid"]
        assert opened.block.digests == "taken"


async def test_it_has_its_name_again_and_replaces_nothing(tmp_path: Path) -> None:
    path = moved.made(tmp_path)
    archive = await exported(path)
    path.rename(tmp_path / "away")
    request = importing.Request(str(archive))
    done = await importing.import_(moved.config(tmp_path), request)
    assert done["image"] == str(path)
    with pytest.raises(errors.ImageExists):
        await importing.import_(moved.config(tmp_path), request)
    with pytest.raises(errors.UsageError, match="exists"):
        await exported(path)
    before = archive.stat().st_ino
    await exported(path, replace=True)
    assert archive.stat().st_ino != before
    assert names(tmp_path) == {"images", "away", archive.name}


@pytest.mark.parametrize("name", ["..", "a/b", "web.partial", "", "x" * 255])
async def test_names_of_others(tmp_path: Path, name: str) -> None:
    path = moved.made(tmp_path)
    with files.opened(path) as fd:
        (tmp_path / "archive").write_bytes(moved.packed(fd, name=name))
    request = importing.Request(str(tmp_path / "archive"))
    if len(name) == 255:
        await importing.import_(moved.config(tmp_path), request)
        return
    with pytest.raises(errors.BadArchive):
        await importing.import_(moved.config(tmp_path), request)
    assert names(path.parent) == {path.name}
    request = importing.Request(str(tmp_path / "archive"), "mine")
    await importing.import_(moved.config(tmp_path), request)
    assert names(path.parent) == {path.name, "mine"}


@pytest.mark.parametrize("place", ["page", "hole", "first piece"])
async def test_a_damaged_image_is_not_exported(tmp_path: Path, place: str) -> None:
    path = moved.made(tmp_path)
    with image.opened(path) as opened:
        block = opened.validate().stream.blocks[0]
    at = {
        "page": block.pages_offset + 256 * 4096,
        "hole": block.pages_offset + 600 * 4096,
        "first piece": block.pages_offset + 4 * 4096,
    }[place]
    with files.opened(path, os.O_RDWR) as fd:
        (was,) = os.pread(fd, 1, at)
        os.pwrite(fd, bytes([was ^ 4]), at)
    with pytest.raises(errors.DataDamaged, match="not exported"):
        await exported(path)
    assert names(tmp_path) == {"images"}


async def test_data_that_has_become_a_hole_is_damaged_too(tmp_path: Path) -> None:
    """A whole piece, which is not read then."""
    path = moved.made(tmp_path)
    with image.opened(path) as opened:
        block = opened.validate().stream.blocks[0]
    at = (block.pages_offset + 800 * 4096) // MIB * MIB
    assert block.pages_offset <= at < at + MIB <= block.end
    with files.opened(path, os.O_RDWR) as fd:
        assert os.pread(fd, MIB, at).strip(b"\0")
        syscalls.punch_hole(fd, at, MIB)
    with pytest.raises(errors.DataDamaged, match=f"bytes {at} to {at + MIB}"):
        await exported(path)
    assert names(tmp_path) == {"images"}


def test_no_more_is_written_once_damage_is_found(tmp_path: Path) -> None:
    path = moved.made(tmp_path)
    with image.opened(path) as opened, files.opened(path, os.O_RDWR) as fd:
        known = opened.taken_digests()
        block = opened.validate().stream.blocks[0]
        os.pwrite(fd, b"damaged", block.pages_offset + 4 * 4096)
        layout = sparse_tar.layout(fd, opened.size, moved.nothing)
        source = writing.Image(fd, "web", opened.size, 1, 0, known, lambda: None)
        out = io.BytesIO()
        with pytest.raises(errors.DataDamaged):
            writing.write(source, layout, out, moved.nothing)
    assert len(out.getvalue()) < 25 * 4096
    assert layout.data_bytes > 75 * 4096


def test_what_fails_is_not_a_whole_archive_for_age_either(tmp_path: Path) -> None:
    identity = moved.Identity(tmp_path)
    age = libraries.age()
    for fails in (False, True):
        out = io.BytesIO()
        with (
            contextlib.suppress(ZeroDivisionError),
            coding.encoding(out, Coding(None, identity.recipients)) as sink,
        ):
            sink.write(bytes(3 * MIB))
            if fails:
                raise ZeroDivisionError
        if fails:
            time.sleep(0.3)  # nothing is added
            with pytest.raises(age.DecryptError):
                age.decrypt(out.getvalue(), list(identity.identities))
        else:
            assert age.decrypt(out.getvalue(), list(identity.identities)) == bytes(3 * MIB)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_cancelled_around_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Until it has its name nothing is left; from then on it is imported."""
    path = moved.made(tmp_path)
    archive = await exported(path)
    loop = asyncio.get_running_loop()
    request = importing.Request(str(archive), "back")
    task = asyncio.ensure_future(importing.import_(moved.config(tmp_path), request))

    def cancelling(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            if when == "after":
                result = function(*arguments, **named)
            loop.call_soon_threadsafe(task.cancel)
            time.sleep(0.5)  # it has arrived by then
            return result if when == "after" else function(*arguments, **named)

        return call

    place = (image.Partial, "give_name") if when == "after" else (importing, "_validated")
    monkeypatch.setattr(*place, cancelling(getattr(*place)))
    if when == "after":
        assert (await task)["image"] == str(path.parent / "back")
        assert_same(path, path.parent / "back")
    else:
        with pytest.raises(asyncio.CancelledError):
            await task
        assert names(path.parent) == {path.name}


async def test_one_that_was_never_completed_is_not_exported(tmp_path: Path) -> None:
    path = moved.made(tmp_path)
    partial = path.rename(path.with_name("web.partial"))
    with pytest.raises(errors.PartialImage):
        await exported(partial)
    assert names(tmp_path) == {"images"}


async def test_without_digests_it_is_said(tmp_path: Path) -> None:
    path = moved.made(tmp_path, digests=False)
    request = export.Request(str(path), str(tmp_path / "archive"), Coding())
    (warning,) = (await export.export(request))["warnings"]
    assert "not verified" in warning


async def test_one_that_is_changed_while_it_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = moved.made(tmp_path)
    write = writing.write

    def changing(*arguments: object) -> None:
        from mapsave.image.superblock import State

        with image.opened(path) as opened:
            opened.mark(State.RESTORED)
        write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(writing, "write", changing)
    with pytest.raises(errors.Busy, match="was changed"):
        await exported(path)
    monkeypatch.undo()
    assert names(tmp_path) == {"images"}
    done = await importing.import_(
        moved.config(tmp_path), importing.Request(str(await exported(path)), "restored")
    )
    assert done["state"] == "restored"


async def test_an_archive_of_an_image_that_is_not_valid(tmp_path: Path) -> None:
    """As one may be packed by hand, with digests that are right."""
    path = moved.made(tmp_path)
    with files.opened(path, os.O_RDWR) as fd:
        with image.opened(path) as opened:
            at = opened.validate().stream.blocks[0].bitmap_offset
        os.pwrite(fd, b"\xff", at)
        (tmp_path / "archive").write_bytes(moved.packed(fd))
    with pytest.raises(errors.InvalidImage):
        request = importing.Request(str(tmp_path / "archive"), "back")
        await importing.import_(moved.config(tmp_path), request)
    assert names(path.parent) == {path.name}


async def test_bits_that_turned_leave_nothing(tmp_path: Path) -> None:
    path = moved.made(tmp_path)
    raw = (await exported(path)).read_bytes()
    choice = random.Random(7)
    wrong_archive = tmp_path / "wrong"
    for _ in range(20):
        wrong = bytearray(raw)
        wrong[choice.randrange(len(raw))] ^= 1 << choice.randrange(8)
        wrong_archive.write_bytes(wrong)
        try:
            request = importing.Request(str(wrong_archive), "back")
            await importing.import_(moved.config(tmp_path), request)
        except errors.BadArchive:
            assert names(path.parent) == {path.name}
        else:  # of the few that change nothing
            assert_same(path, path.parent / "back")
            (path.parent / "back").unlink()


async def test_who_may_read_it(tmp_path: Path) -> None:
    path = moved.made(tmp_path)
    (tmp_path / "other").mkdir()
    mine, other = moved.Identity(tmp_path), moved.Identity(tmp_path / "other")
    archive = await exported(path, Coding(recipients=mine.recipients))
    config = moved.config(tmp_path)
    for identities, words in (((), "is encrypted"), (other.identities, "none of the identities")):
        with pytest.raises(errors.NotDecrypted, match=words):
            await importing.import_(config, importing.Request(str(archive), "b", identities))
    both = (*other.identities, *mine.identities)
    await importing.import_(config, importing.Request(str(archive), "b", both))
    plain = await exported(path.parent / "b")
    with pytest.raises(errors.UsageError, match="not encrypted"):
        await importing.import_(config, importing.Request(str(plain), "c", mine.identities))
    assert names(path.parent) == {path.name, "b"}


def test_keys(tmp_path: Path) -> None:
    identity = moved.Identity(tmp_path)
    file = tmp_path / "recipients"
    file.write_text(f"# ours\n\n{identity.recipient}\n{identity.recipient}\n")
    assert len(keys.recipients((identity.recipient,), (str(file),))) == 3
    for content, words in (("age1wrong\n", ":1: 'age1wrong' is not"), ("# none\n", "no recipient")):
        file.write_text(content)
        with pytest.raises(errors.UsageError, match=words):
            keys.recipients((), (str(file),))
    file.write_bytes(b"\xff\xfe")
    for read in (lambda: keys.recipients((), (str(file),)), lambda: keys.identities((str(file),))):
        with pytest.raises(errors.UsageError, match="not a text file"):
            read()
    for wrong in ("", identity.recipient, "-----BEGIN OPENSSH PRIVATE KEY-----\nx\n"):
        file.write_text(wrong)
        with pytest.raises(errors.UsageError, match="not a file of identities"):
            keys.identities((str(file),))
    with pytest.raises(errors.UsageError, match="No such file"):
        keys.identities((str(tmp_path / "none"),))


def test_keys_of_ssh(site: cli.Site, tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    moved.made(site.directory)
    site.run("export", "web.mapsave", "-o", tmp_path / "x", "-R", f"{key}.pub", check=0)
    site.run("import", tmp_path / "x", "-o", "back", "-i", key, check=0)
    assert_same(site.images / "web.mapsave", site.images / "back")


@pytest.mark.parametrize("library", ["zstandard", "pyrage"])
async def test_without_the_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    path = moved.made(tmp_path)
    identity = moved.Identity(tmp_path)
    archive = await exported(path, Coding(recipients=identity.recipients))
    monkeypatch.setitem(sys.modules, library, None)
    config = moved.config(tmp_path)
    with pytest.raises(errors.Unsupported, match=library) as caught:
        await importing.import_(config, importing.Request(str(archive), "b", identity.identities))
    assert "mapsave[export]" in str(caught.value.hint)
    with pytest.raises(errors.Unsupported, match=library):
        await exported(path, Coding(recipients=identity.recipients), replace=True)
    plain = await exported(path, moved.PLAIN, replace=True)
    await importing.import_(config, importing.Request(str(plain), "b"))
    assert names(path.parent) == {path.name, "b"}


def test_through_a_pipe_and_what_is_printed(site: cli.Site) -> None:
    moved.made(site.directory)
    command = [*cli.COMMAND, "--config", str(site.config)]
    environ = {**os.environ, "PYTHONPATH": cli.tree.PYTHONPATH}
    with subprocess.Popen(
        [*command, "export", "web.mapsave", "-o", "-"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environ,
    ) as one:
        other = subprocess.run(
            [*command, "import", "-", "-o", "back", "--json"],
            stdin=one.stdout,
            capture_output=True,
            check=True,
            env=environ,
        )
        assert one.stderr is not None
        assert b"to standard output" in one.stderr.read()
    assert one.returncode == 0
    assert b'"archive": "-"' in other.stdout
    assert_same(site.images / "web.mapsave", site.images / "back")


def test_progress(site: cli.Site, tmp_path: Path) -> None:
    moved.made(site.directory)
    for words, phases in (
        (("export", "web.mapsave", "-o", tmp_path / "x"), ["validate", "export", "sync"]),
        (("import", tmp_path / "x", "-o", "b"), ["receive", "sync", "validate", "commit"]),
    ):
        done = site.run(*words, "--progress", "json", check=0)
        lines = [json.loads(line) for line in done.stderr.splitlines()]
        assert list(dict.fromkeys(line["phase"] for line in lines)) == phases
        assert 75 * 4096 < lines[-1]["done_bytes"] <= lines[-1]["total_bytes"]


def test_level_where_none_is_given(site: cli.Site, tmp_path: Path) -> None:
    moved.made(site.directory)
    key = ("-r", moved.Identity(tmp_path).recipient)
    for number, (words, level) in enumerate(
        (((), 3), (key, 1), ((*key, "--level", "5"), 5), ((*key, "--no-compression"), None))
    ):
        words = ("export", "web.mapsave", "-o", tmp_path / f"{number}", *words, "--json")
        assert site.run(*words, check=0).json()["level"] == level


def test_command_lines_that_contradict_themselves(site: cli.Site, tmp_path: Path) -> None:
    moved.made(site.directory)
    os.mkfifo(tmp_path / "file")
    for words in (
        ("-o", "x", "--level", "3", "--no-compression"),
        ("-o", "x", "--level", "20"),
        ("-o", "-", "--json"),
        ("-o", tmp_path),
        ("-o", tmp_path / "file"),
        ("-o", tmp_path / "none" / "x"),
        ("-o", "x", "-r", "age1"),
        (),
    ):
        result = site.run("export", "web.mapsave", *words)
        assert result.returncode in (2, 3), result
    site.run("import", tmp_path, check=2)
    site.run("import", tmp_path / "none", check=2)
    site.run("import", "/dev/null", check=6)
    assert names(site.images) == {"web.mapsave"}


def test_a_reader_that_ends(site: cli.Site) -> None:
    moved.made(site.directory)
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as broken:
        done = subprocess.run(
            [*cli.COMMAND, "--config", str(site.config), "export", "web.mapsave", "-o", "-"],
            stdout=broken,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": cli.tree.PYTHONPATH},
        )
    assert (done.returncode, "[export.failed]" in done.stderr) == (3, True), done.stderr


@pytest.mark.parametrize("how", [(), ("--no-compression",), ("-r",)])
def test_ctrl_c_while_the_reader_does_not_read(
    site: cli.Site, tmp_path: Path, how: tuple[str, ...]
) -> None:
    moved.made(site.directory)
    if how == ("-r",):
        how = ("-r", moved.Identity(tmp_path).recipient)
    with site.start("export", "web.mapsave", "-o", "-", *how) as process:
        assert process.stdout is not None
        process.stdout.buffer.read(1)  # type: ignore[attr-defined]
        time.sleep(0.5)  # the pipe is full by then
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(wait.LONG) == 9
        assert time.monotonic() - began < 5
        assert process.stderr is not None
        assert "everything was rolled back" in process.stderr.read()


@pytest.mark.parametrize("encrypted", [False, True])
def test_ctrl_c_while_the_writer_does_not_write(
    site: cli.Site, tmp_path: Path, encrypted: bool
) -> None:
    path = moved.made(site.directory)
    identity = moved.Identity(tmp_path)
    recipients = ("-r", identity.recipient) if encrypted else ()
    archive = tmp_path / "archive"
    site.run("export", path, "-o", archive, *recipients, check=0)
    with importing_half(site, archive, identity if encrypted else None) as process:
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(wait.LONG) == 9
        assert time.monotonic() - began < 5
    assert names(site.images) == {path.name}


def test_kill_9_while_it_is_imported(site: cli.Site, tmp_path: Path) -> None:
    path = moved.made(site.directory)
    archive = tmp_path / "archive"
    site.run("export", path, "-o", archive, "--no-compression", check=0)
    with importing_half(site, archive, None) as process:
        process.kill()
        process.wait()
    partial = site.images / "back.partial"
    assert names(site.images) == {path.name, partial.name}
    # Nor is it taken for whole under another name.
    moved_aside = partial.rename(site.images / "back")
    site.run("verify", moved_aside, "--json", check=6).error("image.partial")
    moved_aside.rename(partial)
    site.run("import", archive, "-o", "back", "--json", check=8).error("guest.busy")
    site.run("recover", check=0)
    assert names(site.images) == {path.name}
    site.run("import", archive, "-o", "back", check=0)
    assert_same(path, site.images / "back")


def importing_half(site: cli.Site, archive: Path, identity: moved.Identity | None) -> "Half":
    """Import the first half of an archive, until the partial image has some of its data."""
    return Half(site, archive, identity)


class Half:
    """``mapsave import`` that has got half of an archive by a pipe that stays open."""

    def __init__(self, site: cli.Site, archive: Path, identity: moved.Identity | None) -> None:
        self._site = site
        self._archive = archive
        words = ("-i", str(identity.file)) if identity is not None else ()
        self._command = [*cli.COMMAND, "--config", str(site.config), "import", "-", *words]

    def __enter__(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(
            [*self._command, "-o", "back"],
            stdin=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": cli.tree.PYTHONPATH},
        )
        assert self._process.stdin is not None
        raw = self._archive.read_bytes()
        self._process.stdin.write(raw[: len(raw) * 3 // 4])
        self._process.stdin.flush()
        partial = self._site.images / "back.partial"
        wait.until(
            lambda: partial.exists() and partial.stat().st_size > MIB,
            what="half of the image",
            timeout=30,
        )
        return self._process

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.mark.root
def test_a_disk_that_is_full(site: cli.Site, tmp_path: Path) -> None:
    path = moved.made(site.directory)
    archive = tmp_path / "archive"
    site.run("export", path, "-o", archive, check=0)
    with storage.tmpfs(256 << 10, tmp_path) as small:
        for how in ((), ("--no-compression",), ("-r", moved.Identity(tmp_path).recipient)):
            words = ("export", path, "-o", small / "archive", "--json", *how)
            site.run(*words, check=3).error("check.room")
            assert names(small) == set()
        # Known before a byte of data is written, and not.
        known = site.run("import", archive, "-o", small / "web", "--json", check=3)
        assert "bytes are free" in known.error("check.room")["message"]
        assert names(small) == set()
    with storage.tmpfs(400 << 10, tmp_path) as small, storage.filled(small, leave=40 << 10):
        site.run("import", archive, "-o", small / "web", "--json", check=3).error("check.room")
        assert names(small) == {".filled"}


@pytest.mark.root
async def test_a_disk_that_becomes_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = moved.made(tmp_path)
    archive = await exported(path)
    monkeypatch.setattr(reading, "_check_room", lambda *_: None)
    with storage.tmpfs(300 << 10, tmp_path) as small:
        config = Config(images=small, state=tmp_path / "state")
        with pytest.raises(errors.NoRoom):
            await importing.import_(config, importing.Request(str(archive)))
        assert names(small) == set()


@pytest.mark.parametrize("how", [moved.PLAIN, Coding()])
async def test_a_file_system_without_files_that_have_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Coding
) -> None:
    monkeypatch.setattr(ends.os, "O_TMPFILE", os.O_DIRECTORY | os.O_WRONLY)  # EISDIR
    path = moved.made(tmp_path)
    archive = await exported(path, how)
    await exported(path, how, replace=True)
    await importing.import_(moved.config(tmp_path), importing.Request(str(archive), "back"))
    assert_same(path, path.parent / "back")
    monkeypatch.setattr(writing, "write", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        await exported(path, how, replace=True)
    assert names(tmp_path) == {"images", archive.name}


@pytest.fixture
def several(tmp_path: Path) -> Iterator[int]:
    with files.opened(tmp_path / "file", os.O_RDWR | os.O_CREAT) as fd:
        os.write(fd, random.Random(1).randbytes(20 * MIB))
        yield fd


def test_pieces_in_the_order_of_the_file(several: int) -> None:
    seen: list[int] = []
    out = io.BytesIO()

    def put(number: int, data: memoryview) -> None:
        seen.append(number)
        out.write(data)

    piece_reader.read(several, 0, 20 * MIB, put, moved.nothing, in_order=True)
    assert seen == list(range(20))
    assert out.getvalue() == moved.contents(several)


@pytest.mark.parametrize("where", ["put", "note", "read"])
def test_a_failure_ends_those_that_wait_for_their_turn(several: int, where: str) -> None:
    def fail(at: int) -> Callable[..., None]:
        calls = iter(range(1000))

        def call(*_: object) -> None:
            if next(calls) == at:
                raise ZeroDivisionError

        return call

    failing = fail(3) if where == "put" else fail(-1)

    def put(*_: object) -> None:
        time.sleep(0.05)  # all others wait for their turn by the end
        failing()

    note = fail(9) if where == "note" else fail(-1)
    end = (25 if where == "read" else 20) * MIB
    if where == "read":
        os.pwrite(several, b"x", 24 * MIB)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            piece_reader.read(several, 0, end, put, note, in_order=True)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(wait.LONG)
    assert not thread.is_alive()
    expected = errors.TruncatedImage if where == "read" else ZeroDivisionError
    assert [type(each) for each in failures] == [expected]


def test_a_failed_read_ends_those_that_wait_for_it(
    several: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = os.preadv

    def failing(fd: int, buffers: list[memoryview], at: int) -> int:
        if at == 3 * MIB:
            time.sleep(0.3)  # all others have read theirs by then
            raise OSError(5, "failed")
        return read(fd, buffers, at)

    monkeypatch.setattr(os, "preadv", failing)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            piece_reader.read(several, 0, 20 * MIB, lambda *_: None, moved.nothing, in_order=True)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert [str(each) for each in failures] == [f"[Errno 5] failed at byte {3 * MIB}"]
