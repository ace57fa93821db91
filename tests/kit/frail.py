"""QEMU 10.0 dies by SIGSEGV now and then where a save is cancelled, or where one channel fails.

It is a race in QEMU (docs/hazards.md), one time in a thousand and rarer than one in a hundred, and
nothing outside of QEMU rules it out. A test whose writes fail takes one channel, so that no other
is at work. A test that cancels a save is marked ``cancels``: it is done once more if a QEMU of it
died by SIGSEGV, and only then. The summary of the run says so.
"""

import functools
import os
import signal
import tempfile
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol

MARKERS = {"cancels": "cancels a save: done once more if QEMU died by SIGSEGV of it"}
_SAID = "done once more: QEMU died by SIGSEGV"


def note(status: int) -> None:
    """Note how a QEMU has ended: its exit status as ``Popen.returncode`` has it."""
    if status == -signal.SIGSEGV:
        with log().open("a") as file:
            file.write("SIGSEGV\n")


@functools.cache
def log() -> Path:
    """Return the file that has a line for each QEMU that died by SIGSEGV.

    Others than us write it too: who reaps the QEMUs of libvirt.
    """
    return Path(_directory().name) / "deaths"


@functools.cache
def _directory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="mapsave-deaths-", ignore_cleanup_errors=True)


def deaths() -> int:
    """Return how many QEMUs have died by SIGSEGV so far."""
    return os.stat(log()).st_size if log().exists() else 0


def run(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """Run a test, once more if it is marked and has failed with such a death; report the last run.

    Returns whether the test was run: one that is not marked is left to pytest
    (``pytest_runtest_protocol``).
    """
    if item.get_closest_marker("cancels") is None:
        return False
    before = deaths()
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, log=False, nextitem=nextitem)
    if deaths() > before and any(report.failed for report in reports):
        item.user_properties.append((_SAID, ""))
        item._initrequest()  # type: ignore[attr-defined]  # fixtures of its own, made anew
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def said(report: pytest.TestReport) -> str | None:
    """Return what the summary says of a test that was done once more."""
    if report.when == "call" and any(name == _SAID for name, _ in report.user_properties):
        return f"{report.nodeid}: {_SAID}"
    return None
