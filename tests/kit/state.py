"""What a save or restore must leave in QEMU as it was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.kit import ram


@dataclass(frozen=True)
class State:
    """Migration capabilities and parameters, fdsets, and the run state."""

    capabilities: dict[str, bool]
    parameters: dict[str, Any]
    fdsets: list[dict[str, Any]]
    run_state: str


def of(monitor: ram.Monitor) -> State:
    """Return the state of the QEMU behind ``monitor``."""
    capabilities = monitor.execute("query-migrate-capabilities")
    return State(
        {entry["capability"]: entry["state"] for entry in capabilities},
        monitor.execute("query-migrate-parameters"),
        monitor.execute("query-fdsets"),
        monitor.execute("query-status")["status"],
    )


def assert_left_as_found(before: State, after: State, *, run_state: str | None = None) -> None:
    """Fail unless QEMU is as it was; ``run_state`` if another one is meant to be left behind."""
    assert after.capabilities == before.capabilities, "capabilities were not put back"
    assert after.parameters == before.parameters, "parameters were not put back"
    assert after.fdsets == before.fdsets, "fdsets were left behind or taken away"
    assert after.run_state == (run_state or before.run_state)
