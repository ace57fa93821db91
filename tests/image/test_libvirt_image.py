"""Images of libvirt's format: mapsave's own, virsh's, and what stands in their padding."""

import dataclasses
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from mapsave import errors
from mapsave.image import abandoned, image, store, superblock, syscalls
from mapsave.image.libvirt_header import NewLibvirtHeader
from mapsave.image.superblock import State
from mapsave.operations import inspect

from tests.image import build, build_libvirt, ours
from tests.image.build_libvirt import NAME, PART, SAVE, UUID, XML, LibvirtImage, of_virsh
from tests.image.fuzz import places
from tests.kit import cli, files

METADATA = {"guest": {"name": "toy"}, "run_state": "running"}
NEW = NewLibvirtHeader(XML.decode(), "<cookie/>", was_running=True)
MIB = 1 << 20


def create(held: int, new: NewLibvirtHeader = NEW, **changes: Any) -> None:
    with image.creating(held, "a", METADATA, stream_offset=MIB, libvirt=new) as partial:
        ours.fill(partial)
        partial.commit({**METADATA, **changes}, replace=False)


def write(path: Path, made: build.Image) -> Path:
    made.built().write(path)
    return path


def test_partial_image(held: int, tmp_path: Path) -> None:
    with image.creating(held, "a", METADATA, stream_offset=MIB, libvirt=NEW) as partial:
        path = tmp_path / "a.partial"
        # Shorter than M, so that QEMU's ftruncate(M) gives no preallocated blocks back.
        assert path.stat().st_size < MIB
        content = path.read_bytes()
        assert content.startswith(PART + struct.pack("=IIII", 2, MIB - 92, 1, 6))
        assert content[92:].startswith(XML + b"\0<cookie/>\0" + bytes(1000))
        assert partial.block.stream_offset == MIB
        assert partial.metadata() == METADATA
        with image.opened(path) as opened:
            assert (opened.format, opened.block.state) == ("libvirt", State.PARTIAL)
            assert opened.metadata == METADATA
            with pytest.raises(errors.PartialImage):
                opened.validate()
        assert not abandoned.is_abandoned(held, "a.partial")
        partial.keep()
    assert abandoned.is_abandoned(held, "a.partial")


def test_committed_image(held: int, tmp_path: Path) -> None:
    with image.creating(held, "a", METADATA, stream_offset=MIB, libvirt=NEW) as partial:
        ours.fill(partial)
        partial.sync()
        assert partial.validate().used_pages == (5, 1)
        partial.commit({"guest": {"name": "new"}}, replace=False)
        assert partial.libvirt is not None and partial.libvirt.complete
        identity = partial.block.uuid
    assert os.listdir(tmp_path) == ["a"]
    with image.opened(tmp_path / "a") as opened:
        assert opened.libvirt is not None
        assert (opened.libvirt.xml, opened.libvirt.cookie) == (NEW.xml, NEW.cookie)
        assert (opened.libvirt.complete, opened.libvirt.was_running) == (True, True)
        assert opened.libvirt.stream_offset == opened.block.stream_offset == MIB
        assert (opened.block.state, opened.block.uuid) == (State.SAVED, identity)
        assert opened.metadata == {"guest": {"name": "new"}}
        assert opened.validate().used_pages == (5, 1)
        opened.mark(State.RESTORED)
        assert opened.metadata == {"guest": {"name": "new"}}
    with image.opened(tmp_path / "a") as opened:
        assert opened.block.state is State.RESTORED
        opened.validate()


def test_order_of_the_commit(held: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    real = {name: getattr(os, name) for name in ("fsync", "fdatasync", "pwrite")}
    rename = syscalls.rename

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        what = "slot" if data.startswith(superblock.MAGIC) else "metadata" if offset else "magic"
        steps.append(what)
        if what == "slot":
            with image.opened(tmp_path / "a.partial") as opened:
                assert opened.block.state is State.PARTIAL
        return int(real["pwrite"](fd, data, offset))

    def fsync(fd: int) -> None:
        steps.append("fsync directory" if fd == held else "fsync")
        real["fsync"](fd)

    def fdatasync(fd: int) -> None:
        steps.append("fsync")
        real["fdatasync"](fd)

    def renamed(*args: Any, **kwargs: Any) -> None:
        steps.append("rename")
        rename(*args, **kwargs)

    with image.creating(held, "a", METADATA, stream_offset=MIB, libvirt=NEW) as partial:
        ours.fill(partial)
        monkeypatch.setattr(os, "pwrite", pwrite)
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "fdatasync", fdatasync)
        monkeypatch.setattr(syscalls, "rename", renamed)
        partial.commit(METADATA, replace=False)
    slots = ["slot", "fsync"] * 2
    magic = ["magic", "fsync"]
    metadata = ["metadata", "fsync"]
    assert steps == [*metadata, *slots, *metadata, *magic, "rename", "fsync directory"]


