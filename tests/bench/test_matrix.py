"""The matrix: what it measures is in table, JSON and picture; what it sets up is gone after it."""

import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.bench import matrix, matrix_cells, matrix_layouts, matrix_targets, matrix_ways, picture
from tests.bench.matrix_cells import Cell, Measured
from tests.bench.matrix_ways import AUTO, BARE, VIRSH, Way
from tests.bench.measure import Run, Series
from tests.kit import libvirtd, linux_guest, need, processes, qemu, storage, tree, wait

MIB = storage.MIB
SVG = "{http://www.w3.org/2000/svg}"
PHASES = json.dumps({"phases_s": {"write": 0.5}})
SMALL = ["--size", "16M", "--rounds", "1"]


def run(arguments: list[str], directory: Path) -> tuple[int, dict[str, Any], ElementTree.Element]:
    """Run the matrix; return its exit code, JSON and picture."""
    paths = directory / "matrix.json", directory / "matrix.svg"
    files = ["--json", str(paths[0]), "--svg", str(paths[1]), "--directory", str(directory)]
    code = matrix.main([*arguments, *files])
    return code, json.loads(paths[0].read_text()), ElementTree.parse(paths[1]).getroot()


def tables(text: str) -> tuple[list[list[str]], list[list[str]]]:
    """Return the lines of the two tables, without their heads."""
    measured, targets = (
        [
            [word.strip() for word in line.strip("|").split(" | ")]
            for line in part.splitlines()
            if line.startswith("| ")
        ]
        for part in text.split("\n| what ")
    )
    return measured[2:], targets[1:]


@pytest.mark.root
def test_every_measurement_is_in_table_json_and_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    need.skip_if(qemu.unavailable())
    options = ["--filesystems", "ext4", "--layouts", "runs-1", "--dense", "16M"]
    code, found, drawn = run([*options, *SMALL], tmp_path)
    told, targets = tables(capsys.readouterr().out)
    names = {
        cell["layout"]: [(each["action"], each["name"]) for each in cell["measurements"]]
        for cell in found["cells"]
    }
    has_virsh = libvirtd.unavailable() is None
    both = ["auto", "virsh"] if has_virsh else ["auto"]
    peers = ["bare script", "virsh"] if has_virsh else ["bare script"]
    fixed = [way.name for way in matrix_ways.few(direct_io=True)]
    saves = [("save", name) for name in [*fixed, "auto", *peers]]
    alone = [("save", name) for name in ("bare script", matrix_ways.DISK.name, "auto")]
    assert len(fixed) == 8
    assert names == {"runs-1": [*saves, *(("restore", each) for each in both)], "dense-16M": alone}

    measured = [(cell, each) for cell in found["cells"] for each in cell["measurements"]]
    assert len(told) == len(measured)
    for row, (cell, each) in zip(told, measured, strict=True):
        assert row[:3] == [cell["layout"], "ext4", f"{each['action']}, {each['name']}"]
        assert float(row[3].removesuffix(" s")) == pytest.approx(each["median_seconds"], abs=6e-4)
        assert float(row[4]) == pytest.approx(each["ratio"], abs=6e-3)
        assert each["allocated_bytes"] >= (7 if cell["layout"] == "runs-1" else 15) * MIB
    squares = [group.get("data-what") for group in drawn.iter(f"{SVG}g")]
    assert squares == [f"{row[0]}, {row[1]}: {row[2]}" for row in told]

    assert [(row[0], row[5]) for row in targets] == [
        (each["what"], "yes" if each["met"] else "NO") for each in found["targets"]
    ]
    assert len(found["targets"]) == (5 if has_virsh else 3)
    assert code == (0 if found["met"] else 1)
    assert found["met"] == all(each["met"] for each in found["targets"])
    assert storage.left_behind() == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["matrix.json", "matrix.svg"]


