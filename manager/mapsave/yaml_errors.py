"""Put what pydantic finds wrong in a YAML document into words for the person who wrote the file."""

from __future__ import annotations

import difflib
import typing
from typing import TYPE_CHECKING, Any

import pydantic

from mapsave import errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pydantic_core import ErrorDetails

    from mapsave.yaml_file import Document, Loc


def translate(
    document: Document, model: type[pydantic.BaseModel], exc: pydantic.ValidationError
) -> errors.ConfigError:
    """Return one ConfigError for all that ``exc`` says about ``document``, in order of lines."""
    found = [_error(document, detail, model) for detail in exc.errors(include_url=False)]
    found.sort(key=lambda error: (error.data["line"] or 0, error.data["column"] or 0))
    first, *rest = found
    message = first.message + (f" (and {len(rest)} more)" if rest else "")
    hint = "also wrong:\n" + "\n".join(error.message for error in rest) if rest else None
    listed = [{"message": error.message, **error.data} for error in found]
    return errors.ConfigError(message, hint=hint, **first.data, errors=listed)


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``": did you mean 'channels'?"`` for the closest known word, "" if none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f": did you mean {close[0]!r}?" if close else ""


def _error(
    document: Document, detail: ErrorDetails, model: type[pydantic.BaseModel]
) -> errors.ConfigError:
    """Return the ConfigError for one error of pydantic, at the key or at the value."""
    loc = detail["loc"]
    holder = document.known(loc[:-1])
    match detail["type"]:
        case "extra_forbidden":
            keys = sorted(_keys(model, loc[:-1]))
            guess = nearest(str(loc[-1]), keys) or f" (known: {', '.join(keys)})"
            return document.error(loc, f"unknown key {str(loc[-1])!r}{guess}", at_key=True)
        case "missing":
            inside = f" in {_name(holder)}" if holder else ""
            return document.error(holder, f"the key {str(loc[-1])!r} is missing{inside}")
    at_key = loc[-1:] == ("[key]",)
    return document.error(loc, _words(detail, _name(document.known(loc))), at_key=at_key)


def _words(detail: ErrorDetails, name: str) -> str:
    """Return what is wrong with the value that the file calls ``name``."""
    match detail["type"]:
        case "value_error":
            said = str(detail["ctx"]["error"])
            return f"{name}: {said}" if name else said
        case "string_type" if isinstance(detail["input"], (bool, int, float)):
            return f"{name}: must be text: put it in quotes"
        case "literal_error":
            return f"{name}: {_shown(detail['input'])} is not {detail['ctx']['expected']}"
    said = detail["msg"][0].lower() + detail["msg"][1:]
    return f"{name}: {said}, not {_shown(detail['input'])}"


def _name(loc: Loc) -> str:
    """Return ``guests.web01.launch[2]`` for the path of keys ``loc``."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return "".join(parts).removeprefix(".")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _keys(model: type[pydantic.BaseModel], loc: Loc) -> set[str]:
    """Return the keys that ``model`` knows at ``loc``."""
    here: list[type[pydantic.BaseModel]] = [model]
    for part in loc:
        fields = [each.model_fields.get(str(part)) for each in here]
        within = [inner for each in fields if each for inner in _models(each.annotation)]
        here = within or here  # a key of a dict, an index of a list: stay with its models
    return {info.alias or key for each in here for key, info in each.model_fields.items()}


def _models(annotation: Any) -> Iterator[type[pydantic.BaseModel]]:
    """Yield the models within an annotation such as ``dict[str, Guest] | None``."""
    inner = typing.get_args(annotation)
    if not inner and isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        yield annotation
    for argument in inner:
        yield from _models(argument)
