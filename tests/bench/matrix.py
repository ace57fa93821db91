"""``python -m tests.bench matrix``: every way to save, by memory layout and file system.

The file systems are made for it, on loop devices that are as fast as the disk below, or in memory,
and are gone at the end, however it ends. It needs root.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from mapsave import units

from tests.bench import (
    cases,
    guests,
    matrix_cells,
    matrix_layouts,
    matrix_targets,
    matrix_ways,
    picture,
    table,
)
from tests.bench.matrix_cells import Cell
from tests.bench.matrix_layouts import MIB, Content
from tests.bench.matrix_targets import Judged
from tests.bench.matrix_ways import Place, Way
from tests.kit import libvirtd, linux_guest, need, processes, storage

Filesystem = storage.Kind | Literal["tmpfs"]
FILESYSTEMS: tuple[Filesystem, ...] = (*get_args(storage.Kind), "tmpfs")
_FEW_FILESYSTEMS = ("ext4", "xfs")
_HEAD = ("layout", "file system", "what", "time", "x best", "on disk")
_WIDTHS = (12, 11, 38, 9, 6, 9)
# mapsave probes a directory only where so much is free; and what a file system takes for itself.
_ROOM = 1536 * MIB
_QUEUE = matrix_ways.CHANNELS * (512 << 10)  # bytes, of which dd writes whole ones


@dataclass
class Matrix:
    """What is measured, what came out, and what had to be left out."""

    layouts: Sequence[str]
    filesystems: Sequence[Filesystem]
    full: bool
    size: int
    dense: int
    rounds: int
    cells: list[Cell] = field(default_factory=list)
    judged: list[Judged] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    complete: bool = False

    @property
    def met(self) -> bool:
        """Whether something was measured to the end, nothing failed, and every target is met."""
        failed = [each for cell in self.cells for each in cell.failed]
        measured = self.complete and bool(self.cells) and not failed
        return measured and all(each.row.met for each in self.judged)

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON: sizes in bytes, times in seconds."""
        return {
            "machine": table.machine(),
            "rounds": self.rounds,
            "size_bytes": self.size,
            "left_out": self.left_out,
            "complete": self.complete,
            "cells": [cell.as_dict() for cell in self.cells],
            "targets": [vars(each.row) for each in self.judged],
            "met": self.met,
        }

    def leave_out(self, what: str, reason: str) -> None:
        """Note and say that something is not measured."""
        self.left_out.append(f"{what}: {reason}")
        print(f"left out: {self.left_out[-1]}", flush=True)

    def take(self, cell: Cell) -> None:
        """Take a cell, print its lines, and judge it."""
        self.cells.append(cell)
        for row in cell.rows():
            print(table.line(row, _WIDTHS))
        for failure in cell.failed:
            print(f"FAILED: {cell.layout.name}, {cell.filesystem}: {failure}")
        self.judged += matrix_targets.judged(cell)
        sys.stdout.flush()


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench matrix", description=__doc__)
    parser.add_argument("--full", action="store_true", help="all layouts, file systems and ways")
    parser.add_argument("--layouts", nargs="+", choices=matrix_layouts.ALL, metavar="LAYOUT")
    parser.add_argument("--filesystems", nargs="+", choices=FILESYSTEMS, metavar="KIND")
    parser.add_argument("--size", type=_size, default="256M", help="RAM of a guest")
    parser.add_argument(
        "--dense",
        type=_size,
        default="4G",
        help="RAM of the dense guest that is compared with bare script and disk; 0: none",
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="on which disk")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw a picture there")
    given = parser.parse_args(argv)
    reason = need.root() if shutil.which(guests.QEMU) else f"there is no {guests.QEMU}"
    if reason:
        parser.error(f"the matrix cannot be measured here: {reason}")
    if given.rounds < 1:
        parser.error(f"--rounds {given.rounds}: at least one is needed")
    for path in (given.json, given.svg):
        if path and not path.absolute().parent.is_dir():
            parser.error(f"{path}: there is no directory {path.absolute().parent}")
    given.layouts = given.layouts or [
        *(matrix_layouts.ALL if given.full else matrix_layouts.DEFAULT)
    ]
    given.filesystems = given.filesystems or [*(FILESYSTEMS if given.full else _FEW_FILESYSTEMS)]
    # The contents, and a file system; affordable() sees to the dense guest.
    needed = (len(given.layouts) + 3) * given.size + _ROOM
    if shutil.disk_usage(given.directory).free < needed:
        parser.error(f"{given.directory} has not the {needed // MIB} MiB free that are needed")
    return given


def _size(text: str) -> int:
    size = units.parse_size(text)
    if size and (size < 16 * MIB or size % _QUEUE):
        raise argparse.ArgumentTypeError(f"{text} is not 16M or more, and a multiple of 4M")
    return size


