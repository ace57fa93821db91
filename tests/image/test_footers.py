"""Device state may hold anything, bytes that look like its end included."""

import struct

import pytest
from mapsave import errors
from mapsave.image import mapped_ram

from tests.image import build, ours

SECTION = 5
FOOTER = b"\x7e" + struct.pack(">I", SECTION)
HEAD = struct.pack(">BIB4sII", 4, SECTION, 4, b"fake", 0, 1)
NEW_HEAD = struct.pack(">BIB4sII", 4, 99, 4, b"fake", 0, 1)
RAM = struct.pack(">I", 2)
END_MARK = struct.pack(">Q", 0x10)


def with_state(state: bytes) -> build.Built:
    """Build an image whose middle device has this state."""
    devices = build.default_devices()
    devices[1:1] = [build.Device("tricky", SECTION, state)]
    devices[3].section = 6
    return build.Image(devices=devices).built()


@pytest.mark.parametrize(
    "behind",
    [
        b"",
        b"\x00",
        b"\x00\x00",
        b"\x00\x06",
        b"\x00\x06\x00\x00\x00\x01X",
        b"\x01",
        b"\x02",
        b"\x02" + RAM + END_MARK,
        b"\x02" + RAM + END_MARK + b"\x7e" + RAM,
        b"\x03",
        b"\x03" + RAM + END_MARK + b"\x7e" + RAM,
        b"\x04",
        b"\x04\0\0\0\x09\0" + bytes(20),
        b"\x04\0\0\0\x09\x04\x01\x02\x03\x04" + bytes(8),
        b"\x04\0\0\0\x09\x04fake\0\0\0\0\0\x01\0\0",
        b"\x04\0\0\0\x09\xff" + b"x" * 100,
        HEAD,
        b"\x05",
        b"\x06",
        b"\x07",
        b"\x08",
        b"\x08\x00\x0b",
        b"\x7e",
        FOOTER,
        FOOTER * 1000,
    ],
    ids=lambda behind: behind[:12].hex() or "nothing",
)
def test_footer_in_the_state_is_none(behind: bytes) -> None:
    for state in (FOOTER + behind, b"before" + FOOTER + behind + b"after", FOOTER[:3] + FOOTER):
        built = with_state(state)
        device = ours.validated(built).stream.devices[1]
        assert (device.name, device.length) == ("tricky", len(state))


@pytest.mark.parametrize("length", [262100 + by for by in range(0, 60, 3)])
def test_footer_at_the_border_of_what_is_read_at_once(length: int) -> None:
    # The state is searched in pieces of 256 KiB; false and true footer lie across their border.
    for state in (bytes(length), bytes(length) + FOOTER + b"\x01" + bytes(7)):
        assert ours.validated(with_state(state)).stream.devices[1].length == len(state)


def test_false_footer_that_overlaps_the_true_one() -> None:
    # Section 126 has the footer 7e 00 00 00 7e, which may begin in the state.
    devices = build.default_devices()
    devices[1].section, devices[1].state = 0x7E, b"\x7e\0\0\0"
    assert ours.validated(build.Image(devices=devices).built()).stream.devices[1].length == 4


@pytest.mark.parametrize("ending", [b"", b"\x7e" + struct.pack(">I", 99)])
def test_state_that_forges_a_whole_device_is_refused(ending: bytes) -> None:
    # A guest can do this to its own image only. The footer that QEMU wrote is left over.
    with pytest.raises(errors.InvalidImage):
        ours.validated(with_state(FOOTER + NEW_HEAD + b"state" + ending))


def test_many_false_footers_cost_no_more_than_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_ram, "MAX_FALSE_FOOTERS", 100)
    assert ours.validated(with_state(FOOTER * 100)).stream.devices[1].length == 500
    with pytest.raises(errors.UnsupportedImage, match="too many bytes like its footer"):
        ours.validated(with_state(FOOTER * 101))


def test_iterative_section_behind_an_early_device() -> None:
    # VFIO saves in iterations, which we don't know; the device before it is still found whole.
    built = build.Image(early=[build.Device("early", 7, b"x")]).built()
    with pytest.raises(errors.UnsupportedImage, match="iterative section 'vfi'"):
        ours.validated(built.patched("ram.name", b"vfi"))