@pytest.mark.parametrize("crash_at", ["write_complete", "rename"])
def test_save_that_was_killed_while_it_committed(
    held: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: str
) -> None:
    def crash(*_: Any, **__: Any) -> None:
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(image.libvirt_header if crash_at != "rename" else syscalls, crash_at, crash)
        with image.creating(held, "a", METADATA, stream_offset=MIB, libvirt=NEW) as partial:
            ours.fill(partial)
            partial.keep()
            partial.commit(METADATA, replace=False)
    with image.opened(tmp_path / "a.partial") as opened:
        assert opened.block.state is State.PARTIAL, "the name decides"
    assert abandoned.is_abandoned(held, "a.partial")
    with image.adopting(held, "a") as adopted:
        adopted.validate()
        adopted.commit({"mark": "adopted"}, replace=False)
    with image.opened(tmp_path / "a") as opened:
        assert opened.block.state is State.SAVED
        assert opened.metadata == {"mark": "adopted"}
        assert opened.libvirt is not None and opened.libvirt.was_running
        opened.validate()


def test_header_that_was_written_over_is_noticed(held: int) -> None:
    with image.creating(held, "a", METADATA, stream_offset=MIB, libvirt=NEW) as partial:
        ours.fill(partial)
        partial.validate()
        os.pwrite(partial.fd, b"X", 100)
        with pytest.raises(errors.InvalidImage, match="since it was written"):
            partial.validate()


@pytest.mark.parametrize("length", [1000, 1_000_000, 5 << 20])
@pytest.mark.parametrize("metadata", [10, 200_000])
def test_stream_begins_behind_what_comes_before(held: int, length: int, metadata: int) -> None:
    new = NewLibvirtHeader("x" * length, "c" * 1000)
    known = {"pad": "y" * metadata}
    with image.creating(held, "a", known, stream_offset=MIB, libvirt=new) as partial:
        offset = partial.block.stream_offset
        assert offset % 4096 == 0
        assert (offset == MIB) is (length == 1000)
        assert partial.libvirt is not None and partial.libvirt.stream_offset == offset
        ours.fill(partial)
        partial.commit({"pad": "y" * 2 * metadata, "more": "z" * 30_000}, replace=False)


def test_smallest_stream_offset_leaves_room_for_what_is_added(held: int) -> None:
    with image.creating(held, "a", METADATA, stream_offset=build.M, libvirt=NEW) as partial:
        assert build.M < partial.block.stream_offset <= 128 << 10
        ours.fill(partial)
        partial.commit({**METADATA, "more": "z" * 30_000}, replace=False)


def test_texts_that_cannot_be_written_leave_no_file(held: int) -> None:
    for bad in (NewLibvirtHeader(""), NewLibvirtHeader("a\0"), NewLibvirtHeader("a", "\0")):
        with (
            pytest.raises(ValueError, match="NULs"),
            image.creating(held, "a", METADATA, stream_offset=MIB, libvirt=bad),
        ):
            pass
    assert os.listdir(held) == []


def test_builder_and_code_agree(tmp_path: Path) -> None:
    path = write(tmp_path / "a", LibvirtImage(header={"state": build.RESTORED}))
    with image.opened(path) as opened:
        assert opened.block.state is State.RESTORED
        assert opened.block.sequence == 3
        assert opened.metadata == {"guest": {"name": "toy"}}
        opened.validate()


