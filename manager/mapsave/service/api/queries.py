"""The query parameters of the service's paths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import pydantic
from pydantic import Field

from mapsave import errors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mapsave.service.api.requests import Kind
    from mapsave.service.operation import State

MOST = 1000
LONGEST_WAIT = 60.0
Id = Annotated[str, Field(pattern=r"^[0-9a-f]{1,12}$")]


class Query(pydantic.BaseModel):
    """The parameters of a path; unknown ones are errors."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


Q = TypeVar("Q", bound=Query)


class Nothing(Query):
    """No parameters."""


class Find(Query):
    """Which operations are listed, newest first."""

    active: bool = Field(False, description="Only active operations.")
    state: State | None = Field(None, description="Only operations in this state.")
    kind: Kind | None = Field(None, description="Only operations of this kind.")
    guest: str | None = Field(None, min_length=1, description="Only operations on this guest.")
    job: str | None = Field(None, min_length=1, description="Only operations of this job.")
    parent: Id | None = Field(None, description="Only the parts of this operation.")
    before: Id | None = Field(None, description="Only operations older than this one, for paging.")
    limit: int = Field(100, ge=1, le=MOST, description="At most this many.")


class Wait(Query):
    """How to wait for a change of an operation."""

    wait: float = Field(
        0, ge=0, le=LONGEST_WAIT, allow_inf_nan=False, description="Seconds to wait for a change."
    )
    since: int = Field(-1, ge=-1, le=2**53, description="The last revision seen.")


class Events(Query):
    """The operation whose events are sent."""

    operation: Id | None = Field(None, description="Only events of this operation.")


def parse(model: type[Q], found: Mapping[str, str], repeated: set[str]) -> Q:
    """Return the parameters. Raises RequestInvalid naming those that are wrong."""
    if repeated:
        raise errors.RequestInvalid(f"{', '.join(sorted(repeated))}: given more than once")
    try:
        return model.model_validate(dict(found))
    except pydantic.ValidationError as error:
        wrong = [
            {"field": str(each["loc"][0]), "message": f"{each['loc'][0]}: {each['msg']}"}
            for each in error.errors(include_url=False, include_context=False)
        ]
        raise errors.RequestInvalid(wrong[0]["message"], errors=wrong) from None


def parameters(model: type[Query]) -> list[dict[str, Any]]:
    """Return the parameters as OpenAPI describes them."""
    schema = model.model_json_schema()
    needed = schema.get("required", [])
    return [
        {
            "name": name,
            "in": "query",
            "required": name in needed,
            "description": part.pop("description", ""),
            "schema": part,
        }
        for name, part in schema.get("properties", {}).items()
    ]
