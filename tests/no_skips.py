"""A plugin for pytest (``-p tests.no_skips``): tests that were left out are not passed over.

``MAPSAVE_SKIPPED`` names a file that gets one line for each test left out. With
``MAPSAVE_NO_SKIPS=1`` a run that left out any test fails.
"""

import os

import pytest

_left_out: list[str] = []


def _note(report: pytest.TestReport | pytest.CollectReport) -> None:
    # An expected failure is reported as skipped too, but it did run.
    if report.skipped and not hasattr(report, "wasxfail"):
        # For a skip pytest's longrepr is the file, the line and the reason.
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        _left_out.append(f"{report.nodeid}: {reason.removeprefix('Skipped: ')}")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _note(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Note a file that was skipped as a whole."""
    _note(report)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write down what was left out, and fail the run if nothing may be."""
    if hasattr(session.config, "workerinput"):
        return  # a worker of pytest-xdist: what it leaves out is reported to the main process
    log = os.environ.get("MAPSAVE_SKIPPED")
    if log and _left_out:
        with open(log, "a", encoding="utf-8") as file:
            file.writelines(" ".join(line.split()) + "\n" for line in _left_out)
    if _left_out and os.environ.get("MAPSAVE_NO_SKIPS") == "1" and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say why a run that has no failure fails."""
    if _left_out and os.environ.get("MAPSAVE_NO_SKIPS") == "1":
        terminalreporter.write_line(f"{len(_left_out)} left out, but nothing may be", red=True)
