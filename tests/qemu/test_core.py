"""A core has the memory and the registers of the image, as gdb reads them."""

import re
import signal
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit import cli, linux_guest, patterns, qemu, storage, wait
from tests.qemu.scene import Saved, saved, state_of

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")  # elf(5), Elf64_Ehdr
_SEGMENT = struct.Struct("<IIQQQQQQ")  # Elf64_Phdr
_LOAD, _NOTE = 1, 4
_CORE = 4  # e_type


_SYSTEM_PYTHON = "/usr/bin/python3"  # which the distribution's drgn is for
_DRGN = """
import drgn
program = drgn.Program()
program.set_core_dump('{core}')
print(bool(program.flags & drgn.ProgramFlags.IS_LINUX_KERNEL))
print(*(f"0x{{byte:02x}}" for byte in program.read(0x{address}, 8)))
"""


@pytest.fixture
def scene(site: cli.Site) -> Iterator[Saved]:
    with saved(site, "-smp", "2", ram=patterns.sparse) as found:
        yield found


def _segments(core: bytes) -> list[tuple[int, int, int, int]]:
    """Return type, place in the file, physical address and length of each segment."""
    header = _HEADER.unpack_from(core)
    assert header[0].startswith(b"\x7fELF")
    assert header[1] == _CORE
    start, size, number = header[5], header[9], header[10]
    found = [_SEGMENT.unpack_from(core, start + at * size) for at in range(number)]
    return [(each[0], each[2], each[4], each[5]) for each in found]


def test_it_has_the_memory_of_the_image(site: cli.Site, scene: Saved, tmp_path: Path) -> None:
    file = tmp_path / "a core"
    done = site.run("core", scene.image, "-o", file, "--physical", "--json", check=0).json()
    core = file.read_bytes()
    assert (done["core"], done["file_bytes"]) == (str(file), len(core))
    assert file.stat().st_mode & 0o777 == 0o600
    ram = scene.ram.files["pc.ram"].read_bytes()
    compared = 0
    for kind, offset, address, length in _segments(core):
        is_rom = 0xA0000 <= address < 0x100000  # which is another block
        if kind == _LOAD and address + length <= len(ram) and not is_rom:
            assert core[offset : offset + length] == ram[address : address + length]
            compared += length
    assert compared > len(ram) - (1 << 20)
    notes = [core[o : o + n] for kind, o, _, n in _segments(core) if kind == _NOTE]
    assert b"".join(notes).count(b"CORE\0") == 2  # one for each processor
    assert state_of(site, scene.image) == "saved"


def test_compressed(site: cli.Site, scene: Saved, tmp_path: Path) -> None:
    file = tmp_path / "core"
    site.run("core", scene.image, "-o", file, "--format", "kdump-zlib", check=0)
    assert file.read_bytes().startswith(b"KDUMP")
    assert file.stat().st_size < 16 << 20


def test_a_file_that_is_there_is_replaced_if_asked(
    site: cli.Site, scene: Saved, tmp_path: Path
) -> None:
    file = tmp_path / "core"
    file.write_text("mine")
    site.run("core", scene.image, "-o", file, check=2)
    assert file.read_text() == "mine"
    site.run("core", scene.image, "-o", file, "--replace", check=0)
    assert file.read_bytes().startswith(b"\x7fELF")
    site.run("core", scene.image, "-o", tmp_path, check=2)
    site.run("core", scene.image, "-o", tmp_path / "nosuch" / "core", check=3)


@pytest.mark.root
def test_a_full_disk_leaves_nothing(site: cli.Site, scene: Saved, tmp_path: Path) -> None:
    with storage.tmpfs(8 << 20, tmp_path) as place:
        error = site.run("core", scene.image, "-o", place / "core", "--json", check=3)
        assert error.error_id() == "core.failed"
        assert list(place.iterdir()) == []


def test_an_interrupted_core_leaves_nothing(site: cli.Site, scene: Saved, tmp_path: Path) -> None:
    program = tmp_path / "qemu-system-hangs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/up; exec sleep 1000\n")
    program.chmod(0o755)
    place = tmp_path / "cores"
    place.mkdir()
    options = ["-o", str(place / "core"), "--with", str(program)]
    with site.start("core", scene.image, *options) as process:
        wait.until(lambda: (tmp_path / "up").exists(), what="the throwaway QEMU")
        process.send_signal(signal.SIGTERM)
        assert process.wait(wait.LONG) == 9
    assert list(place.iterdir()) == []


def _stopped_in_kernel(guest: qemu.Qemu) -> str | None:
    """Stop a guest; return where in the kernel, or let it run on."""
    guest.control.execute("stop")
    command = {"command-line": "info registers"}
    told = guest.control.execute("human-monitor-command", **command)
    (there,) = (word[4:] for word in told.split() if word.startswith("RIP="))
    if there.startswith("ffffffff"):
        return str(there)
    guest.control.execute("cont")
    return None


def test_gdb_and_drgn_see_the_kernel_of_a_live_guest(site: cli.Site, tmp_path: Path) -> None:
    """Where its processor was, and the code that is there, by virtual addresses."""
    with linux_guest.running("-device", "vmcoreinfo", log=tmp_path / "log") as guest:
        guest.serial.wait_ticks()
        there = wait.until(lambda: _stopped_in_kernel(guest.qemu), what="it to be in the kernel")
        site.add_guest("linux", guest.qemu.qmp, launch=guest.qemu.argv)
        site.run("save", "linux", "-o", "it", check=0)
        guest.qemu.wait()
    site.run("core", "it", "-o", tmp_path / "core", check=0)
    asked = [f"core-file {tmp_path}/core", "p/x $rip", "x/2i $rip", "echo bytes:", "x/8xb $rip"]
    options = [word for each in asked for word in ("-ex", each)]
    found = subprocess.run(
        ["gdb", "-nx", "-batch", *options], capture_output=True, text=True, check=True
    )
    assert f"0x{there.lstrip('0')}" in found.stdout
    assert f"=> 0x{there}" in found.stdout
    assert "Cannot access memory" not in found.stderr
    code = re.findall(r"\t(0x[0-9a-f]{2})\b", found.stdout.partition("bytes:")[2])
    assert len(code) == 8
    program = _DRGN.format(core=tmp_path / "core", address=there)
    done = subprocess.run(
        [_SYSTEM_PYTHON, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", *code]