@pytest.mark.root
def test_a_file_system_that_cannot_be_made_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    need.skip_if(qemu.unavailable())
    monkeypatch.setitem(storage._MKFS, "btrfs", ["mkfs.nosuch"])
    options = ["--filesystems", "btrfs", "--layouts", "idle", "--dense", "0"]
    code, found, drawn = run([*options, *SMALL], tmp_path)
    assert "left out: btrfs: there is no mkfs.nosuch" in capsys.readouterr().out
    assert "btrfs: there is no mkfs.nosuch" in found["left_out"]
    assert found["cells"] == [] and list(drawn.iter(f"{SVG}g")) == []
    assert code == 1, "nothing was measured"


@pytest.mark.root
def test_nothing_is_left_where_it_is_ended(tmp_path: Path) -> None:
    need.skip_if(qemu.unavailable())
    options = ["--filesystems", "ext4", "--layouts", "runs-1", "--dense", "0", "--size", "64M"]
    found = tmp_path / "matrix.json"
    with processes.running(
        [
            sys.executable,
            "-m",
            "tests.bench",
            "matrix",
            *options,
            "--json",
            str(found),
            "--directory",
            str(tmp_path),
        ],
        env={"PYTHONPATH": tree.PYTHONPATH},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tree.ROOT,
    ) as process:
        wait.until(lambda: "save" in commands(tmp_path), what="a save")
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=wait.LONG)[0]
        assert process.returncode == 128 + signal.SIGTERM, said
    assert commands(tmp_path) == set()
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert not [path for path, _ in storage.loop_devices() if path.is_relative_to(tmp_path)]
    assert json.loads(found.read_text())["complete"] is False
    assert list(tmp_path.iterdir()) == [found]


def commands(directory: Path) -> set[str]:
    """Return the words of all command lines that name something below a directory."""
    found: set[str] = set()
    for pid in matrix.naming([directory / "mapsave-bench-"]):
        path = Path(f"/proc/{pid}/cmdline")
        words = path.read_text(errors="replace").split("\0") if path.exists() else []
        if any(str(directory) in word for word in words):
            found.update(words[1:])
    return found


def test_fixed_ways() -> None:
    every = matrix_ways.every(direct_io=True)
    assert len({way.name for way in every}) == len({way.options for way in every}) == 36
    assert set(matrix_ways.few(direct_io=True)) <= set(every)
    for choose in (matrix_ways.every, matrix_ways.few):
        assert choose(direct_io=False)
        assert all(way.options[:2] == ("--direct-io", "off") for way in choose(direct_io=False))


def test_the_layout_of_a_linux_guest(tmp_path: Path) -> None:
    need.skip_if(linux_guest.unavailable())
    content = matrix_layouts.made(matrix_layouts.LINUX, 16 * MIB, tmp_path)
    assert content.size == linux_guest.MEMORY_BYTES
    assert 24 * MIB < content.used < content.size, "what the guest checksums, and not all"


# Targets and picture, of cells that are made up.

FAST, SLOW = (
    matrix_ways.fixed(direct_io=direct, zero_pages="legacy", channels=8, preallocate=False)
    for direct in (True, False)
)


def took(way: Way, *seconds: float, action: str = "save") -> Measured:
    """Return a measurement."""
    return Measured(action, way, Series([Run(each, 0, PHASES) for each in seconds]), 10**6)


def cell(*measured: Measured, layout: str = "runs-1", in_memory: bool = False) -> Cell:
    """Return a cell."""
    return Cell(matrix_layouts.ALL[layout], "ext4", in_memory, 16 * MIB, measured=[*measured])


def verdicts(found: Cell) -> dict[str, bool | None]:
    """Return what auto is compared with, and whether the target is met."""
    return {
        each.row.what.rpartition(" / ")[2]: each.row.met for each in matrix_targets.judged(found)
    }


@pytest.mark.parametrize(
    ("auto", "best", "met"),
    [(1.1, 1.0, True), (1.2, 1.0, False), (0.128, 0.1, True), (0.132, 0.1, False)],
)
def test_auto_against_the_best_fixed_way(auto: float, best: float, met: bool) -> None:
    found = cell(took(SLOW, 9), took(FAST, best, 8, best), took(AUTO, auto), took(BARE, 0.01))
    assert verdicts(found) == {FAST.name: met}