def test_image_of_virsh_tells_what_its_header_tells(tmp_path: Path) -> None:
    path = write(tmp_path / "a", of_virsh())
    with image.opened(path) as opened:
        assert opened.format == "libvirt" and not opened.has_superblock
        assert opened.block.state is State.SAVED
        assert opened.block.stream_offset == build_libvirt.VIRSH_OFFSET
        assert opened.block.file_length == path.stat().st_size
        guest = {"name": NAME, "qemu_name": NAME, "uuid": UUID}
        assert opened.metadata == {"guest": guest, "run_state": "running"}
        assert opened.validate().used_pages == (5, 1)
        identity = opened.block.uuid
    with image.opened(path) as again:
        assert again.block.uuid == identity
    for other in (of_virsh(was_running=0), of_virsh(xml=XML + b" "), of_virsh(cookie=None)):
        with image.opened(write(tmp_path / "b", other)) as opened:
            assert opened.block.uuid != identity


def test_paused_guest_of_virsh(tmp_path: Path) -> None:
    with image.opened(write(tmp_path / "a", of_virsh(was_running=0))) as opened:
        assert opened.metadata["run_state"] == "paused"


def test_partial_image_of_virsh(held: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.partial", of_virsh(magic=PART))
    with image.opened(path) as opened:
        assert opened.block.state is State.PARTIAL
        with pytest.raises(errors.PartialImage) as caught:
            opened.validate()
    assert "libvirt" in str(caught.value.hint)  # recover does nothing about it
    # libvirt holds no lock, so only its silence tells that it writes no more.
    assert not abandoned.is_abandoned(held, "a.partial")
    hour = path.stat().st_mtime - 3610
    os.utime(path, (hour, hour))
    assert abandoned.is_abandoned(held, "a.partial")
    write(path, of_virsh())
    os.utime(path, (hour, hour))
    assert not abandoned.is_abandoned(held, "a.partial")
    with pytest.raises(errors.InvalidImage, match="not written by mapsave"):
        image.adopting(held, "a").__enter__()


def test_mark_of_an_image_of_virsh_changes_its_padding_only(tmp_path: Path) -> None:
    path = write(tmp_path / "a", of_virsh())
    before = path.read_bytes()
    with image.opened(path) as opened:
        identity = opened.block.uuid
        opened.mark(State.RESTORED)
        assert opened.has_superblock
    after = path.read_bytes()
    offset = build_libvirt.VIRSH_OFFSET
    assert before[: offset - 8192] == after[: offset - 8192]
    assert before[offset:] == after[offset:] and len(before) == len(after)
    with image.opened(path) as opened:
        assert (opened.block.state, opened.block.uuid) == (State.RESTORED, identity)
        assert opened.metadata["guest"]["name"] == NAME
        opened.validate()
        sequence = opened.block.sequence
        opened.mark(State.SAVED)
        assert opened.block.sequence == sequence + 1
    with image.opened(path) as opened:
        assert opened.block.state is State.SAVED


def used_padding(offset: int, *, room: int) -> LibvirtImage:
    made = of_virsh(offset=offset, cookie=None)
    return dataclasses.replace(made, xml=XML.ljust(offset - 92 - room - 1, b" "))


@pytest.mark.parametrize(("room", "fits"), [(8192, True), (8191, False), (0, False)])
def test_mark_needs_two_slots_of_padding(tmp_path: Path, room: int, fits: bool) -> None:
    path = write(tmp_path / "a", used_padding(100_000, room=room))
    before = path.read_bytes()
    with image.opened(path) as opened:
        opened.validate()
        if fits:
            opened.mark(State.RESTORED)
            assert opened.block.state is State.RESTORED
            return
        with pytest.raises(OSError, match="no space") as caught:
            opened.mark(State.RESTORED)
        assert caught.value.strerror
    assert path.read_bytes() == before


@pytest.mark.parametrize("distance", [1, 4096, 4097, 8192])
def test_mark_never_overwrites_what_another_wrote(tmp_path: Path, distance: int) -> None:
    path = write(tmp_path / "a", of_virsh())
    with path.open("r+b") as file:
        file.seek(build_libvirt.VIRSH_OFFSET - distance)
        file.write(b"x")
    before = path.read_bytes()
    with image.opened(path) as opened:
        opened.validate()
        with pytest.raises(OSError, match="no space"):
            opened.mark(State.RESTORED)
    assert path.read_bytes() == before


def rewritten_by_virsh(path: Path, xml: bytes) -> None:
    """Do what ``virsh save-image-define`` does: same length, the padding zeroed."""
    with path.open("r+b") as file:
        head = file.read(92)
        length = struct.unpack_from("=I", head, 20)[0]
        file.seek(0)
        new = build_libvirt.header(data_length=length, cookie_offset=0)
        file.write(new + xml + bytes(length - len(xml)))


def test_image_whose_xml_virsh_has_rewritten(held: int, tmp_path: Path) -> None:
    create(held)
    path = tmp_path / "a"
    with image.opened(path) as opened:
        rewritten_by_virsh(path, XML.replace(b"web 01", b"renamed"))
        opened.mark(State.RESTORED)  # what was read at the opening must not be written now
        assert opened.metadata["guest"]["name"] == "renamed <é>"
    with image.opened(path) as opened:
        assert opened.block.state is State.RESTORED
        assert opened.metadata["guest"]["name"] == "renamed <é>"
        opened.validate()


def test_image_that_is_damaged_before_it_is_marked(held: int, tmp_path: Path) -> None:
    create(held)
    with image.opened(tmp_path / "a") as opened:
        with open(tmp_path / "a", "r+b") as file:
            file.write(build_libvirt.header(version=9))
        with pytest.raises(OSError, match="version 9") as caught:
            opened.mark(State.RESTORED)
        assert caught.value.strerror


@pytest.mark.parametrize("made", [build.Image(), LibvirtImage(), of_virsh()])
def test_reread_sees_the_mark_of_another(tmp_path: Path, made: build.Image) -> None:
    path = write(tmp_path / "a", made)
    with image.opened(path) as opened, image.opened(path) as other:
        other.mark(State.RESTORED)
        assert opened.block.state is State.SAVED
        opened.reread()
        assert opened.block == other.block
        assert opened.block.state is State.RESTORED


def test_torn_first_mark_leaves_the_image_good(tmp_path: Path) -> None:
    path = write(tmp_path / "a", of_virsh())
    with image.opened(path) as opened:
        opened.mark(State.RESTORED)
        slot = opened.block.place.slot(opened.block.sequence % 2)
    written = path.read_bytes()
    for cut in range(8, 4096, 512):
        with path.open("r+b") as file:
            file.seek(slot)
            file.write(written[slot : slot + cut] + bytes(4096 - cut))
        with image.opened(path) as opened:
            assert opened.block.state is State.SAVED
            opened.validate()
            opened.mark(State.RESTORED)
        with image.opened(path) as opened:
            assert opened.block.state is State.RESTORED


def test_both_slots_damaged(tmp_path: Path) -> None:
    built = LibvirtImage().built()
    for name in ("lv.slot0", "lv.slot1"):
        at, _ = built.fields[name]
        built.pieces.append((at + 50, b"\xff"))
    built.write(tmp_path / "a")
    with pytest.raises(errors.InvalidImage, match="both superblock slots"):
        image.opened(tmp_path / "a").__enter__()


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"stream_offset": build.M + 4096}, "stream at 69632, but the header before it says 65536"),
        ({"stream_offset": 0}, "stream at 0"),
        ({"metadata_offset": 0}, "metadata at 0"),
        ({"metadata_offset": 4095}, "lies outside 4096..57344"),
        ({"metadata_offset": build.M - 8192}, "lies outside"),
        ({"metadata_offset": build.M}, "lies outside"),
        ({"file_length": 1 << 40}, "superblock says"),
    ],
)
def test_slots_that_lie(tmp_path: Path, header: dict[str, int], words: str) -> None:
    path = write(tmp_path / "a", LibvirtImage(header=header))
    with pytest.raises(errors.InvalidImage, match=words):
        image.opened(path).__enter__()


