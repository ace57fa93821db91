"""The benchmark measures what it says: the peer really saves and restores, and a miss is told."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import bare, cases, measure
from tests.kit import patterns, qemu, ram, tree, wait


def test_the_peer_saves_and_restores_all_of_ram(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with qemu.running(ram=patterns.dense) as source:
        before = source.snapshot_ram(tmp_path / "before")
        bare.save(str(source.qmp), str(image), 2)
        assert source.wait() == 0
    with qemu.running(incoming=True) as destination:
        monitor = bare.Monitor(str(destination.qmp))
        bare.load(monitor, str(image), 2)
        monitor.close()
        ram.assert_same(before, destination.snapshot_ram(tmp_path / "after"))
        assert destination.control.execute("query-fdsets") == []


def test_the_peer_fails_loudly(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(2 << 20))
    with qemu.running(incoming=True) as destination:
        monitor = bare.Monitor(str(destination.qmp))
        with pytest.raises(RuntimeError, match="failed"):
            bare.load(monitor, str(image), 2)
        monitor.close()


def test_peak_and_time_of_a_process_are_its_own() -> None:
    hungry = "import time; held = b'x' * 200_000_000; time.sleep(0.2)"
    held_here = b"x" * 300_000_000
    run = measure.run([sys.executable, "-c", hungry], tree.ROOT)
    assert 200_000_000 < run.peak < 260_000_000 < len(held_here)
    assert 0.2 <= run.seconds < wait.LONG


def test_failure_of_what_is_measured_is_told() -> None:
    with pytest.raises(RuntimeError, match="exit code 3: no"):
        measure.run([sys.executable, "-c", "print('no'); raise SystemExit(3)"], tree.ROOT)


def test_alternating_lets_each_go_first_in_turn() -> None:
    order: list[str] = []

    def noted(name: str) -> measure.Run:
        order.append(name)
        return measure.Run(float(len(order)), 0, "")

    ours, theirs = measure.alternating(2, lambda: noted("ours"), lambda: noted("peer"))
    assert order == ["ours", "peer", "peer", "ours"]
    assert (ours.seconds, theirs.seconds) == (2.5, 2.5)


def test_table_is_printed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--rounds", "1", "help"],
        cwd=tree.ROOT,
        capture_output=True,
        text=True,
        timeout=wait.LONG,
    )
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("| mapsave --help")]
    assert done.returncode == (0 if row.rstrip(" |").endswith("yes") else 1), done.stderr


def test_every_benchmark_is_documented() -> None:
    documentation = (tree.ROOT / "docs/benchmarks.md").read_text()
    assert [
        name for name in [*cases.CASES, *cases.NAMED] if f"| `{name}` |" not in documentation
    ] == []
