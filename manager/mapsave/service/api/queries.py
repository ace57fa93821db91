"""The query parameters of the service's paths."""

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import msgspec

from mapsave import errors
from mapsave.client import requests
from mapsave.history.states import State
from mapsave.keys import Keys, Parse, help

MOST = 1000
LONGEST_WAIT = 60.0
_FLAGS = {"true": True, "1": True, "false": False, "0": False}


def _number(text: str) -> float | str:
    """Return the number that ``text`` is, else the text itself, which is then refused."""
    if re.fullmatch(r"-?[0-9]{1,20}", text):
        return int(text)
    try:
        return float(text) if math.isfinite(float(text)) else text
    except ValueError:
        return text


Id = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{1,12}$", title="the id of an operation")]
Place = Annotated[
    str, msgspec.Meta(pattern=r"^[0-9]{1,20}\.[0-9]{1,20}$", title="the 'next' of a page")
]
Text = Annotated[str, msgspec.Meta(min_length=1, title="text that is not empty")]
Flag = Annotated[bool, Parse(lambda text: _FLAGS.get(text, text))]
Count = Annotated[int, Parse(_number)]
Until = Literal["change", "end"]
if TYPE_CHECKING:
    Kind = str
else:
    Kind = Literal[tuple(requests.KINDS)]


class Query(Keys, frozen=True):
    """The parameters of a path; unknown ones are errors."""


Q = TypeVar("Q", bound=Query)


class Nothing(Query, frozen=True):
    """No parameters."""


class Find(Query, frozen=True):
    """Which operations are listed, newest first."""

    active: Annotated[Flag, help("Only active operations.")] = False
    state: Annotated[State | None, help("Only operations in this state.")] = None
    kind: Annotated[Kind | None, help("Only operations of this kind.")] = None
    guest: Annotated[Text | None, help("Only operations on this guest.")] = None
    job: Annotated[Text | None, help("Only operations of this job.")] = None
    parent: Annotated[Id | None, help("Only the parts of this operation.")] = None
    before: Annotated[Id | None, help("Only operations older than this one, for paging.")] = None
    limit: Annotated[Count, msgspec.Meta(ge=1, le=MOST), help("At most this many.")] = 100


class Guests(Query, frozen=True):
    """What is found out about guests."""

    look: Annotated[
        Flag, help("Ask the guests for their state, and look up the last image of each.")
    ] = False


class Images(Query, frozen=True):
    """Which images are listed, newest first."""

    guest: Annotated[Text | None, help("Only images of this guest.")] = None
    latest: Annotated[Flag, help("Of each guest only the image that was saved last.")] = False
    before: Annotated[Place | None, help("The 'next' of the page before, for paging.")] = None
    limit: Annotated[Count, msgspec.Meta(ge=1, le=MOST), help("At most this many.")] = 100


class Wait(Query, frozen=True):
    """How to wait for an operation."""

    wait: Annotated[
        float,
        Parse(_number),
        msgspec.Meta(ge=0, le=LONGEST_WAIT),
        help("Seconds to wait, at most."),
    ] = 0
    until: Annotated[Until, help("What to wait for: its next change, or its end.")] = "change"
    since: Annotated[Count, msgspec.Meta(ge=-1, le=2**53), help("The last revision seen.")] = -1


class Events(Query, frozen=True):
    """The operation whose events are sent."""

    operation: Annotated[Id | None, help("Only events of this operation.")] = None


def parse(kind: type[Q], found: Mapping[str, str], repeated: set[str]) -> Q:
    """Return the parameters. Raises RequestInvalid naming those that are wrong."""
    if repeated:
        raise errors.RequestInvalid(f"{', '.join(sorted(repeated))}: given more than once")
    query: Q = requests.read(dict(found), kind)
    return query


def parameters(schema: Mapping[str, Any]) -> list[dict[str, object]]:
    """Return the parameters as OpenAPI describes them; ``schema`` is that of their class."""
    return [
        {
            "name": name,
            "in": "query",
            "required": name in schema["required"],
            "description": part.pop("description", ""),
            "schema": part,
        }
        for name, part in schema["properties"].items()
    ]