@pytest.mark.parametrize("made", [LibvirtImage(), of_virsh(), of_virsh(cookie=None)])
def test_image_cut_anywhere(tmp_path: Path, made: LibvirtImage) -> None:
    built = made.built()
    path = tmp_path / "a"
    built.write(path)
    # A stream of a machine without description ends there: only a superblock knows better.
    complete = None if made.ours else built.fields["description.type"][0]
    for size in reversed(places(built.boundaries(), built.size)):
        os.truncate(path, size)
        if size == complete:
            continue
        with pytest.raises(errors.InvalidImage), image.opened(path) as opened:
            opened.validate()


def test_other_formats_name_virsh(tmp_path: Path) -> None:
    path = write(tmp_path / "a b", of_virsh(number=0))
    with pytest.raises(errors.UnsupportedImage, match="'raw'") as caught:
        image.opened(path).__enter__()
    assert str(path) in caught.value.message
    assert f"virsh restore '{path}'" in str(caught.value.hint)


def test_store_lists_both_formats(held: int, tmp_path: Path) -> None:
    create(held)
    write(tmp_path / "virsh", of_virsh())
    write(tmp_path / "raw", of_virsh(number=0))
    write(tmp_path / "native", build.Image())
    write(tmp_path / "b.partial", of_virsh(magic=PART))
    with store.directory(tmp_path) as directory:
        found = {each.name: (each.format, each.state) for each in store.entries(directory)}
    assert found == {
        "a": ("libvirt", "saved"),
        "virsh": ("libvirt", "saved"),
        "raw": (None, "invalid"),
        "native": ("native", "saved"),
        "b.partial": ("libvirt", "partial"),
    }


