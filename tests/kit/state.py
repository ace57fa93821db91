"""What a save or restore must leave in QEMU as it was."""

import time
from dataclasses import dataclass
from typing import Any

from tests.kit import ram

_CLOSING = 60.0  # seconds, on a busy host


@dataclass(frozen=True)
class State:
    """Migration capabilities and parameters, fdsets, and the run state."""

    capabilities: dict[str, bool]
    parameters: dict[str, Any]
    fdsets: list[dict[str, Any]]
    run_state: str


def of(monitor: ram.Monitor) -> State:
    """Return the state of the QEMU after ``monitor``."""
    capabilities = monitor.execute("query-migrate-capabilities")
    return State(
        {entry["capability"]: entry["state"] for entry in capabilities},
        monitor.execute("query-migrate-parameters"),
        _fdsets(monitor),
        monitor.execute("query-status")["status"],
    )


def _fdsets(monitor: ram.Monitor) -> list[dict[str, Any]]:
    """Return the fdsets. One without descriptors goes as soon as QEMU has closed its own copies."""
    until = time.monotonic() + _CLOSING
    while True:
        found: list[dict[str, Any]] = monitor.execute("query-fdsets")
        if all(each["fds"] for each in found) or time.monotonic() > until:
            return found
        time.sleep(0.01)


def assert_left_as_found(before: State, after: State, *, run_state: str | None = None) -> None:
    """Fail unless QEMU is as it was; ``run_state`` if another one is meant to be left behind."""
    assert after.capabilities == before.capabilities, "capabilities were not put back"
    assert after.parameters == before.parameters, "parameters were not put back"
    assert after.fdsets == before.fdsets, "fdsets were left behind or taken away"
    assert after.run_state == (run_state or before.run_state)
