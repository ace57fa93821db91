"""What a call asks of the service, one request after the other, whoever sends them.

A call is a generator: it yields what is to be asked, is sent the answer, and returns the result.
``client.Client`` runs it blocking and ``asynchronous.AsyncClient`` with asyncio: what there is to
ask, and how it is followed, is written once.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Generator, Mapping
from typing import Any, Literal, TypeVar

from mapsave import errors, strict_json
from mapsave.strict_json import Facts

# What a client may be for its requests; the service makes no one more than they are.
Role = Literal["reader", "operator"]
ROLE_HEADER = "Mapsave-Role"
Answer = dict[str, Any]  # what the service has answered
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Ask:
    """A request: its answer is sent to the call; what the service refuses it with is raised.

    An answer that ``is_text``, not JSON, is sent as ``text`` of an object. One that ``begins``
    something is waited for even by a task that is cancelled, so that there is something to cancel.
    """

    method: str
    path: str
    body: Facts | None = None
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    is_text: bool = False
    begins: bool = False

    def encoded(self, role: Role | None = None) -> tuple[dict[str, str], bytes]:
        """Return headers and body as they are sent, with the ``role`` that the client lowers to."""
        lowered = {} if role is None else {ROLE_HEADER: role}
        if self.body is None:
            return {**lowered, **self.headers}, b""
        kind = {"Content-Type": "application/json"}
        return {**kind, **lowered, **self.headers}, strict_json.encoded(self.body)


@dataclasses.dataclass(frozen=True)
class Pause:
    """Nothing is asked for so many ``seconds``."""

    seconds: float


Call = Generator[Ask | Pause, Answer, T]


class RequestInterrupted(Exception):
    """A request was given up by ``Client.interrupt``; the service may have got it, or not."""


def get(path: str, /, **query: object) -> Ask:
    """Return a request for ``path``; what is None in ``query`` is left out."""
    import urllib.parse

    wanted = {
        name: str(value).lower() if isinstance(value, bool) else value
        for name, value in query.items()
        if value is not None
    }
    return Ask("GET", f"{path}?{urllib.parse.urlencode(wanted)}" if wanted else path)


def post(path: str, body: Facts | None = None, headers: Mapping[str, str] | None = None) -> Ask:
    """Return a request that posts ``body``."""
    return Ask("POST", path, body, headers or {})


def operation(name: str) -> str:
    """Return the path of an operation, by its id or the beginning of it."""
    return f"/v1/operations/{quoted(name)}"


def quoted(text: str) -> str:
    """Return ``text`` as one part of a path."""
    import urllib.parse  # a millisecond of each command that does without

    return urllib.parse.quote(text, safe="")


def new_number() -> str:
    """Return an id for an operation, so that it is known even if its answer never comes."""
    return os.urandom(6).hex()


def answered(ask: Ask, status: int, body: bytes) -> Answer:
    """Return the object that the service answers. Raises its error; ValueError for no object."""
    if ask.is_text and status < 400:
        return {"text": body.decode()}
    found = strict_json.decoded(body)
    if not isinstance(found, dict):
        raise ValueError("the answer is not an object")
    if status >= 400:
        raise errors.from_dict(found.get("error", {}))
    return found
