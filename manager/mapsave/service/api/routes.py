"""Every route of the service. The OpenAPI document is made of this table."""

from __future__ import annotations

import asyncio
import functools
import re
from typing import Any

from aiohttp import web

from mapsave import errors
from mapsave.operations import inspect
from mapsave.service import work
from mapsave.service.api import openapi, queries, requests, responses, views
from mapsave.service.api.app import Call, Header, Route, as_json
from mapsave.service.peers import Role

_OWN_ID = re.compile(r"[0-9a-f]{12}")
OWN_ID_HEADER = "Mapsave-Operation"
_OWN_ID_WORDS = "An id chosen by the client: a repeated request starts nothing twice."


async def _health(call: Call) -> dict[str, Any]:
    return call.service.health()


async def _openapi(call: Call) -> dict[str, Any]:
    return _document()


@functools.cache
def _document() -> dict[str, Any]:
    """Return the OpenAPI document, which takes long enough to make that others would notice."""
    return openapi.document(ROUTES)


async def _metrics(call: Call) -> web.Response:
    body, kind = await call.service.metrics.render(call.request.headers.get("Accept"))
    return web.Response(body=body, headers={"Content-Type": kind})


async def _guests(call: Call) -> dict[str, Any]:
    return {"guests": views.guests(call.service)}


async def _guest(call: Call) -> dict[str, Any]:
    return await views.guest(call.service, call.part("guest"))


async def _images(call: Call) -> dict[str, Any]:
    return await views.image_listing(call.service)


async def _image(call: Call) -> dict[str, Any]:
    asked = requests.parse({"kind": "verify", "image": call.part("image")})
    path = work.path_of(call.service.config, asked.image)
    found = await call.service.looking.run(inspect.inspect, path, call.service.config)
    if call.peer.role < Role.OPERATOR:
        found["command"] = found["names"] = None  # their arguments may hold passwords
    return found


async def _jobs(call: Call) -> dict[str, Any]:
    return await views.jobs(call.service)


async def _job(call: Call) -> dict[str, Any]:
    return await views.job(call.service, call.service.jobs.get(call.part("job")))


async def _operations(call: Call) -> dict[str, Any]:
    return {"operations": await call.service.operations.find(**call.query.model_dump())}


async def _begin(call: Call) -> web.Response:
    """Begin an operation, or return the one that the same client has begun under that id."""
    service = call.service
    asked = requests.parse(call.body)
    work.allow(call.peer, asked, service.config)
    new = work.operation(asked, call.peer.name)
    work.check_known(service, asked)
    own = call.request.headers.get(OWN_ID_HEADER)
    if own is not None:
        if not _OWN_ID.fullmatch(own):
            raise errors.RequestInvalid(f"{OWN_ID_HEADER}: must be 12 hexadecimal digits")
        known = await _known(call, own)
        # Another request of that id may have begun while the journal was asked.
        if known is None and (active := service.operations.find_active(own)) is not None:
            known = _own(call, active.as_dict())
        if known is not None:
            return _accepted(known)
        new.id = own
    begun = await service.operations.begin(
        new, lambda active: work.perform(service, active, asked, call.peer)
    )
    return _accepted(begun.as_dict())


async def _known(call: Call, own: str) -> dict[str, Any] | None:
    """Return the operation of an id that the client has chosen; None where it is a new one."""
    try:
        known = await call.service.operations.get(own)
    except errors.UnknownOperation:
        return None
    return _own(call, known)


def _own(call: Call, known: dict[str, Any]) -> dict[str, Any]:
    """Return an operation that this client has begun. Raises Busy where another one has."""
    if known["user"] != call.peer.name:
        raise errors.Busy(f"{OWN_ID_HEADER}: operation {known['id']} already exists")
    return known


def _accepted(operation: dict[str, Any]) -> web.Response:
    place = f"/v1/operations/{operation['id']}"
    return as_json(operation, status=202, headers={"Location": place})


async def _operation(call: Call) -> dict[str, Any]:
    operations = call.service.operations
    name = await operations.resolve(call.part("operation"))
    active = operations.find_active(name)
    if active is not None and call.query.wait:
        await active.wait_change(call.query.since, call.query.wait)
    elif call.query.wait and call.service.recovery.speaks_of(name):
        await asyncio.sleep(min(call.query.wait, 1.0))
    return await operations.get(name)


