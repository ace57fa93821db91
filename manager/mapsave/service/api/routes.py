"""Every route of the service. The OpenAPI document is made of this table."""

import asyncio
import functools
import re

import msgspec
from aiohttp import web

from mapsave import errors
from mapsave.client import requests, responses
from mapsave.history.rows import Record
from mapsave.operations import inspect, pictures
from mapsave.service import events, permission, work
from mapsave.service.api import openapi, queries, views
from mapsave.service.api.app import Call, Header, Route, as_json
from mapsave.service.operation import Operation
from mapsave.service.peers import Role
from mapsave.strict_json import Facts

_OWN_ID = re.compile(r"[0-9a-f]{12}")
OWN_ID_HEADER = "Mapsave-Operation"
_OWN_ID_WORDS = "An id chosen by the client: a repeated request starts nothing twice."


@functools.cache
def _document() -> Facts:
    """Return the OpenAPI document, which takes long enough to make that others would notice."""
    return openapi.document(ROUTES)


async def _metrics(call: Call) -> web.Response:
    body, kind = await call.service.metrics.render(call.request.headers.get("Accept"))
    return web.Response(body=body, headers={"Content-Type": kind})


async def _image(call: Call) -> Facts:
    request = requests.parse({"kind": "verify", "image": call.part("image")})
    config = call.service.config

    def look() -> Facts:
        return inspect.inspect(permission.path_of(config, str(request.image)), config)

    found = await call.service.looking.run(look)
    # Their arguments may hold passwords.
    return found if call.peer.role >= Role.OPERATOR else {**found, "command": None, "names": None}


async def _image_picture(call: Call) -> web.Response:
    request = requests.parse({"kind": "verify", "image": call.part("image")})
    path = permission.path_of(call.service.config, str(request.image))
    drawn = await call.service.looking.run(pictures.of_image, path)
    return web.Response(text=drawn, content_type=openapi.PICTURE)


async def _operations(call: Call) -> Facts:
    found = await call.service.operations.find(**msgspec.structs.asdict(call.query))
    return {"operations": [each.as_dict() for each in found]}


async def _begin(call: Call) -> web.Response:
    """Begin an operation, or return the one that the same client has begun under that id."""
    service = call.service
    request = requests.parse(call.body)
    await work.allow(call.peer, request, service.config)
    new = Operation(
        request.kind,
        call.peer.name,
        request.as_dict(),
        guest=request.guest,
        job=request.job,
        image=request.image,
    )
    work.check_known(service, request)
    own = call.request.headers.get(OWN_ID_HEADER)
    if own is not None:
        if not _OWN_ID.fullmatch(own):
            raise errors.RequestInvalid(f"{OWN_ID_HEADER}: must be 12 hexadecimal digits")
        known = await service.operations.look_up(own)
        if known is not None:
            if known.user != call.peer.name:
                raise errors.Busy(f"{OWN_ID_HEADER}: operation {known.id} already exists")
            return _accepted(known)
        new.id = own
    begun = await service.operations.begin(
        new, lambda active: work.perform(service, active, request, call.peer)
    )
    return _accepted(begun)


def _accepted(operation: Operation | Record) -> web.Response:
    place = f"/v1/operations/{operation.id}"
    return as_json(operation.as_dict(), status=202, headers={"Location": place})


async def _operation(call: Call) -> Facts:
    operations = call.service.operations
    name = await operations.resolve(call.part("operation"))
    active = operations.find_active(name)
    if active is not None and call.query.wait:
        if call.query.until == "end":
            await active.wait_end(call.query.wait)
        else:
            await active.wait_change(call.query.since, call.query.wait)
    elif call.query.wait and call.service.recovery.is_pending(name):
        await asyncio.sleep(min(call.query.wait, 1.0))
    return (await operations.get(name)).as_dict()


async def _steps(call: Call) -> Facts:
    operations = call.service.operations
    name = await operations.resolve(call.part("operation"))
    found = await operations.steps(name)
    operation = await operations.get(name)
    return {
        "operation": operation.as_dict(),
        "steps": [each.as_dict() for each in found],
        "course": [each.as_dict() for each in await operations.course(name)],
    }


async def _operation_picture(call: Call) -> web.Response:
    drawn = await views.picture(call.service, call.part("operation"))
    return web.Response(text=drawn, content_type=openapi.PICTURE)