@pytest.mark.parametrize(
    ("layout", "limit", "restored"),
    [("runs-1", 0.1, True), ("runs-4", 0.16, True), ("runs-16", None, True), ("idle", None, False)],
)
def test_auto_against_virsh(layout: str, limit: float | None, restored: bool) -> None:
    for factor in (0.99, 1.01):
        saves = [took(AUTO, factor * (limit or 1)), took(VIRSH, 1)]
        assert verdicts(cell(*saves, layout=layout)) == ({"virsh": factor < 1} if limit else {})
        restores = [took(way, each, action="restore") for way, each in ((AUTO, 0.35), (VIRSH, 1))]
        restores[0] = took(AUTO, factor * 0.35, action="restore")
        found = cell(*restores, layout=layout)
        assert verdicts(found) == ({"virsh": factor < 1} if restored else {})
        assert verdicts(replace(found, in_memory=True)) == {}


def test_the_dense_guest_against_bare_script_and_disk() -> None:
    found = cell(took(BARE, 1.0), took(matrix_ways.DISK, 0.9), took(AUTO, 1.04), layout="dense")
    alone = verdicts(replace(found, alone=True))
    assert alone == {"bare script": True, matrix_ways.DISK.name: False}
    assert verdicts(found) == {}


def test_a_way_that_fails_is_a_miss_and_has_no_further_turn() -> None:
    turns: list[str] = []

    class Failing(matrix_ways.Subject):
        def __post_init__(self) -> None: ...

        def saved(self, way: Way) -> Run:
            turns.append(way.name)
            if way == SLOW:
                raise RuntimeError("exit code 1: no")
            self.allocated[way] = 1
            return Run(1.0, 0, PHASES)

    found = cell()
    subject = Failing(None, None)  # type: ignore[arg-type]
    matrix_cells._measure(found, subject, "save", [FAST, SLOW, AUTO], 2)
    assert turns == [FAST.name, SLOW.name, "auto", "auto", FAST.name]
    assert [each.way for each in found.measured] == [FAST, AUTO]
    assert found.failed == [f"save, {SLOW.name}: exit code 1: no"]
    done = matrix.Matrix(["runs-1"], ["ext4"], False, 16 * MIB, 0, 2, [found], complete=True)
    assert not done.met
    good = replace(done, cells=[cell(took(AUTO, 1))])
    assert good.met and not replace(good, complete=False).met


def test_phases_are_those_of_the_middle_run() -> None:
    runs = [Run(each, 0, json.dumps({"phases_s": {"write": each / 2}})) for each in (9.0, 1.0, 2.0)]
    found = Measured("save", AUTO, Series(runs), 0)
    assert found.phases == {"write": 1.0, "python": 1.0}
    assert replace(found, way=BARE).phases == {}


def test_picture_reads_on_light_and_dark_ground() -> None:
    seconds = (1, 1.2, 2, 4, 8, 20)
    ways = [Way(f"<{number}> & more", "fixed") for number in range(len(seconds))]
    drawn = picture.drawn([cell(*map(took, ways, seconds))])
    root = ElementTree.fromstring(drawn)
    squares = list(root.iter(f"{SVG}g"))
    assert ["".join(each.itertext())[-2:] for each in squares] == [
        "00",
        "20",
        "00",
        "00",
        "00",
        "20",
    ]
    fills = [colour(each, f"{SVG}rect") for each in squares]
    assert len(set(fills)) == len(fills)
    for each in squares:
        assert contrast(colour(each, f"{SVG}rect"), colour(each, f"{SVG}text")) >= 4.5
    light, dark = re.findall(r"\.label \{ fill: (#\w+); \}", drawn)
    assert contrast(light, "#ffffff") >= 7 and contrast(dark, "#0d1117") >= 7


def colour(element: ElementTree.Element, tag: str) -> str:
    """Return the fill of the element's child."""
    found = element.find(tag)
    assert found is not None
    return found.attrib["fill"]


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours (WCAG 2.1, 1.4.3): 4.5 is enough for text."""
    first, second = sorted((luminance(one), luminance(other)))
    return (second + 0.05) / (first + 0.05)


def luminance(text: str) -> float:
    """Return the relative luminance of ``#rrggbb`` (WCAG 2.1)."""
    parts = (int(text[at : at + 2], 16) / 255 for at in (1, 3, 5))
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