async def _steps(call: Call) -> dict[str, Any]:
    operations = call.service.operations
    name = await operations.resolve(call.part("operation"))
    found = await operations.steps(name)
    steps = [{"time": each.time, "step": each.step, "data": each.data} for each in found]
    return {"operation": await operations.get(name), "steps": steps}


async def _cancel(call: Call) -> web.Response:
    operations = call.service.operations
    name = await operations.resolve(call.part("operation"))
    active = operations.find_active(name)
    if active is None and call.service.recovery.speaks_of(name):
        raise errors.NotCancellable(
            f"operation {name} is being recovered: it was in progress when the previous service "
            "exited",
            hint="wait for it: it is completed if possible, otherwise rolled back",
        )
    if active is None:
        state = (await operations.get(name))["state"]
        raise errors.NotCancellable(f"operation {name} is not active: {state}")
    operations.cancel(active)
    return _accepted(active.as_dict())


async def _events(call: Call) -> web.StreamResponse:
    """Tell what happens until the client goes; one that does not read is disconnected."""
    operation = call.query.operation
    if operation is not None:
        operation = await call.service.operations.resolve(operation)
    answer = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
    )
    with call.service.hub.listening(operation) as listener:
        await answer.prepare(call.request)
        while (event := await listener.next(call.patience.beat)) is not None:
            try:
                async with asyncio.timeout(call.patience.reading):
                    await answer.write(event)
            except (TimeoutError, ConnectionError):
                break
    if call.request.transport is not None:
        call.request.transport.abort()  # what it has not read is not worth waiting for
    return answer


async def _reload(call: Call) -> dict[str, Any]:
    return {"needs_restart": await call.service.reload()}


_LOOK, _WORK, _ALL = Role.READER, Role.OPERATOR, Role.ADMIN
_GET, _POST = "GET", "POST"
_ONE = "/v1/operations/{operation}"

ROUTES: tuple[Route, ...] = (
    Route(_GET, "/v1/health", _LOOK, "State of the service", _health, responses.Health),
    Route(_GET, "/v1/openapi.json", _LOOK, "This document", _openapi),
    Route(_GET, "/metrics", _LOOK, "Metrics for Prometheus", _metrics),
    Route(_GET, "/v1/guests", _LOOK, "The guests of the configuration", _guests, responses.Guests),
    Route(
        *(_GET, "/v1/guests/{guest}", _LOOK, "One guest, its images and operations", _guest),
        *(responses.Guest,),
        errors=(404,),
    ),
    Route(_GET, "/v1/images", _LOOK, "The images", _images, responses.Images),
    Route(
        *(_GET, "/v1/images/{image}", _LOOK, "Contents of an image", _image),
        *(responses.ImageContents,),
        errors=(404, 422),
    ),
    Route(_GET, "/v1/jobs", _LOOK, "The save jobs", _jobs, responses.Jobs),
    Route(
        *(_GET, "/v1/jobs/{job}", _LOOK, "One save job", _job, responses.Job),
        errors=(404,),
    ),
    Route(
        *(_GET, "/v1/operations", _LOOK, "Operations, newest first", _operations),
        *(responses.Operations, queries.Find),
        errors=(404,),
    ),
    Route(
        *(_POST, "/v1/operations", _WORK, "Start an operation", _begin, responses.Operation),
        takes_body=True,
        headers=(Header(OWN_ID_HEADER, f"^{_OWN_ID.pattern}$", _OWN_ID_WORDS),),
        status=202,
        errors=(404, 413, 501),
    ),
    Route(
        *(_GET, _ONE, _LOOK, "One operation; optionally waits for its next change", _operation),
        *(responses.Operation, queries.Wait),
        errors=(404,),
    ),
    Route(
        *(_GET, f"{_ONE}/steps", _LOOK, "The steps of an operation", _steps, responses.Steps),
        errors=(404,),
    ),
    Route(
        *(_POST, f"{_ONE}/cancel", _WORK, "Cancel an operation", _cancel, responses.Operation),
        status=202,
        errors=(404,),
    ),
    Route(
        *(_GET, "/v1/events", _LOOK, "Events, as server-sent events", _events),
        *(None, queries.Events),
        endless=True,
        errors=(404,),
    ),
    Route(
        *(_POST, "/v1/reload", _ALL, "Reload the configuration", _reload, responses.Reloaded),
    ),
)