def test_what_is_verified(tmp_path: Path) -> None:
    stream = ["structure", "bitmaps", "description"]
    for made, before in (
        (build.Image(), ["superblock", "metadata"]),
        (LibvirtImage(), ["libvirt header", "superblock", "metadata"]),
        (of_virsh(), ["libvirt header"]),
    ):
        path = str(write(tmp_path / "a", made))
        found = inspect.verify(path)
        assert found["verified"] == before + stream
        assert found["format"] == ("native" if type(made) is build.Image else "libvirt")


def test_recover_sweeps_abandoned_partial_images(site: cli.Site) -> None:
    with files.opened(site.images) as held:
        for name, libvirt in (("a", NEW), ("b", None)):
            with image.creating(held, name, {}, stream_offset=MIB, libvirt=libvirt) as partial:
                partial.keep()
        with image.creating(held, "c", {}, stream_offset=MIB, libvirt=NEW):
            found = site.run("recover", "--json", check=0).json()
            assert sorted(os.path.basename(each) for each in found["swept"]) == [
                "a.partial",
                "b.partial",
            ]
            assert os.listdir(held) == ["c.partial"]


def test_inspect_of_the_command_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a", of_virsh())
    found = cli.mapsave("inspect", path, "--json", check=0).json()
    assert (found["format"], found["guest"], found["guest_uuid"]) == ("libvirt", NAME, UUID)
    length = build_libvirt.VIRSH_OFFSET - 92
    expected = {"version": 2, "was_running": True, "data_bytes": length, "cookie": True}
    assert found["libvirt"] == expected
    text = cli.mapsave("inspect", path, check=0).stdout
    assert "libvirt format" in text and NAME in text and "None" not in text
    assert cli.mapsave("inspect", path, "--xml", check=0).stdout == XML.decode()
    as_json = cli.mapsave("inspect", path, "--xml", "--json", check=0).json()
    assert as_json == {"image": str(path), "xml": XML.decode()}
    listed = cli.mapsave("list", tmp_path, "--json", check=0).json()["images"]
    assert [each["format"] for each in listed] == ["libvirt"]
    assert SAVE not in text.encode()


def test_xml_of_native_images(tmp_path: Path) -> None:
    path = write(tmp_path / "a", build.Image())
    refused = cli.mapsave("inspect", path, "--xml", "--json", check=2).json()
    assert refused["error"]["id"] == "usage"
    assert cli.mapsave("inspect", path, "--json", check=0).json()["libvirt"] is None
    write(path, build.Image(metadata=b'{"domain": {"xml": "<domain>\\u001b[1m\\u00e9</domain>"}}'))
    shown = cli.mapsave("inspect", path, "--xml", check=0).stdout
    assert shown == "<domain>&#27;[1mé</domain>\n"


@pytest.mark.parametrize("domain", [b'"x"', b'{"xml": 1}', b"[]"])
def test_metadata_with_a_domain_of_another_type(tmp_path: Path, domain: bytes) -> None:
    path = write(tmp_path / "a", build.Image(metadata=b'{"domain": ' + domain + b"}"))
    with pytest.raises(errors.InvalidImage, match="domain"):
        image.opened(path).__enter__()
