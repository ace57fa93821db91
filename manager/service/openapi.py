"""The OpenAPI document of the service, made of the table of routes and the models."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pydantic.json_schema import models_json_schema

import manager
from manager.service import answers, queries, requests

if TYPE_CHECKING:
    from collections.abc import Sequence

    from manager.service.app import Route

_SCHEMAS = "#/components/schemas/{model}"
_TEXT = {"/metrics": "text/plain", "/v1/events": "text/event-stream"}


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document that describes ``routes``."""
    models = [route.answer for route in routes if route.answer is not None]
    models += [answers.Failure]
    _, found = models_json_schema(
        [(model, "serialization") for model in dict.fromkeys(models)], ref_template=_SCHEMAS
    )
    body = requests.REQUEST.json_schema(ref_template=_SCHEMAS)
    schemas = {**found["$defs"], **body.pop("$defs")}
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, body)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "mapsaved",
            "version": manager.__version__,
            "description": "Saves running QEMU guests to disk, and brings them back.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "http://localhost"}],
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _operation(route: Route, body: dict[str, Any]) -> dict[str, Any]:
    named = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", route.path)
    ]
    described: dict[str, Any] = {
        "summary": route.summary,
        "description": f"For the role {route.role.word!r}.",
        "operationId": re.sub(r"\W+", "_", f"{route.method.lower()}{route.path}").strip("_"),
        "parameters": named + queries.parameters(route.query),
        "responses": _responses(route),
    }
    if route.takes_body:
        described["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": body}},
        }
    return described


def _responses(route: Route) -> dict[str, Any]:
    failure = {"schema": {"$ref": _SCHEMAS.format(model="Failure")}}
    if route.answer is not None:
        kind = "application/json"
        schema = {"$ref": _SCHEMAS.format(model=route.answer.__name__)}
    else:
        kind = _TEXT.get(route.path, "application/json")
        schema = {"type": "object"} if kind == "application/json" else {"type": "string"}
    codes = sorted({400, 403, 500, *route.errors})
    words = {
        **dict.fromkeys(range(400, 600), "It failed; the error says why"),
        400: "The request does not fit",
        403: "The peer may not",
        404: "There is no such thing",
    }
    return {
        str(route.status): {"description": "Done", "content": {kind: {"schema": schema}}},
        **{
            str(code): {"description": words[code], "content": {"application/json": failure}}
            for code in codes
        },
    }
