"""How far an operation is, on standard error: for people at any width, and for scripts."""

import io
import json
import re
import sys

import pytest
from mapsave.cli import output, progress_line, reporting
from mapsave.cli.options import Globals
from mapsave.cli.progress_line import Title
from mapsave.migration import progress
from mapsave.migration.progress import Progress

GIB = 1 << 30
HALF = Progress("write", done_bytes=GIB, total_bytes=2 * GIB, bytes_per_s=GIB)
# As long as these figures get.
LONG = Progress("1000 of 1000 guests", 512 * GIB, 1000 * GIB, 0.148 * GIB)


class Terminal(io.StringIO):
    """What stderr is where a person reads it, 80 columns wide."""

    def isatty(self) -> bool:
        return True


def terminal_of(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Return what standard error is from now on."""
    made = Terminal()
    monkeypatch.setattr(sys, "stderr", made)
    return made


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (79, "saving web01: write [#####     ] 1.0/2.0 GiB 50% 1 s left 1.0 GiB/s"),
        (59, "saving web01: write 1.0/2.0 GiB 50% 1 s left 1.0 GiB/s"),
        (39, "saving web01: 1.0/2.0 GiB 50% 1 s left"),
        (100, f"saving web01: write [{'#' * 15}{' ' * 15}] 1.0/2.0 GiB 50% 1 s left 1.0 GiB/s"),
    ],
)
def test_a_line_at_each_width(columns: int, line: str) -> None:
    assert progress_line.line(Title("saving", "web01"), HALF, columns) == line


@pytest.mark.parametrize("name", ["", "web01", "n" * 200, "\u5bb9" * 40, "e\u0301" * 60])
@pytest.mark.parametrize(
    "now", [HALF, LONG, Progress("write", 0, 5), Progress("write", 1, 1 << 50)]
)
def test_bytes_percent_and_time_left_are_always_seen(name: str, now: Progress) -> None:
    for columns in range(38, 200):
        line = progress_line.line(Title("restoring", name), now, columns)
        assert progress_line.width(line) <= columns
        assert re.search(r"[\d.]+/[\d.]+ \w+ \d+% .+ left", line), line


def test_the_name_is_shortened_first() -> None:
    title = Title("saving", "production-database")
    bar, short = f"write [{'#' * 15}{' ' * 15}]", "write [#####     ]"
    figures = "1.0/2.0 GiB 50% 1 s left"
    expected = {
        101: f"saving production-database: {bar} {figures} 1.0 GiB/s",
        91: f"saving producti…: {bar} {figures} 1.0 GiB/s",
        81: f"saving production-database: {short} {figures} 1.0 GiB/s",
        71: f"saving producti…: {short} {figures} 1.0 GiB/s",
        59: f"saving productio…: write {figures} 1.0 GiB/s",
        51: f"saving production-…: write {figures}",
        44: f"saving production…: {figures}",
        39: f"produc…: write {figures}",
        32: f"produ…: {figures}",
    }
    found = {each: progress_line.line(title, HALF, each) for each in expected}
    assert found == expected


def test_a_phase_without_figures_fits_too() -> None:
    title = Title("saving", "n" * 200)
    for columns in range(10, 200):
        line = progress_line.line(title, Progress("validate"), columns)
        assert progress_line.width(line) <= columns
        assert line.endswith("validate")


def test_progress_is_one_line_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    with reporting.reporting(Globals(), "saving", "web\x1b[2J") as report:
        report(Progress("prepare"))
        report(HALF)
        output.note("a warning")
        report(Progress(progress.RESUME))
        report(Progress(progress.RESUME))
    first, *shown = terminal.getvalue().split("\r\x1b[K")
    assert first == ""
    resuming = r"saving web\x1b[2J: resuming the guest …"
    assert shown[0].rstrip() == r"saving web\x1b[2J: prepare"
    assert shown[1].startswith(r"saving web\x1b[2J: write [")
    assert shown[2:] == [
        *("mapsave: a warning\n", f"mapsave: {resuming}\n", resuming, resuming, "")
    ]


@pytest.mark.parametrize(
    "given", [{"quiet": True}, {"debug": True}, {"quiet": True, "progress": "json"}]
)
def test_no_progress_where_it_is_not_wanted(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, bool | str]
) -> None:
    terminal = terminal_of(monkeypatch)
    with reporting.reporting(Globals(**given), "saving", "web") as report:  # type: ignore[arg-type]
        report(HALF)
    assert terminal.getvalue() == ""


def test_progress_as_json_is_the_object_of_the_api(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    with reporting.reporting(Globals(progress="json"), "saving", "web") as report:
        report(Progress("prepare"))
        report(HALF)
    first, second = map(json.loads, terminal.getvalue().splitlines())
    assert (first["phase"], first["eta_s"]) == ("prepare", None)
    assert second == {
        "phase": "write",
        "done_bytes": GIB,
        "total_bytes": 2 * GIB,
        "bytes_per_s": GIB,
        "eta_s": 1.0,
    }


def test_without_a_terminal_there_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 1000.0
    monkeypatch.setattr(reporting.time, "monotonic", lambda: now)
    with reporting.reporting(Globals(), "saving", "web") as report:
        for _ in range(100):
            report(HALF)
            now += 0.25
        report(Progress(progress.RESUME))
    line = "mapsave: saving web: write 1.0/2.0 GiB 50% 1 s left 1.0 GiB/s"
    resuming = "mapsave: saving web: resuming the guest …"
    assert capsys.readouterr().err.splitlines() == [line, line, resuming]


def test_several_operations_together() -> None:
    seen: list[Progress] = []
    together = progress.Together(4, seen.append)
    one, other = together.part("one"), together.part("other")
    one(Progress("prepare"))
    assert (seen[-1].phase, seen[-1].total_bytes) == ("0 of 4 guests", 0)
    one(Progress("write", 50, 100, 10.0))
    assert (seen[-1].done_bytes, seen[-1].total_bytes) == (50, 400)
    other(Progress("write", 0, 300))
    assert (seen[-1].done_bytes, seen[-1].total_bytes) == (50, 800)
    together.end("one")
    together.end("third")  # which failed before its size was known
    assert (seen[-1].phase, seen[-1].done_bytes, seen[-1].total_bytes) == (
        "2 of 4 guests",
        100,
        600,
    )
    other(Progress(progress.RESUME))
    assert seen[-1] == Progress(progress.RESUME)
