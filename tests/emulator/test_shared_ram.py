"""RAM that is a shared file, and x-ignore-shared: as QEMU has them, and checkpoints without one."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mapsave.config import EmulatedVersion

from tests.emulator import helpers, requests
from tests.emulator.alike import compare, ending, without_clock
from tests.emulator.helpers import MIB, MULTIFD, OFFSET, sparse_ram
from tests.kit import emulated, qemu, qmp, reflinks, tree, wait

IGNORE = "x-ignore-shared"
SIZE = 33 * MIB


def shared(path: Path, size: int = SIZE, name: str = "ram") -> list[str]:
    backend = f"memory-backend-file,id={name},size={size},mem-path={path},share=on"
    return ["-object", backend, "-machine", f"memory-backend={name}"]


@pytest.fixture
def ram(tmp_path: Path) -> Path:
    path = tmp_path / "ram"
    path.write_bytes(sparse_ram(SIZE))
    return path


PROPERTIES = ("type", "mem-path", "offset", "share", "readonly", "rom", "size", "pmem", "align")
PROPERTIES += ("merge", "dump", "prealloc", "reserve", "discard-data", "none-of-them")


@pytest.mark.parametrize("name", ["ram", "m", None])
def test_same_answers(tmp_path: Path, ram: Path, name: str | None) -> None:
    lines = [requests.request(each) for each in ("query-memdev", "x-query-ramblock")]
    lines += [
        requests.request("qom-get", path=f"/objects/{each}", property=key)
        for each in ("ram", "m")
        for key in PROPERTIES
    ]
    compare(tmp_path, lines, *([] if name is None else shared(ram, name=name)))


@pytest.mark.parametrize(
    ("capabilities", "arguments", "is_shared"),
    [
        (("events", IGNORE), ("-S",), True),
        (("events", IGNORE), (), True),
        (("events", IGNORE), (), False),
        (("events", "mapped-ram", IGNORE), ("-S",), True),
        (("events", "mapped-ram", IGNORE), (), True),
        ((*MULTIFD, IGNORE), (), True),
        ((*MULTIFD, IGNORE), (), False),
    ],
)
def test_same_saves(
    tmp_path: Path,
    ram: Path,
    capabilities: tuple[str, ...],
    arguments: tuple[str, ...],
    is_shared: bool,
) -> None:
    """Events, statistics and run states, what is on stderr, and what is answered after it."""
    heard = []
    words = [*arguments, *(shared(ram) if is_shared else [])]
    for start, log in ((helpers.emulator, "emulator.stderr"), (helpers.real_qemu, "qemu.stderr")):
        with start(tmp_path, *words) as qmp:
            result = helpers.save(qmp, f"{tmp_path}/image", *capabilities)
            failed = "prelaunch" if arguments else "running"
            qmp.wait_run_state("postmigrate" if result["status"] == "completed" else failed)
            told: list[Any] = [*ending(qmp), qmp.ask("cont"), qmp("query-status")]
        lines = (tmp_path / log).read_text().splitlines()
        heard.append([*told, *(line.partition(": ")[2] for line in lines)])
    assert heard[0] == heard[1]


@pytest.mark.parametrize("capabilities", [("events", IGNORE), ("events", "mapped-ram", IGNORE)])
def test_images_are_alike(tmp_path: Path, ram: Path, capabilities: tuple[str, ...]) -> None:
    """Without the pages, so that each loads with the RAM file what the other has saved."""
    images = {}
    starts = {"emulated": helpers.emulator, "real": helpers.real_qemu}
    for name, start in starts.items():
        images[name] = tmp_path / name
        with start(tmp_path, "-S", *shared(ram)) as qmp:
            result = helpers.save(qmp, f"{images[name]},offset={OFFSET}", *capabilities)
    if result["status"] == "failed":
        assert (qemu.emulated_version(), "mapped-ram" in capabilities) == ("10.0", True), result
        return
    assert without_clock(images["emulated"]) == without_clock(images["real"])
    assert images["real"].stat().st_size < MIB
    before = ram.read_bytes()
    for name, start in starts.items():
        (other,) = (path for each, path in images.items() if each != name)
        with start(tmp_path, "-S", "-incoming", "defer", *shared(ram)) as qmp:
            result = helpers.restore(qmp, f"{other},offset={OFFSET}", *capabilities)
            assert result["status"] == "completed", result
            assert helpers.memory_of(qmp, SIZE, tmp_path) == before == ram.read_bytes()


@pytest.mark.parametrize("here", [(IGNORE,), ()], ids=["on", "off"])
@pytest.mark.parametrize("is_shared", [True, False], ids=["shared", "private"])
def test_same_loads(tmp_path: Path, ram: Path, here: tuple[str, ...], *, is_shared: bool) -> None:
    """Of a stream that lacks the RAM, and of one whose RAM was at another address."""
    image, moved = tmp_path / "image", tmp_path / "moved"
    with helpers.real_qemu(tmp_path, ram=ram) as qmp:
        helpers.save(qmp, str(image), "events", IGNORE)
    record = b"\x03ram" + SIZE.to_bytes(8, "big")
    data = image.read_bytes()
    assert data.count(record + bytes(8)) == 1
    moved.write_bytes(data.replace(record + bytes(8), record + (4096).to_bytes(8, "big")))
    words = ["-incoming", "defer", *(shared(ram) if is_shared else [])]
    for path in (image, moved):
        heard = []
        starts = ((helpers.emulator, "emulator.stderr"), (helpers.real_qemu, "qemu.stderr"))
        for start, log in starts:
            with start(tmp_path, *words) as qmp:
                helpers.restore(qmp, str(path), "events", *here)
                told = ending(qmp)
            lines = (tmp_path / log).read_text().splitlines()
            heard.append([*told, *(line.partition(": ")[2] for line in lines)])
        assert heard[0] == heard[1]


def test_what_the_guest_writes_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    with helpers.emulator(tmp_path, *shared(path), "--pattern", "linux", "--writer", "-S") as qmp:
        first = path.read_bytes()
        assert len(first) == SIZE
        assert first == helpers.memory_of(qmp, SIZE, tmp_path)
        qmp("cont")
        wait.until(lambda: path.read_bytes() != first, what="the guest's writer")
        qmp("stop")
        second = path.read_bytes()
        assert second == helpers.memory_of(qmp, SIZE, tmp_path)
    # It is there still for the next one.
    with helpers.emulator(tmp_path, *shared(path), "-S") as qmp:
        assert helpers.memory_of(qmp, SIZE, tmp_path) == second


def test_a_part_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    path.write_bytes(b"head".ljust(MIB, b"\1"))
    words = shared(path)
    words[1] += f",offset={MIB}"
    with helpers.emulator(tmp_path, *words, "--pattern", "random") as qmp:
        ram = helpers.memory_of(qmp, SIZE, tmp_path)
    assert path.read_bytes() == b"head".ljust(MIB, b"\1") + ram


@pytest.mark.parametrize("backed", [SIZE - 4096, 1])
def test_a_file_that_is_too_short(tmp_path: Path, backed: int) -> None:
    path = tmp_path / "ram"
    path.write_bytes(bytes(backed))
    words = [sys.executable, "-m", "mapsave.emulator", "--qmp", str(tmp_path / "q"), *shared(path)]
    done = subprocess.run(
        [*words, "--memory", str(SIZE)],
        env={"PYTHONPATH": tree.PYTHONPATH},
        capture_output=True,
        text=True,
        check=False,
        timeout=wait.LONG,
    )
    expected = f"backing store size 0x{backed:x} does not match 'size' option 0x{SIZE:x}"
    assert (done.returncode, expected in done.stderr) == (1, True)
    assert (path.stat().st_size, (tmp_path / "q").exists()) == (backed, False)


@pytest.mark.parametrize(("version", "status"), [("10.0", "failed"), ("11.1", "completed")])
def test_together_with_mapped_ram(
    tmp_path: Path, ram: Path, version: EmulatedVersion, status: str
) -> None:
    image = tmp_path / "image"
    with helpers.emulator(tmp_path, *shared(ram), version=version) as qmp:
        result = helpers.save(qmp, str(image), *MULTIFD, IGNORE)
        assert result["status"] == status
        if status == "failed":
            assert result["error-desc"] == "Unable to write to file: Bad address"
            qmp.wait_run_state("running")
            return
    before = ram.read_bytes()
    with helpers.emulator(tmp_path, "-incoming", "defer", *shared(ram), version=version) as qmp:
        assert helpers.restore(qmp, str(image), *MULTIFD, IGNORE)["status"] == "completed"
    assert ram.read_bytes() == before


@pytest.mark.root
@pytest.mark.parametrize("version", ["10.0", "11.1"])
def test_checkpoints_without_qemu(tmp_path: Path, version: EmulatedVersion) -> None:
    """Of a guest that writes all the time."""
    with reflinks.site_on("xfs", tmp_path) as site:
        file, socket = site.directory / "toy.ram", site.directory / "toy.qmp"
        words = [*shared(file, 16 * MIB), "--pattern", "linux", "--writer"]
        again = [sys.executable, "-m", "mapsave.emulator", "--qmp", str(socket)]
        again += ["--memory", "16M", "--as", version]
        site.add_guest("toy", socket, launch=again)
        images = []
        with emulated.emulated(socket, *words, memory="16M", version=version):
            for number in range(3):
                done = reflinks.checkpoint(site, str(number), guest="toy")
                assert done["checkpoint"]["paused_s"] > 0
                assert emulated.status(socket) == "running"
                images.append(done["image"])
            with qmp.connect(socket) as client:
                client.execute("stop")
            done = reflinks.checkpoint(site, "last", guest="toy")
            assert done["then"] == "leave"
            before = emulated.ram_of(socket, tmp_path / "before")
        try:
            for how in ("off", "on"):
                words = ["restore", "last", "--again", "--paused", "--instant", how]
                site.run(*words, check=0)
                assert emulated.ram_of(socket, tmp_path / how) == before
                emulated.end(socket)
            seen = set()
            for image in images:
                site.run("restore", image, "--paused", check=0)
                seen.add(emulated.ram_of(socket, tmp_path / "one"))
                emulated.end(socket)
            assert len(seen) == 3
        finally:
            emulated.end(socket)
