"""Run ``mapsave`` under ``killer.py``, and look at what a site has left on its disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.kit import cli, processes

_CHECKOUT = Path(__file__).parents[2]


def run(
    site: cli.Site, where: str, step: str, signals: str, *arguments: str | os.PathLike[str]
) -> cli.Result:
    """Run ``mapsave`` until ``signals`` hit it (or QEMU) ``where`` (before, after) at ``step``.

    Fails on a traceback, and where it does not end within a minute.
    """
    words = tuple(os.fspath(each) for each in ("--config", site.config, *arguments))
    with processes.running(
        [sys.executable, "-m", "tests.faults.killer", where, step, signals, *words],
        env={"PYTHONPATH": str(_CHECKOUT), "HOME": str(site.directory / "home")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        stdout, stderr = process.communicate(timeout=60)
    assert "Traceback (most recent call last)" not in stderr, stderr
    return cli.Result(words, process.returncode, stdout, stderr)


def journals(site: cli.Site) -> list[Path]:
    """Return the journals that the state directory holds."""
    return sorted((site.state / "journal").glob("*"))


def partials(site: cli.Site) -> list[Path]:
    """Return the partial images in the image directory."""
    return sorted(site.images.glob("*.partial"))


def contents(site: cli.Site) -> dict[str, tuple[int, int]]:
    """Return size and time of change of every file of the site but the locks."""
    found = {}
    for path in sorted(site.directory.rglob("*")):
        if path.is_file() and path.parent.name != "locks":
            stats = path.stat()
            found[str(path)] = (stats.st_size, stats.st_mtime_ns)
    return found
