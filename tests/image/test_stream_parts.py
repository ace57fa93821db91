"""A stream is taken apart and put together again; the stub is the same without mapped pages."""

import os
from pathlib import Path

import pytest
from mapsave.image import bitmaps, holes, image, stream_parts, stub, validation
from mapsave.image.mapped_ram import RamBlock, Stream

from tests.image import build
from tests.image.conftest import Real
from tests.kit import files, qemu, raw

PAGE = 4096


def _stream(path: Path) -> Stream:
    with image.opened(path) as opened:
        return opened.validate().stream


def _copied(source: Path, target: Path, parts: stream_parts.Parts, offset: int) -> None:
    """Put a stream together at ``offset`` of a new file, with bitmaps and pages of ``source``."""
    layout = stream_parts.put_together(parts, offset)
    with files.opened(source) as fd, files.opened(target, os.O_RDWR | os.O_CREAT) as made:
        stream_parts.write(made, layout)
        for block, to in zip(_stream(source).blocks, layout.blocks, strict=True):
            stream_parts.copy_block(fd, block, made, to)


def test_round_trip_is_equal_to_the_byte(real: Real, tmp_path: Path) -> None:
    stream = _stream(real.path)
    with files.opened(real.path) as fd:
        parts = stream_parts.take_apart(fd, stream)
    assert sum(map(len, (parts.head, parts.tail))) < build.MIB
    _copied(real.path, tmp_path / "again", parts, stream.offset)
    assert (tmp_path / "again").read_bytes()[stream.offset :] == (
        real.path.read_bytes()[stream.offset :]
    )


def test_put_together_elsewhere_qemu_loads_it(real_images: dict[str, Real], tmp_path: Path) -> None:
    """All offsets in a stream are absolute: they are other ones then."""
    real = real_images["pc"]
    with files.opened(real.path) as fd:
        parts = stream_parts.take_apart(fd, _stream(real.path))
    _copied(real.path, tmp_path / "moved", parts, 3 * build.MIB + 4097)
    with qemu.running(machine="pc", memory="16M", incoming=True) as waiting:
        raw.restore(waiting, tmp_path / "moved", offset=3 * build.MIB + 4097)
        assert _used(waiting) == real.used


def _used(guest: qemu.Qemu) -> dict[str, tuple[int, ...]]:
    found = {}
    for name, length in guest.ram.lengths().items():
        content = guest.ram.read(name)
        pages = range(0, length, PAGE)
        found[name] = tuple(at // PAGE for at in pages if any(content[at : at + PAGE]))
    return found


def _mapping(block: RamBlock, path: Path) -> list[str]:
    """Return arguments for main memory that is mapped from the image."""
    backend = f"memory-backend-file,id={block.name},size={block.used_length},mem-path={path}"
    backend += f",offset={block.pages_offset},share=off,readonly=on,rom=off,reserve=off"
    return ["-object", backend, "-machine", f"memory-backend={block.name}"]


@pytest.mark.parametrize("machine", ["pc", "q35", "none"])
def test_stock_qemu_maps_the_image_and_loads_the_stub(
    real_images: dict[str, Real], machine: str
) -> None:
    real = real_images[machine]
    stream = _stream(real.path)
    block = stream.blocks[0]
    assert len(real.used[block.name]) > 50
    before = real.path.read_bytes()
    with (
        files.opened(real.path) as fd,
        stub.made(fd, stream, [stub.Mapped(block)]) as made,
        qemu.running(
            *_mapping(block, real.path), machine=machine, memory="16M", incoming=True
        ) as waiting,
    ):
        assert os.fstat(made).st_blocks * 512 < 3 * build.MIB
        with pytest.raises(PermissionError):
            os.ftruncate(made, 0)
        raw.restore(waiting, Path(f"/proc/self/fd/{made}"), direct_io=False)
        assert _used(waiting) == real.used
        with files.opened(real.path) as again:
            content = os.pread(again, block.used_length, block.pages_offset)
        assert waiting.ram.read(block.name) == content
        waiting.ram.write(block.name, 2 * build.MIB, b"changed")
    assert real.path.read_bytes() == before


def test_stale_pages_become_zeros(real_images: dict[str, Real], tmp_path: Path) -> None:
    """What a live save has left in the file for pages that are zeros is not the guest's memory."""
    real = real_images["none"]
    path = real.copy(tmp_path / "live")
    block = _stream(path).blocks[0]
    unused = sorted(set(range(block.pages)) - set(real.used[block.name]))
    wrong = [unused[0], *(page for page in unused[200:] if page + 1 in unused)][:2]
    wrong.append(wrong[-1] + 1)
    with path.open("r+b") as file:
        for page in wrong:
            file.seek(block.pages_offset + page * PAGE + 5)
            file.write(b"stale")
    stream = _stream(path)
    with files.opened(path) as fd:
        found = list(holes.stale(fd, block))
        assert found == [(wrong[0], 1), (wrong[1], 2)]
        with (
            stub.made(fd, stream, [stub.Mapped(block, tuple(found))]) as made,
            qemu.running(
                *_mapping(block, path), machine="none", memory="16M", incoming=True
            ) as waiting,
        ):
            assert waiting.ram.read(block.name, wrong[0] * PAGE, 10)[5:] == b"stale"
            raw.restore(waiting, Path(f"/proc/self/fd/{made}"), direct_io=False)
            assert _used(waiting) == real.used


def test_marked_pages_are_as_marked(tmp_path: Path) -> None:
    block = stream_parts.placed("m", 1000 * PAGE, PAGE, 100)
    with files.opened(tmp_path / "file", os.O_RDWR | os.O_CREAT) as fd:
        os.ftruncate(fd, block.end)
        stream_parts.mark_used(fd, block, [(1, 1), (3, 130), (999, 1)])
        assert list(bitmaps.set_runs(fd, block)) == [(1, 2), (3, 133), (999, 1000)]


def test_memory_under_an_alias(real_images: dict[str, Real], tmp_path: Path) -> None:
    """The stub has it by that, a reader and what mapsave saves by its own name."""
    source = real_images["pc"].path
    stream = _stream(source)
    main = next(block for block in stream.blocks if block.name == "pc.ram")
    mapped = [stub.Mapped(main, has_alias=True)]
    with files.opened(source) as fd, stub.made(fd, stream, mapped) as made:
        content = os.pread(made, os.fstat(made).st_size, 0)
    path = tmp_path / "aliased"
    path.write_bytes(content)
    assert content.count(b"\6Pc.ram") == 1
    size = len(content)
    with files.opened(path, os.O_RDWR) as fd:
        (found,) = (
            block
            for block in validation.validate_stream(fd, stream.offset, size).stream.blocks
            if block.has_alias
        )
        assert found.name == "pc.ram"
        digest = validation.validate_written(fd, stream.offset, size).structure_digest
        assert b"Pc.ram" not in path.read_bytes()
        contents = validation.validate_written(fd, stream.offset, size)
        assert not any(block.has_alias for block in contents.stream.blocks)
        assert contents.structure_digest == digest
