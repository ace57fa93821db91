"""The service of the host, as the agent uses it: as an operator, whichever user runs the agent."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from mapsave import errors
from mapsave.client import calls, exchange
from mapsave.client.address import Address
from mapsave.client.asynchronous import AsyncClient
from mapsave.client.exchange import Answer
from mapsave.fleet.notes import Note
from mapsave.history.states import ENDED
from mapsave.strict_json import Facts

WAIT = 10.0  # seconds that the service may wait with its answer for the end of an operation
_STEPS = 200  # that are passed on
# What passes although the request was one to begin something: the service is not there, is about to
# stop, or has too much to do.
_PASSING = (errors.ServiceUnreachable, errors.ServiceStopping, errors.ServiceBusy)


class ServiceAway(Exception):
    """The host's service does not answer now."""


@dataclasses.dataclass(frozen=True)
class Inventory:
    """What is on the host: facts of its guests and images, by their names."""

    guests: dict[str, Facts]
    images: dict[str, Facts]


class LocalService:
    """The service at ``address``. Its methods raise ServiceAway while it does not answer."""

    def __init__(self, address: Address) -> None:
        # An operator's requests name what the host's configuration has, whatever a task says.
        self._client = AsyncClient(address, role="operator")

    async def find(self, operation: str) -> Answer | None:
        """Return an operation; None where the service knows none of that id."""
        with _passing(), contextlib.suppress(errors.UnknownOperation):
            return await self._client.get(exchange.operation(operation))
        return None

    async def later(self, operation: str) -> Answer | None:
        """Do the same, once the operation has ended, or a few seconds have passed."""
        with _passing(), contextlib.suppress(errors.UnknownOperation):
            return await self._client.get(exchange.operation(operation), wait=WAIT, until="end")
        return None

    async def begin(self, operation: str, body: Facts) -> Answer:
        """Begin an operation under that id, or return the one that was begun under it.

        Raises what the service refuses it with.
        """
        headers = {"Mapsave-Operation": operation}
        try:
            return await self._client.post("/v1/operations", body, headers)
        except _PASSING as error:
            raise ServiceAway(error.message) from None

    async def cancel(self, operation: str) -> None:
        """Have an operation cancelled; one that has ended, or commits, is left alone."""
        with _passing(), contextlib.suppress(errors.NotCancellable, errors.UnknownOperation):
            await self._client.post(f"{exchange.operation(operation)}/cancel")

    async def marker(self) -> str:
        """Return the id of the operation that was begun last; "" where there was none."""
        with _passing():
            found = (await self._client.get("/v1/operations", limit=1))["operations"]
        return str(found[0]["id"]) if found else ""

    async def is_whole_since(self, note: Note) -> bool:
        """Return whether the service's history is whole since a note was made.

        Where nothing had been begun by then, a history that was renamed is one of its problems.
        """
        if note.marker is None:
            return False
        if note.marker:
            return await self.find(note.marker) is not None
        with _passing():
            return not (await self._client.get("/v1/health"))["problems"]

    async def steps(self, operation: str) -> list[Facts]:
        """Return the steps of an operation, without what they have noted."""
        with _passing(), contextlib.suppress(errors.UnknownOperation):
            found = await self._client.get(f"{exchange.operation(operation)}/steps")
            return [
                {"time": each["time"], "step": each["step"]} for each in found["steps"][:_STEPS]
            ]
        return []

    async def health(self) -> Facts:
        """Return how the service is, and its version."""
        with _passing():
            found = await self._client.get("/v1/health")
        return {key: found[key] for key in ("status", "version", "problems", "operations")}

    async def inventory(self) -> Inventory:
        """Return the guests, which are asked how they are, and all images."""
        with _passing():
            guests = (await self._client.get("/v1/guests", look=True))["guests"]
            images = (await self._client.call(calls.all_images()))["images"]
        return Inventory(
            {each["name"]: _guest(each) for each in guests if each["kind"] != "image"},
            {each["name"]: _image(each) for each in images},
        )


@contextlib.contextmanager
def _passing() -> Iterator[None]:
    """Raise ServiceAway for what keeps the service from an answer: that may pass."""
    try:
        yield
    except errors.MapsaveError as error:
        raise ServiceAway(error.message) from None


def has_ended(found: Mapping[str, Any]) -> bool:
    """Return whether an operation, as the service answers, has ended."""
    return found["state"] in ENDED


def _guest(line: Mapping[str, Any]) -> Facts:
    """Return what is reported to the fleet of a guest: nothing by which it could be reached."""
    facts = {key: line[key] for key in ("kind", "policy", "priority", "launch", "state")}
    error, image = line["error"], line["last_image"]
    return {
        **facts,
        "error": None if error is None else error["message"],
        "last_image": None if image is None else image["name"],
    }


_OF_IMAGE = (
    *("guest", "state", "pinned", "note", "format", "saved"),
    *("file_bytes", "allocated_bytes"),
)


def _image(line: Mapping[str, Any]) -> Facts:
    """Return what is reported to the fleet of an image."""
    error = line["error"]
    return {
        **{key: line[key] for key in _OF_IMAGE},
        "in_use": bool(line["in_use_by"]),
        "error": None if error is None else error["message"],
    }
