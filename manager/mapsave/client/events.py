"""What happens in the service: server-sent events, made of the lines of an answer that goes on."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Literal

from mapsave import errors
from mapsave.client import exchange
from mapsave.client.address import Address
from mapsave.client.exchange import Answer, Ask
from mapsave.history.states import ENDED

if TYPE_CHECKING:
    from mapsave.client import responses


@dataclasses.dataclass(frozen=True)
class Event:
    """One event. ``idle`` comes every few seconds without one, and has no data."""

    kind: Literal["operation", "progress", "service", "idle"] | str
    data: Answer

    def operation(self) -> responses.Operation:
        """Return the operation that has changed, of an event of that kind."""
        from mapsave import typed
        from mapsave.client import responses

        return typed.convert(self.data, responses.Operation)


class Reader:
    """Makes events of lines; ``operation`` is the one whose events were asked for, if it is one."""

    def __init__(self, operation: str | None) -> None:
        self._operation = operation
        self._kind = ""
        self.has_ended = False  # the operation: no more events come

    def event(self, line: bytes) -> Event | None:
        """Return the event that ends with this line; None within one."""
        name, _, value = line.decode().rstrip("\r\n").partition(": ")
        if name == "event":
            self._kind = value
        elif name == "data":
            found = json.loads(value)
            is_operation = self._operation is not None and self._kind == "operation"
            self.has_ended = is_operation and found["state"] in ENDED
            return Event(self._kind, found)
        elif not name:
            return Event("idle", {})
        return None


def ask(operation: str | None) -> Ask:
    """Return the request for all events, or those of one operation."""
    return exchange.get("/v1/events", operation=operation)


def no_more(address: Address) -> errors.ServiceUnreachable:
    """Return the error for a service that has ended its events."""
    return errors.ServiceUnreachable(
        f"the service at {str(address)!r} sends no more events",
        hint="it is stopping, or they were not read fast enough",
    )
