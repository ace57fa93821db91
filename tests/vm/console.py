"""A plugin for pytest: one line of JSON on the serial console for each case that ended.

``$VM_MODE`` says in which mode of ``machine.MODES`` that is.
"""

import json
import os

import pytest

_WORDS = 12_000  # characters of what a failed case has to say; the console is slow


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Print the result: of the call, or of whatever else failed."""
    if report.when == "call" or report.failed:
        name = report.nodeid.rpartition("::")[2]
        words = report.longreprtext[-_WORDS:] if report.failed else ""
        result: dict[str, str | float] = {"case": name, "outcome": report.outcome, "words": words}
        result["mode"] = os.environ["VM_MODE"]
        result["seconds"] = round(report.duration, 1)
        print("\nVMRESULT " + json.dumps(result), flush=True)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Print why the cases cannot be imported."""
    if report.failed:
        print(report.longreprtext, flush=True)


def pytest_internalerror(excrepr: object) -> None:
    """Print what went wrong in pytest itself."""
    print(excrepr, flush=True)
