"""The emulator's images restore in a real QEMU and the other way round, byte for byte."""

import os
from pathlib import Path

import pytest
from mapsave.emulator import address

from tests.emulator import alike, helpers
from tests.emulator.helpers import MIB, MULTIFD, OFFSET
from tests.kit import files

PLAIN = ("events",)
MAPPED = ("events", "mapped-ram")
WAYS = [
    pytest.param(MULTIFD, {"multifd_channels": 1, "direct_io": True}, id="1-channel-direct"),
    pytest.param(MULTIFD, {"multifd_channels": 8, "direct_io": True}, id="8-channels-direct"),
    pytest.param(MULTIFD, {"multifd_channels": 8}, id="8-channels-buffered"),
    pytest.param(MULTIFD, {"zero_page_detection": "legacy"}, id="legacy-zero-pages"),
    pytest.param(MULTIFD, {"zero_page_detection": "none"}, id="no-zero-pages"),
    pytest.param(MAPPED, {}, id="mapped-ram-alone"),
    pytest.param(PLAIN, {}, id="plain-stream"),
]


def target_for(qmp: helpers.Qmp, image: Path, access: int, *, fdset: bool, direct: bool) -> str:
    """Return what ``file:`` is followed by: the image's path, or an fdset with descriptors."""
    if not fdset:
        return f"{image},offset={OFFSET}"
    if direct:
        return helpers.pass_pair(qmp, image, access) + f",offset={OFFSET}"
    with files.opened(image, access) as fd:
        qmp("add-fd", fd, fdset_id=7)
    return f"/dev/fdset/7,offset={OFFSET}"


@pytest.mark.parametrize("fdset", [False, True], ids=["path", "fdset"])
@pytest.mark.parametrize(("capabilities", "parameters"), WAYS)
@pytest.mark.parametrize("memory", ["33M", "64M"])
def test_qemu_restores_what_the_emulator_saved(
    tmp_path: Path,
    capabilities: tuple[str, ...],
    parameters: dict[str, object],
    *,
    fdset: bool,
    memory: str,
) -> None:
    image, ram = tmp_path / "image", tmp_path / "ram"
    image.write_bytes(b"X" * OFFSET + b"stale")
    size = int(memory[:-1]) * MIB
    direct = "direct_io" in parameters
    with helpers.emulator(tmp_path, "--pattern", "linux", "-S", memory=memory) as qmp:
        target = target_for(qmp, image, os.O_WRONLY, fdset=fdset, direct=direct)
        result = helpers.save(qmp, target, *capabilities, **parameters)
        assert result["status"] == "completed", result
        expected = helpers.memory_of(qmp, size, tmp_path)
    with helpers.real_qemu(tmp_path, "-S", "-incoming", "defer", memory=memory, ram=ram) as qmp:
        source = target_for(qmp, image, os.O_RDONLY, fdset=fdset, direct=direct)
        result = helpers.restore(qmp, source, *capabilities, **parameters)
        stderr = (tmp_path / "qemu.stderr").read_text()
        assert result["status"] == "completed", stderr
        assert qmp("query-status")["status"] == "prelaunch"
        assert ram.read_bytes() == expected
    assert image.read_bytes()[:OFFSET] == b"X" * OFFSET


@pytest.mark.parametrize("fdset", [False, True], ids=["path", "fdset"])
@pytest.mark.parametrize(("capabilities", "parameters"), WAYS)
@pytest.mark.parametrize("memory", ["33M", "64M"])
def test_emulator_restores_what_qemu_saved(
    tmp_path: Path,
    capabilities: tuple[str, ...],
    parameters: dict[str, object],
    *,
    fdset: bool,
    memory: str,
) -> None:
    image, ram = tmp_path / "image", tmp_path / "ram"
    image.write_bytes(b"X" * OFFSET)
    size = int(memory[:-1]) * MIB
    ram.write_bytes(helpers.sparse_ram(size))
    direct = "direct_io" in parameters
    with helpers.real_qemu(tmp_path, memory=memory, ram=ram) as qmp:
        target = target_for(qmp, image, os.O_WRONLY, fdset=fdset, direct=direct)
        result = helpers.save(qmp, target, *capabilities, **parameters)
        assert result["status"] == "completed", result
    with helpers.emulator(tmp_path, "--incoming", "defer", memory=memory) as qmp:
        source = target_for(qmp, image, os.O_RDONLY, fdset=fdset, direct=direct)
        result = helpers.restore(qmp, source, *capabilities, **parameters)
        assert result["status"] == "completed", (tmp_path / "emulator.stderr").read_text()
        assert qmp("query-status") == {"status": "running", "running": True}
        assert helpers.memory_of(qmp, size, tmp_path) == ram.read_bytes()


def test_images_are_alike(tmp_path: Path) -> None:
    """The same RAM saved by both gives the same file, but for the clock's two counters.

    And for passes over RAM that found nothing: how many there are is a matter of QEMU's timing.
    """
    ram = tmp_path / "ram"
    ram.write_bytes(helpers.sparse_ram(33 * MIB))
    images = []
    with helpers.real_qemu(tmp_path, "-S", ram=ram) as qmp:
        helpers.save(qmp, f"{tmp_path}/real,offset={OFFSET}")
        images.append(tmp_path / "real")
    with helpers.emulator(tmp_path, "--incoming", "defer", "-S") as qmp:
        helpers.restore(qmp, f"{tmp_path}/real,offset={OFFSET}")
        assert qmp("query-status")["status"] == "prelaunch"
        helpers.save(qmp, f"{tmp_path}/emulated,offset={OFFSET}")
        images.append(tmp_path / "emulated")
    real, emulated = map(alike.without_clock, images)
    assert real == emulated


@pytest.mark.parametrize("machine", ["pc", "q35", "microvm"])
@pytest.mark.parametrize("capabilities", [MULTIFD, MAPPED], ids=["multifd", "mapped-ram"])
def test_emulator_reads_ram_of_other_machine_types(
    tmp_path: Path, machine: str, capabilities: tuple[str, ...]
) -> None:
    ram = tmp_path / "ram"
    ram.write_bytes(helpers.sparse_ram(40 * MIB))
    with helpers.real_qemu(tmp_path, "-S", machine=machine, memory="40M", ram=ram) as qmp:
        assert helpers.save(qmp, f"{tmp_path}/image", *capabilities)["status"] == "completed"
    with helpers.emulator(tmp_path, "--incoming", "defer", memory="40M") as qmp:
        result = helpers.restore(qmp, f"{tmp_path}/image", *capabilities)
        assert result["status"] == "completed", (tmp_path / "emulator.stderr").read_text()
        assert qmp("query-status")["status"] == "prelaunch"
        assert helpers.memory_of(qmp, 40 * MIB, tmp_path) == ram.read_bytes()


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("file:/a,offset=1M", MIB),
        ("file:/a,offset=0x1000", 4096),
        ("file:/a,offset=1.5k", 1536),
        ("file:/a", 0),
    ],
)
def test_offsets(uri: str, expected: int) -> None:
    assert address.parse_uri(uri) == address.Address("file", "/a", expected)
