"""Keys of the YAML files and of the service's requests: each defined once, read, and described.

A mapping is a class of ``Keys`` with a field for each key: type, default, limits, one line of help.
From it come the reader (``read``), what is said of a mistake, and the JSON Schema (``schema``). A
field without help is no key of the mapping: the program sets it.

Types are those that msgspec knows, with ``Parse`` and ``Check`` for what it does not.
"""

import functools
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, TypeVar

import msgspec

from mapsave import typed

Loc = tuple[str | int, ...]  # the path of keys and indexes to a value
T = TypeVar("T")
Hook = Callable[[type, Any], object]  # msgspec's ``dec_hook``: reads types that it does not know

_NOTHING = type(None)
_Mapping = dict[str, object]
_WRITTEN = "x-written"
_ABOUT = ("title", "description", "default")  # of a key, beside its type


class Keys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A mapping of known keys; a key without a value (null) counts as not given.

    A field ``given`` that is no key gets the names of the fields that the data had.
    """


class Parse(msgspec.Struct, frozen=True):
    """Annotates a type: makes a value of the type of one as people write it.

    What it does not know it returns, or raises ValueError with what is wrong.
    """

    function: Callable[[Any], object]


class Check(msgspec.Struct, frozen=True):
    """Annotates a type: returns the value of that type, or raises ValueError."""

    function: Callable[[Any], object]


class Mistake(msgspec.Struct, frozen=True):
    """What is wrong at ``loc``, in words that name the key; with the key itself, or its value."""

    loc: Loc
    message: str
    at_key: bool = False


class Mistakes(Exception):
    def __init__(self, found: list[Mistake]) -> None:
        super().__init__("; ".join(each.message for each in found))
        self.found = found


def help(text: str) -> msgspec.Meta:
    """Return the line of help of a key, to be annotated to its type."""
    return msgspec.Meta(description=text)


def written(title: str | None, schema: Mapping[str, object] | None = None) -> msgspec.Meta:
    """Return what people write for a type, in words and, if given, as a JSON Schema."""
    return msgspec.Meta(title=title, extra_json_schema={_WRITTEN: schema} if schema else None)


def read(data: object, kind: type[T], hook: Hook | None = None) -> T:
    """Return ``data``, plain dicts, lists and scalars, as an instance of ``kind``.

    ``hook`` is msgspec's ``dec_hook``, for types that it does not know. Raises Mistakes with all
    that is wrong.
    """
    reader = _Reader(hook)
    found = reader.value(data, kind, ())
    if reader.mistakes:
        raise Mistakes(reader.mistakes)
    return typing.cast("T", found)


@functools.cache
def fields(kind: type) -> dict[str, msgspec.structs.FieldInfo]:
    """Return the keys of a class of ``Keys``, by the name they have in a file."""
    found = msgspec.structs.fields(kind)
    return {each.encode_name: each for each in found if described(each.type, "description")}


def described(kind: object, attribute: str) -> object:
    """Return the ``attribute`` of ``msgspec.Meta`` that a type has, None if it has none."""
    metas = [each for each in peel(kind)[1] if isinstance(each, msgspec.Meta)]
    found = [getattr(each, attribute) for each in metas]
    return next((each for each in reversed(found) if each is not None), None)


def peel(kind: object) -> tuple[object, tuple[object, ...]]:
    """Return the type within ``Annotated`` and ``| None``, and the annotations, innermost first."""
    # By identity, as not every type can be hashed; held, so that no other gets that identity.
    known = _PEELED.get(id(kind))
    if known is None:
        known = _PEELED[id(kind)] = (kind, *_peel(kind))
    return known[1:]


_PEELED: dict[int, tuple[object, object, tuple[object, ...]]] = {}


def _peel(kind: object) -> tuple[object, tuple[object, ...]]:
    notes: tuple[object, ...] = ()
    while True:
        if typing.get_origin(kind) is Annotated:
            kind, *found = typing.get_args(kind)
            notes = (*found, *notes)
        elif len(choices := _choices(kind)) == 1 and choices[0] is not kind:
            kind = choices[0]
        else:
            return kind, notes


def expected(kind: object) -> str:
    """Return in words what a value of ``kind`` is: ``a number from 1 to 255``."""
    if title := described(kind, "title"):
        return str(title)
    core, _ = peel(kind)
    origin = typing.get_origin(core) or core
    if origin is typing.Literal:
        return _either([repr(each) for each in typing.get_args(core)])
    if len(choices := _choices(core)) > 1:
        return _either([expected(each) for each in choices])
    if origin in (int, float):
        least, most = described(kind, "ge"), described(kind, "le")
        return "a number" + ("" if least is None else f" from {least} to {most}")
    if origin in (list, tuple):
        return "a list" + (" that is not empty" if described(kind, "min_length") else "")
    return "text" if origin is str else "true or false" if origin is bool else "a mapping"


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``": did you mean 'channels'?"`` for the closest known word, "" if none is close."""
    guess = did_you_mean(word, known)
    return f": {guess}" if guess else ""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``"did you mean 'channels'?"`` for the closest known word, "" if none is close."""
    import difflib

    close = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else ""


def path(loc: Loc) -> str:
    """Return ``guests.web01.launch[2]`` for the path of keys ``loc``."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return "".join(parts).removeprefix(".")


def schema(kind: type) -> dict[str, Any]:
    """Return the JSON Schema of a mapping, for editors."""
    found = msgspec.json.schema(kind, schema_hook=lambda _: {"type": "string"})
    parts = tidy(found["$defs"])
    return {**parts.pop(kind.__name__), "$defs": parts}