async def _cancel(call: Call) -> web.Response:
    operations = call.service.operations
    name = await operations.resolve(call.part("operation"))
    active = operations.find_active(name)
    if active is None and call.service.recovery.is_pending(name):
        raise errors.NotCancellable(
            f"operation {name} is being recovered: it was in progress when the previous service "
            "exited",
            hint="wait for it: it is completed if possible, otherwise rolled back",
        )
    if active is None:
        state = (await operations.get(name)).state
        raise errors.NotCancellable(f"operation {name} is not active: {state}")
    operations.cancel(active)
    return _accepted(active)


async def _events(call: Call) -> web.StreamResponse:
    """Tell what happens until the client goes; one that does not read is disconnected.

    Of one operation the first event is how it is now: it may have ended.
    """
    operation = call.query.operation
    if operation is not None:
        operation = await call.service.operations.resolve(operation)
    answer = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
    )
    with call.service.hub.listening(operation) as listener:
        await answer.prepare(call.request)
        if operation is not None:
            now = await call.service.operations.get(operation)
            number = call.service.hub.number
            await answer.write(events.written(number, "operation", now.as_dict()))
        while (event := await listener.next(call.patience.beat)) is not None:
            try:
                async with asyncio.timeout(call.patience.reading):
                    await answer.write(event)
            except (TimeoutError, ConnectionError):
                break
    if call.request.transport is not None:
        call.request.transport.abort()  # what it has not read is not worth waiting for
    return answer


async def _reload(call: Call) -> Facts:
    return {"needs_restart": await call.service.reload()}


_ONE = "/v1/operations/{operation}"

ROUTES: tuple[Route, ...] = (
    Route("/v1/health", "State of the service", lambda c: c.service.health(), responses.Health),
    Route(
        "/v1/status",
        "State of the service, and what it does",
        lambda call: views.status(call.service),
        responses.Status,
    ),
    Route(
        "/v1/caller",
        "Who asks, and what they may do",
        lambda call: views.caller(call.peer),
        responses.Caller,
    ),
    Route("/v1/openapi.json", "This document", lambda _: _document()),
    Route("/metrics", "Metrics for Prometheus", _metrics),
    Route(
        "/v1/guests",
        "The guests",
        lambda call: views.guests(call.service, call.peer, look=call.query.look),
        responses.Guests,
        queries.Guests,
    ),
    Route(
        "/v1/guests/{guest}",
        "One guest, its images and operations",
        lambda call: views.guest(call.service, call.part("guest"), look=call.query.look),
        responses.Guest,
        queries.Guests,
    ),
    Route(
        "/v1/images",
        "The images, newest first",
        lambda call: call.service.pages.page(**msgspec.structs.asdict(call.query)),
        responses.Images,
        queries.Images,
    ),
    Route(
        "/v1/images/{image}", "Contents of an image", _image, responses.ImageContents, errors=(422,)
    ),
    Route(
        "/v1/images/{image}/picture",
        "Which pages of an image are used, as a picture",
        _image_picture,
        errors=(422,),
    ),
    Route("/v1/jobs", "The save jobs", lambda call: views.jobs(call.service), responses.Jobs),
    Route(
        "/v1/jobs/{job}",
        "One save job",
        lambda call: views.job(call.service, call.part("job")),
        responses.Job,
    ),
    Route(
        "/v1/operations",
        "Operations, newest first",
        _operations,
        responses.Operations,
        queries.Find,
    ),
    Route(
        "/v1/operations",
        "Start an operation",
        _begin,
        responses.Operation,
        method="POST",
        role=Role.OPERATOR,
        takes_body=True,
        headers=(Header(OWN_ID_HEADER, f"^{_OWN_ID.pattern}$", _OWN_ID_WORDS),),
        status=202,
        errors=(413, 501),
    ),
    Route(
        _ONE,
        "One operation; optionally waits for its next change, or its end",
        _operation,
        responses.Operation,
        queries.Wait,
    ),
    Route(f"{_ONE}/steps", "The steps of an operation", _steps, responses.Steps),
    Route(
        f"{_ONE}/picture",
        "Phases and rate of an operation over time, as a picture",
        _operation_picture,
    ),
    Route(
        f"{_ONE}/cancel",
        "Cancel an operation",
        _cancel,
        responses.Operation,
        method="POST",
        role=Role.OPERATOR,
        status=202,
    ),
    Route(
        "/v1/events", "Events, as server-sent events", _events, query=queries.Events, endless=True
    ),
    Route(
        "/v1/reload",
        "Reload the configuration",
        _reload,
        responses.Reloaded,
        method="POST",
        role=Role.ADMIN,
    ),
)
