"""The REST interface: routes, who may use them, and how errors become answers."""

import asyncio
import dataclasses
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from aiohttp import http_exceptions, web

from mapsave import errors, strict_json, units
from mapsave.client.exchange import ROLE_HEADER
from mapsave.client.responses import Answer
from mapsave.service import tls
from mapsave.service.api import queries
from mapsave.service.api.connections import Connections, Patience
from mapsave.service.peers import Peer, Role
from mapsave.service.service import Service
from mapsave.strict_json import Facts

Answered = Facts | web.StreamResponse
Handler = Callable[["Call"], Answered | Awaitable[Answered]]

_log = logging.getLogger(__name__)

LARGEST_BODY = 1 << 20
UNAVAILABLE = 503
# What any route may answer: a wrong request, no right to it, no such method of it; something on the
# host prevents it, as a directory or a journal that cannot be read; a bug; the service stops, or
# has too much to do.
COMMON_ERRORS = (400, 403, 405, 409, 500, UNAVAILABLE)
RETRY_AFTER = "1"  # seconds after which a request answered with 503 may be repeated


@dataclasses.dataclass(frozen=True)
class Header:
    """A header that a route understands; its value is as ``pattern`` says."""

    name: str
    pattern: str
    description: str


# What a client may make of itself for one request; never more than it is.
_LOWERED = {role.word: role for role in (Role.READER, Role.OPERATOR)}
COMMON_HEADERS = (
    Header(
        ROLE_HEADER,
        f"^({'|'.join(_LOWERED)})$",
        "The role that the client wants for this request; ignored if it is above the client's own.",
    ),
)


@dataclasses.dataclass(frozen=True)
class Route:
    """One method of one path: who may use it, what it takes, and what it answers.

    ``errors`` are the statuses beside ``COMMON_ERRORS``, and 404 where it names what may not exist.
    """

    path: str
    summary: str
    handler: Handler
    answer: type[Answer] | None = None
    query: type[queries.Query] = queries.Nothing
    method: str = "GET"
    role: Role = Role.READER
    headers: tuple[Header, ...] = ()
    takes_body: bool = False
    endless: bool = False
    status: int = 200
    errors: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Call:
    """One request that was let in. ``body`` is what its JSON holds, None for a route without."""

    service: Service
    request: web.Request
    peer: Peer
    query: Any
    body: object
    patience: Patience

    def part(self, name: str) -> str:
        """Return a part of the path."""
        return self.request.match_info[name]


def application(
    service: Service, routes: Sequence[Route], connections: Connections
) -> web.Application:
    """Return the application that answers at ``routes``."""
    logging.getLogger("aiohttp.server").addFilter(_is_ours)
    app = web.Application(middlewares=[_errors_as_json], client_max_size=LARGEST_BODY)
    for route in routes:
        app.router.add_route(route.method, route.path, _handler(service, route, connections))
    return app


def _handler(
    service: Service, route: Route, connections: Connections
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        with connections.serving(request.protocol, endless=route.endless):
            found = await answer(request)
        if service.tls is not None and service.tls.is_outdated(request.transport):
            found.force_close()
        return found

    async def answer(request: web.Request) -> web.StreamResponse:
        peer = _lowered(_peer(service, request), request)
        peer.require(route.role, f"{route.method} {request.path}")
        given = request.query
        repeated = {name for name in given if len(given.getall(name)) > 1}
        query = queries.parse(route.query, given, repeated)
        patience = connections.patience
        body = await _body(request, patience.body) if route.takes_body else None
        found = route.handler(Call(service, request, peer, query, body, patience))
        if isinstance(found, Awaitable):
            found = await found
        if isinstance(found, web.StreamResponse):
            return found
        return as_json(found, status=route.status)

    return handle


def as_json(
    data: Facts, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Return an answer with ``data`` as JSON."""
    return web.Response(
        body=strict_json.encoded(data),
        content_type="application/json",
        charset="utf-8",
        status=status,
        headers=headers,
    )


def failure(error: errors.MapsaveError) -> web.Response:
    """Return the response for an error."""
    headers = {"Retry-After": RETRY_AFTER} if error.http_status == UNAVAILABLE else None
    return as_json({"error": error.as_dict()}, status=error.http_status, headers=headers)


def _peer(service: Service, request: web.Request) -> Peer:
    """Return who asks. Raises RoleMissing where the connection does not identify the peer."""
    transport = request.transport
    sock = transport.get_extra_info("socket") if transport is not None else None
    if sock is None:
        raise errors.RoleMissing("the connection is gone")
    if sock.family == socket.AF_UNIX:
        return service.roles.of_socket(sock)
    assert transport is not None
    return tls.peer(service.roles, transport)


def _lowered(peer: Peer, request: web.Request) -> Peer:
    """Return the peer with the role that the request asks for, if that is below its own.

    Raises RequestInvalid for what is not such a role: a misspelt one would leave all rights.
    """
    wanted = request.headers.getall(ROLE_HEADER, [])
    if not wanted:
        return peer
    if len(wanted) > 1 or wanted[0] not in _LOWERED:
        raise errors.RequestInvalid(f"{ROLE_HEADER}: must be {' or '.join(_LOWERED)}, once")
    return peer.lowered(_LOWERED[wanted[0]])


async def _body(request: web.Request, timeout: float) -> object:
    """Return the JSON of a request. Raises RequestInvalid, RequestTooLarge."""
    if request.content_type != "application/json":
        raise errors.RequestInvalid(
            f"the body is {request.content_type}, not JSON",
            hint="send it with Content-Type: application/json",
        )
    try:
        async with asyncio.timeout(timeout):
            raw = await request.read()
    except TimeoutError:
        limit = units.format_duration(timeout)
        raise errors.RequestInvalid(f"the body was not received within {limit}") from None
    try:
        return strict_json.loads(raw, whole=True)
    except ValueError as error:  # UnicodeDecodeError too
        raise errors.RequestInvalid(f"the body is not JSON: {error}") from None


@web.middleware
async def _errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Answer every error as JSON, with the message that the command line has for it."""
    try:
        return await handler(request)
    except errors.MapsaveError as error:
        return failure(error)
    except web.HTTPRequestEntityTooLarge:
        limit = f"a request body may have at most {LARGEST_BODY} bytes"
        return failure(errors.RequestTooLarge(limit))
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        answer = failure(
            errors.WrongMethod(f"{request.path} supports {allowed}, not {request.method}")
        )
        answer.headers["Allow"] = allowed
        return answer
    except web.HTTPNotFound:
        return failure(
            errors.UnknownResource(f"there is no {request.path}", hint="see GET /v1/openapi.json")
        )
    except web.HTTPException as error:
        return failure(errors.RequestInvalid(error.reason))
    except Exception as error:
        if request.transport is None or request.transport.is_closing():
            return web.Response()  # the client is gone, which is its right
        _log.exception("%s %s: a bug in mapsave", request.method, request.path)
        return failure(errors.as_ours(error))


def _is_ours(record: logging.LogRecord) -> bool:
    """Return whether an error that aiohttp logs is one of ours: what clients send wrong is not."""
    error = record.exc_info[1] if record.exc_info else None
    if not isinstance(error, http_exceptions.HttpProcessingError | ConnectionError):
        return True
    _log.debug("a client sent an invalid request: %s", error)
    return False