def main(argv: Sequence[str]) -> int:
    """Measure, print the table as it grows, write what is wanted; 1 if a target is missed."""
    given = parsed(argv)
    found = Matrix(
        layouts=given.layouts,
        filesystems=given.filesystems,
        full=given.full,
        size=given.size,
        dense=given.dense,
        rounds=given.rounds,
    )
    with ExitStack() as stack:
        stack.enter_context(_signals_unwind())
        # What was measured until then is not lost where something ends it.
        stack.callback(_write, found, given.json, given.svg)
        scratch = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix="mapsave-bench-", dir=given.directory)
            )
        )
        short = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mapsave-")))
        print(table.machine())
        print(f"{found.rounds} rounds, guests of {found.size // MIB} MiB, in {given.directory}")
        _measure(found, scratch, short)
        found.complete = True
    _print_targets(found)
    print("\n" + table.machine())
    return int(not found.met)


def _write(found: Matrix, figures: Path | None, drawing: Path | None) -> None:
    if figures:
        figures.write_text(json.dumps(found.as_dict(), indent=1) + "\n")
    if drawing:
        drawing.write_text(picture.drawn(found.cells))


def _measure(found: Matrix, scratch: Path, short: Path) -> None:
    """Measure file system by file system, of which each is gone before the next."""
    if reason := libvirtd.unavailable():
        found.leave_out("virsh, and the targets against it", reason)
    wanted = found.dense
    if wanted:
        found.dense = guests.affordable(scratch, wanted)
        if found.dense < wanted:
            found.leave_out("memory or disk is short", f"dense guest of {found.dense // MIB} MiB")
        if matrix_ways.DISK.name != "fio":
            found.leave_out("fio", "not installed; the dense save is compared with dd")
    contents = []
    for name in found.layouts:
        layout = matrix_layouts.ALL[name]
        if reason := matrix_layouts.unavailable(layout):
            found.leave_out(layout.name, reason)
            continue
        contents.append(matrix_layouts.made(layout, found.size, scratch))
    print("", table.head(_HEAD, _WIDTHS), sep="\n", flush=True)
    for filesystem in found.filesystems:
        if filesystem != "tmpfs" and (reason := storage.unavailable(filesystem)):
            found.leave_out(filesystem, reason)
            continue
        with _place(filesystem, found, scratch, short) as place:
            _measure_on(found, place, contents, scratch)


def _measure_on(found: Matrix, place: Place, contents: Sequence[Content], scratch: Path) -> None:
    if not place.direct_io:
        found.leave_out(f"direct ways and peers on {place.filesystem}", "it takes no direct I/O")
    choose: Callable[..., list[Way]] = matrix_ways.every if found.full else matrix_ways.few
    ways = choose(direct_io=place.direct_io)
    for content in contents:
        found.take(matrix_cells.measured(place, content, ways, found.rounds))
    if found.dense and not place.in_memory:
        content = matrix_layouts.dense(found.dense, scratch)
        try:
            found.take(matrix_cells.alone(place, content, found.rounds))
        finally:
            if content.source is not None:
                content.source.unlink()


@contextmanager
def _place(filesystem: Filesystem, found: Matrix, scratch: Path, short: Path) -> Iterator[Place]:
    """Make a file system and what saves to it; all is gone at the end."""
    # Of three images two are kept to be restored, and each may be as large as the RAM.
    largest = max(found.size, linux_guest.MEMORY_BYTES if "linux" in found.layouts else 0)
    with ExitStack() as stack:
        if filesystem == "tmpfs":
            mounted = stack.enter_context(storage.tmpfs(3 * largest + _ROOM, scratch))
        else:
            size = max(3 * largest, 2 * found.dense) + _ROOM
            mounted = stack.enter_context(
                storage.loop_filesystem(filesystem, size, scratch, like_disk=True)
            )
        directory = mounted / "images"
        directory.mkdir(mode=0o700)
        stack.enter_context(_ended(scratch, short))
        daemon = None
        if libvirtd.unavailable() is None:
            daemon = stack.enter_context(libvirtd.running())
        site = guests.Site(scratch, short / "qmp")
        place = Place(
            filesystem,
            directory,
            site,
            daemon,
            in_memory=filesystem == "tmpfs",
            direct_io=storage.takes_direct_io(directory),
        )
        site.configure(guests.command(site, found.size))
        cases.run_mapsave(site.config, "probe", str(directory))
        yield place


@contextmanager
def _ended(*directories: Path) -> Iterator[None]:
    """End what still runs at the end and has one of our directories in its command line.

    Only what is interrupted leaves such processes.
    """
    try:
        yield
    finally:
        while left := [*naming(directories)]:
            for pid in left:
                processes.end(pid)


def naming(directories: Sequence[Path]) -> Iterator[int]:
    """Yield the other processes that name one of these directories in their command line."""
    for entry in Path("/proc").iterdir():
        # Gone in the meantime.
        with suppress(OSError):
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                command = (entry / "cmdline").read_text(errors="replace")
                if any(each.name in command for each in directories):
                    yield int(entry.name)


@contextmanager
def _signals_unwind() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind what has been set up, as Ctrl-C does; once."""
    numbers = (signal.SIGTERM, signal.SIGHUP)

    def unwind(number: int, _: object) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, unwind) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_targets(found: Matrix) -> None:
    print("", table.head(), sep="\n")
    for each in found.judged:
        print(table.line(each.row.cells()))
    missed = [
        f"{each.what}; seconds by phase: {each.why()}" for each in found.judged if not each.row.met
    ]
    for line in dict.fromkeys(missed):
        print(f"missed by {line}")