def tidy(part: Any) -> Any:
    """Return a part of a JSON Schema that msgspec made of ``Keys``, as people may write them.

    Left out are fields that are no keys; what has a default may be null; types that are written
    otherwise than msgspec knows are described as they are written.
    """
    if isinstance(part, (list, tuple)):
        return [tidy(each) for each in part]
    if not isinstance(part, dict):
        return part
    if _WRITTEN in part:
        return {**_kept(part), **part[_WRITTEN]}
    found = {key: tidy(each) for key, each in part.items()}
    if found.get("type") == "object" and "properties" in found:
        needed = found["required"]
        if "given" in found["properties"]:  # what is not given is as another place says
            for each in found["properties"].values():
                each.pop("default", None)
        found["properties"] = {
            key: each if key in needed else _or_null(each)
            for key, each in found["properties"].items()
            if key in needed or "description" in each
        }
    return found


def _kept(part: dict[str, Any]) -> dict[str, Any]:
    # The default of a mapping is what its own keys say.
    return {key: part[key] for key in _ABOUT if not isinstance(part.get(key, {}), dict)}


def _or_null(part: dict[str, Any]) -> dict[str, Any]:
    kept = _kept(part)
    rest = {key: each for key, each in part.items() if key not in _ABOUT}
    choices = rest["anyOf"] if list(rest) == ["anyOf"] else [rest]
    null = {"type": "null"}
    return {**kept, "anyOf": choices if null in choices else [*choices, null]}


class _Reader:
    def __init__(self, hook: Hook | None) -> None:
        self.mistakes: list[Mistake] = []
        self._hook = hook

    def value(self, value: object, kind: object, loc: Loc, *, at_key: bool = False) -> object:
        """Return ``value`` as an instance of ``kind``, or something else and note a mistake."""
        core, notes = peel(kind)
        before = len(self.mistakes)
        try:
            for each in notes:
                value = each.function(value) if isinstance(each, Parse) else value
            found = self._inside(value, core, loc)
            if len(self.mistakes) == before:
                if not isinstance(found, msgspec.Struct):
                    found = typed.convert(found, typing.cast("type", kind), hook=self._hook)
                for each in notes:
                    found = each.function(found) if isinstance(each, Check) else found
        except msgspec.ValidationError:
            if core is str and isinstance(value, (bool, int, float)):
                message = "must be text: put it in quotes"
            else:
                message = f"must be {expected(kind)}, not {_shown(value)}"
        except ValueError as error:
            message = str(error)
        else:
            return found
        name = path(loc)
        self.mistakes.append(Mistake(loc, f"{name}: {message}" if name else message, at_key))
        return value

    def _inside(self, value: object, core: object, loc: Loc) -> object:
        """Return a container with what is in it read, anything else as it is."""
        arguments = typing.get_args(core)
        if isinstance(value, list) and typing.get_origin(core) in (list, tuple):
            return [self.value(each, arguments[0], (*loc, n)) for n, each in enumerate(value)]
        if not isinstance(value, dict):
            return value
        structs = [
            each
            for each in _choices(core)
            if isinstance(each, type) and issubclass(each, msgspec.Struct)
        ]
        if len(structs) == 1:
            return self._keys(value, structs[0], loc)
        if structs:
            return self._tagged(value, structs, loc)
        if typing.get_origin(core) in (dict, Mapping):
            return {
                self.value(key, arguments[0], (*loc, key), at_key=True): self.value(
                    each, arguments[1], (*loc, key)
                )
                for key, each in value.items()
            }
        return value

    def _tagged(self, data: _Mapping, structs: list[type[msgspec.Struct]], loc: Loc) -> object:
        """Return the one of ``structs`` that the data says by its tag it is."""
        field = str(structs[0].__struct_config__.tag_field)
        tags = {each.__struct_config__.tag: each for each in structs}
        if isinstance(tag := data.get(field), str) and tag in tags:
            return self._keys(data, tags[tag], loc)
        if tag is None:
            self._missing(field, loc)
        else:
            wanted = _either([repr(each) for each in tags])
            message = f"{path((*loc, field))}: must be {wanted}, not {_shown(tag)}"
            self.mistakes.append(Mistake((*loc, field), message))
        return data

    def _keys(self, data: _Mapping, kind: type[msgspec.Struct], loc: Loc) -> object:
        known = fields(kind)
        tag = kind.__struct_config__.tag_field
        before = len(self.mistakes)
        for key in data:
            if key not in known and key != tag:
                others = f" (known: {', '.join(sorted(known))})"
                message = f"unknown key {key!r}{nearest(key, known) or others}"
                self.mistakes.append(Mistake((*loc, key), message, at_key=True))
        values = {}
        for key, field in known.items():
            if data.get(key) is not None:
                values[field.name] = self.value(data[key], field.type, (*loc, key))
            elif field.required:
                self._missing(key, loc)
        if len(self.mistakes) > before:
            return data
        if "given" in kind.__struct_fields__:
            values["given"] = tuple(values)
        return kind(**values)

    def _missing(self, key: str, loc: Loc) -> None:
        inside = f" in {path(loc)}" if loc else ""
        self.mistakes.append(Mistake((*loc, key), f"the key {key!r} is missing{inside}"))


def _choices(kind: object) -> list[object]:
    """Return the types of a union without None, or the type alone."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return [each for each in typing.get_args(kind) if each is not _NOTHING]
    return [kind]


def _either(words: list[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, (dict, list)):
        kind = "mapping" if isinstance(value, dict) else "list"
        return f"a {kind}" if value else f"an empty {kind}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
