"""Run ``mapsave`` under ``killer.py``, and look at what a site has left on its disk."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mapsave.monitor import kept_open
from mapsave.operations import journal_file

from tests.kit import cli, wait
from tests.kit.outcomes import LOADED, RESTORED, UNDONE

# A save is killed at these before QEMU has written its stream whole, so the guest is resumed.
NOT_YET = (
    ("after", "begin"),
    ("before", "label"),
    ("after", "label"),
    ("before", "pause"),
    ("after", "hand-over"),
    ("after", "pause"),
    ("before", "migrate"),
    ("after", "migrate"),
)
# At these it has, so the save is finished.
WHOLE = (
    ("before", "complete"),
    ("after", "complete"),
    ("before", "commit"),
    ("after", "commit"),
    ("before", "committed"),
    ("after", "committed"),
    ("after", "end"),
)
THEN = ("quit", "resume", "leave")
# And a restore at these, with what becomes of it.
RESTORE = (
    ("before", "launch", UNDONE),
    ("after", "launch", UNDONE),
    ("before", "load", UNDONE),
    ("after", "load", UNDONE),
    ("before", "mark", LOADED),
    ("after", "mark", LOADED),
    ("before", "run", LOADED),
    ("after", "run", RESTORED),
    ("after", "end", RESTORED),
)


def run(
    site: cli.Site, where: str, step: str, signals: str, *arguments: str | os.PathLike[str]
) -> cli.Result:
    """Run ``mapsave`` until ``signals`` hit it (or QEMU) ``where`` (before, after) at ``step``.

    Fails on a traceback, and where it does not end within a minute.
    """
    return site.run(*arguments, command=killer(where, step, signals))


def killer(where: str, step: str, signals: str = "KILL") -> list[str]:
    """Return what runs ``mapsave`` under ``killer.py``."""
    return [sys.executable, "-m", "tests.faults.killer", where, step, signals]


@contextmanager
def stopped(
    site: cli.Site,
    step: str,
    *arguments: str | os.PathLike[str],
    env: Mapping[str, str] | None = None,
    answer: float | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """Run ``mapsave`` up to right after ``step``, where it stands still; then let it end.

    ``answer``: seconds that storage gets from then on.
    """
    command = killer("after", step, "STOP" if answer is None else f"STOP={answer}")
    with site.start(*arguments, env=env, command=command) as process:
        wait.until(lambda: stands_still(process), what=f"mapsave to stop at {step}")
        yield process
        process.send_signal(signal.SIGCONT)
        process.wait(wait.LONG)


def stands_still(process: subprocess.Popen[str]) -> bool:
    """Return whether ``mapsave`` was stopped by a signal; fail if it has ended."""
    assert process.poll() is None, process.communicate()
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def killed(site: cli.Site, where: str, step: str, *arguments: str) -> None:
    """Kill ``mapsave`` there; it leaves its journal."""
    result = run(site, where, step, "KILL", *arguments)
    assert result.returncode == -signal.SIGKILL, result
    assert len(journals(site)) == 1


def recovered(site: cli.Site, *outcomes: str) -> None:
    """Recover what is left: these are the ``outcomes``, and nothing remains."""
    done = site.run("recover", "--json", check=0).json()
    assert [line["outcome"] for line in done["operations"]] == list(outcomes), done
    assert (journals(site), partials(site), done["swept"]) == ([], [], [])


def states(site: cli.Site) -> dict[str, str]:
    """Return the state of each image as ``mapsave list`` has it, by its name."""
    images = site.run("list", "--json", check=0).json()["images"]
    return {each["name"]: each["state"] for each in images}


def cut_off(process: subprocess.Popen[str], monitor: Path) -> None:
    """Shut the connection to the guest's monitor down from outside; QEMU knows nothing of it."""
    handle = os.pidfd_open(process.pid)
    try:
        for entry in Path(f"/proc/{process.pid}/fd").iterdir():
            if not os.readlink(entry).startswith("socket:"):
                continue
            with socket.socket(fileno=kept_open.duplicate(handle, int(entry.name))) as sock:
                if sock.getpeername() == str(monitor):
                    sock.shutdown(socket.SHUT_RDWR)
                    return
    finally:
        os.close(handle)
    raise AssertionError("mapsave is not connected to the guest")


def journals(site: cli.Site) -> list[Path]:
    """Return the journals that the state directory holds."""
    return sorted((site.state / "journal").glob("*"))


def partials(site: cli.Site) -> list[Path]:
    return sorted(site.images.glob("*.partial"))


@contextmanager
def immutable(path: Path) -> Iterator[None]:
    """Let not even root write or rename ``path``, or what is in it (chattr(1))."""
    subprocess.run(["chattr", "+i", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", path], check=True)


def rewrite(journal: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Write the lines of a journal again, each as ``change`` makes it, with its checksum."""
    lines = []
    for text in journal.read_text().splitlines():
        record = json.loads(text)
        step, steps = record.pop("step"), tuple(record.pop("steps"))
        facts = {key: record[key] for key in record if key not in ("time", "sum")}
        lines.append(journal_file.line(step, change(facts), steps))
    journal.write_bytes(b"".join(lines))


def cut(journal: Path, step: str) -> None:
    """Leave of a journal the lines up to ``step``, as if its manager had died there."""
    lines = journal.read_text().splitlines(keepends=True)
    steps = [json.loads(line)["step"] for line in lines]
    journal.write_text("".join(lines[: steps.index(step) + 1]))


def contents(site: cli.Site) -> dict[str, tuple[int, int]]:
    """Return size and time of change of every file of the site.

    Not those of locks, and of what is known of QEMUs whatever becomes of a save.
    """
    found = {}
    for path in sorted(site.directory.rglob("*")):
        if path.is_file() and path.parent.name not in ("locks", "machines", "processes"):
            stats = path.stat()
            found[str(path)] = (stats.st_size, stats.st_mtime_ns)
    return found
