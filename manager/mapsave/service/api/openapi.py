"""The OpenAPI document of the service, made of the table of routes and the definitions."""

import re
from collections.abc import Sequence

import msgspec

import mapsave
from mapsave import keys
from mapsave.client import requests, responses
from mapsave.service.api import app, queries
from mapsave.service.api.app import Route

Schema = dict[str, object]  # a part of the document

_SCHEMAS = "#/components/schemas/{name}"
_HEADERS = {
    202: ("Location", "The path of the operation."),
    405: ("Allow", "The methods that the path has."),
    503: ("Retry-After", "Seconds to wait before the next attempt."),
}
PICTURE = "image/svg+xml"
_TEXT = {
    "/metrics": "text/plain",
    "/v1/events": "text/event-stream",
    "/v1/images/{image}/picture": PICTURE,
    "/v1/operations/{operation}/picture": PICTURE,
}


def document(routes: Sequence[Route]) -> Schema:
    """Return the OpenAPI 3.1 document that describes ``routes``."""
    answers = [route.answer for route in routes if route.answer is not None]
    _, schemas = _schemas([*answers, responses.Failure])
    (body,), found = _schemas([requests.ANY])
    schemas |= keys.tidy(found)
    for kind in requests.KINDS.values():
        schemas[kind.__name__] |= kind.more_schema
    paths: dict[str, Schema] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, body)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "mapsaved",
            "version": mapsave.__version__,
            "description": "Saves running QEMU guests to disk and restores them.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "http://localhost"}],
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _schemas(kinds: Sequence[object]) -> tuple[tuple[Schema, ...], dict[str, Schema]]:
    """Return the schema of each of ``kinds``, and the components that they refer to."""
    return msgspec.json.schema_components(
        kinds, schema_hook=lambda _: {"type": "string"}, ref_template=_SCHEMAS
    )


def _operation(route: Route, body: Schema) -> Schema:
    _, query = _schemas([route.query])
    named = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", route.path)
    ]
    described: Schema = {
        "summary": route.summary,
        "description": f"Requires the role {route.role.word!r}.",
        "operationId": re.sub(r"\W+", "_", f"{route.method.lower()}{route.path}").strip("_"),
        "parameters": [
            *named,
            *queries.parameters(query[route.query.__name__]),
            *_headers(route),
        ],
        "responses": _responses(route),
    }
    if route.takes_body:
        described["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": body}},
        }
    return described


def _headers(route: Route) -> list[Schema]:
    return [
        {
            "name": each.name,
            "in": "header",
            "required": False,
            "description": each.description,
            "schema": {"type": "string", "pattern": each.pattern},
        }
        for each in (*route.headers, *app.COMMON_HEADERS)
    ]


def _responses(route: Route) -> Schema:
    failure = {"schema": {"$ref": _SCHEMAS.format(name="Failure")}}
    if route.answer is not None:
        kind = "application/json"
        schema = {"$ref": _SCHEMAS.format(name=route.answer.__name__)}
    else:
        kind = _TEXT.get(route.path, "application/json")
        schema = {"type": "object"} if kind == "application/json" else {"type": "string"}
    names = "{" in route.path or route.takes_body or route.query is not queries.Nothing
    codes = sorted({*app.COMMON_ERRORS, *route.errors, *((404,) if names else ())})
    words = {
        **dict.fromkeys(range(400, 600), "The operation failed; the error has the reason"),
        400: "The request is invalid",
        403: "Not permitted",
        404: "Not found",
        405: "The path does not support this method",
        409: "Conflicts with the current state of the host",
        503: "The service is stopping or busy",
    }
    return {
        str(route.status): {
            "description": "Done",
            "content": {kind: {"schema": schema}},
            **_told(route.status),
        },
        **{
            str(code): {
                "description": words[code],
                "content": {"application/json": failure},
                **_told(code),
            }
            for code in codes
        },
    }


def _told(status: int) -> Schema:
    """Return the headers of an answer of that status."""
    if status not in _HEADERS:
        return {}
    name, words = _HEADERS[status]
    return {"headers": {name: {"description": words, "schema": {"type": "string"}}}}
