"""The reader finds in an image what QEMU wrote into it, and what a builder of our own did."""

import json
import os

import pytest
from mapsave.image import bitmaps, image

from tests.image import build, ours
from tests.image.conftest import Real


def test_ram_blocks_are_those_that_qemu_lists(real: Real) -> None:
    with image.opened(real.path) as opened:
        stream = opened.validate().stream
    assert {block.name: block.used_length for block in stream.blocks} == real.blocks


def test_used_pages_are_those_that_are_not_zero(real: Real) -> None:
    with image.opened(real.path) as opened:
        for block in opened.validate().stream.blocks:
            used: set[int] = set(range(block.pages))
            for first, count in bitmaps.clear_runs(opened.fd, block):
                used -= set(range(first, first + count))
            assert used == set(real.used[block.name]), block.name


def test_devices_are_those_of_the_description(real: Real) -> None:
    with image.opened(real.path) as opened:
        stream = opened.validate().stream
        raw = os.pread(opened.fd, stream.description_length, stream.description_offset)
    described = [(each["name"], each["instance_id"]) for each in json.loads(raw)["devices"]]
    assert [(each.name, each.instance) for each in stream.devices] == described
    assert "globalstate" in dict(described)
    assert stream.end == real.path.stat().st_size


def test_machine_and_capabilities_are_qemus(real_images: dict[str, Real]) -> None:
    for machine, real in real_images.items():
        with image.opened(real.path) as opened:
            stream = opened.validate().stream
        resolved = {"pc": "pc-i440fx", "q35": "pc-q35"}.get(machine, machine)
        assert stream.machine.startswith(resolved)
        assert stream.capabilities == ("mapped-ram",)


def test_everything_that_was_built_is_found() -> None:
    guest = bytes(range(16, 32))
    made = build.Image(
        machine=b"virt-10.1",
        iterations=7,
        subsections=(
            (b"configuration/target-page-bits", (12).to_bytes(4, "big")),
            (b"configuration/uuid", guest),
        ),
    )
    built = made.built()
    contents = ours.validated(built)
    stream = contents.stream
    assert (stream.offset, stream.end) == (build.M, built.size)
    assert (stream.machine, stream.iterations, stream.page_bits) == ("virt-10.1", 7, 12)
    assert stream.uuid is not None and stream.uuid.bytes == guest
    assert contents.used_pages == (5, 1)
    assert contents.data_bytes == 6 * 4096
    assert stream.ram_bytes == build.MIB + 40960
    for number, block in enumerate(stream.blocks):
        bits, pages = built.fields[f"block{number}.bitmap"], built.fields[f"block{number}.pages"]
        assert (block.bitmap_offset, block.bitmap_bytes) == bits
        assert (block.pages_offset, block.used_length) == pages
        assert block.end == sum(pages)
    states = [built.fields[f"device{number}.state"] for number in range(3)]
    assert [(each.offset, each.length) for each in stream.devices] == states


@pytest.mark.parametrize("iterations", [0, 1, 4095, 4096, 4097, 200_000])
def test_any_number_of_iterations(iterations: int) -> None:
    # An hour of saving, 20 iterations a second, makes 72 000.
    made = build.Image()
    built = made.built()
    made.iterations = 0
    one = bytes.fromhex("02 00000002 0000000000000010 7e 00000002")
    layout = made.built()
    start = layout.fields["switchover"][0]
    pieces = [
        (offset + (len(one) * iterations if offset >= start else 0), data)
        for offset, data in layout.pieces
        if offset >= build.M
    ]
    size = layout.size + len(one) * iterations
    header = [(0, build.slot(metadata=made.metadata, file_length=size)), (8192, made.metadata)]
    many = build.Built([*pieces, (start, one * iterations), *header], size, {})
    assert ours.validated(many).stream.iterations == iterations
    assert built.size - layout.size == 2 * len(one)


def test_devices_saved_early_stand_before_ram() -> None:
    # virtio-mem, which has to be known before RAM is loaded (early_setup in QEMU).
    early = [build.Device("0000:00:04.0/virtio-mem-early", 7, b"size")]
    names = [each.name for each in ours.validated(build.Image(early=early).built()).stream.devices]
    assert names[0] == "0000:00:04.0/virtio-mem-early" and len(names) == 4


def test_stream_of_a_machine_without_description() -> None:
    stream = ours.validated(build.Image(with_description=False).built()).stream
    assert stream.description_length == 0
    assert len(stream.devices) == 3


def test_stream_without_switchover_command() -> None:
    assert ours.validated(build.Image(switchover=False).built()).stream.iterations == 2


def test_description_too_long_to_compare_is_no_reason_to_refuse() -> None:
    names = b", ".join(b'{"name": "x"}' for _ in range(400_000))
    assert (
        len(
            ours.validated(
                build.Image(description=b'{"devices": [' + names + b"]}").built()
            ).stream.devices
        )
        == 3
    )
