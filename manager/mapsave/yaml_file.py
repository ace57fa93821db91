"""Read one YAML file and say, for whatever is wrong in it, its line.

What comes out is plain data (dict with text keys, list, str, int, float, bool, None). The input may
be anything: only ConfigMissing, NotPermitted and ConfigError come out. Differences from YAML 1.1,
all of them to spare the operator a surprise: ``on``, ``off``, ``yes`` and ``no`` stay text
(``-sandbox on`` in an argument list; a guest named ``no``), and so do times, dates and ``1:30``;
keys are text; merge keys, foreign tags and a second document are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from mapsave import errors, keys

if TYPE_CHECKING:
    from mapsave.keys import Loc

T = TypeVar("T")
Mark = tuple[int, int]  # line and column, from 1

MAX_BYTES = 8 * 1024 * 1024  # room for 20,000 guests and more
MAX_DEPTH = 32  # composing recurses, in libyaml's binding without any check of the C stack
MAX_VALUES = 400_000  # counted with every alias expanded, because a reader of the data expands it

_BASE_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
_SCALARS = {_TAG + name for name in ("str", "int", "float", "bool", "null")}


class _Loader(_BASE_LOADER):  # type: ignore[misc]  # chosen at run time
    """The safe loader with fewer words and numbers that turn into something else than text."""

    # Each pattern accepts a subset of what YAML 1.1 does, so that files of any YAML writer, which
    # quotes by the rules of 1.1, keep their meaning.
    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012  # PyYAML's own interface


for _name, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"-?(?:0|[1-9][0-9]*)|0[0-7]+", "-0123456789"),  # 0640 is octal, as in chmod
    ("float", r"-?[0-9]+\.[0-9]*(?:[eE][-+][0-9]+)?", "-0123456789"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), list(_first))


class Document:
    """The data of one YAML file and the place of each value; ``loc`` is the path of keys to it."""

    def __init__(
        self,
        path: Path,
        data: dict[str, object],
        values: Mapping[Loc, Mark] | None = None,
        keys: Mapping[Loc, Mark] | None = None,
    ) -> None:
        self.path = path
        self.data = data
        self._values = values or {}
        self._keys = keys or {}

    def known(self, loc: Loc) -> Loc:
        """Return as much of ``loc`` as the file has."""
        while loc and loc not in self._values:
            loc = loc[:-1]
        return loc

    def line(self, loc: Loc) -> int | None:
        """Return the line, from 1, of ``loc`` or of what holds it; None in an empty file."""
        mark = self._values.get(self.known(loc))
        return mark[0] if mark else None

    def error(
        self, loc: Loc, message: str, hint: str | None = None, *, at_key: bool = False
    ) -> errors.ConfigError:
        """Return the error ``file:line:column: message`` for the value, or the key, at ``loc``."""
        known = self.known(loc)
        mark = self._values.get(known)
        return _error(self.path, self._keys.get(known, mark) if at_key else mark, message, hint)

    def validate(self, kind: type[T], hook: keys.Hook | None = None) -> T:
        """Return the data as an instance of ``kind``, as ``keys.read`` does.

        Raises ConfigError naming the first thing wrong; ``data["errors"]`` lists them all.
        """
        try:
            return keys.read(self.data, kind, hook)
        except keys.Mistakes as exc:
            mistakes = exc.found
        raise self.refused(mistakes)

    def refused(self, mistakes: Sequence[keys.Mistake]) -> errors.ConfigError:
        """Return the error that names the first of ``mistakes``, by its place in the file;
        ``data["errors"]`` lists them all."""
        found = [self.error(it.loc, it.message, at_key=it.at_key) for it in mistakes]
        found.sort(key=lambda error: (error.data["line"] or 0, error.data["column"] or 0))
        first, *rest = found
        message = first.message + (f" (and {len(rest)} more)" if rest else "")
        hint = "also wrong:\n" + "\n".join(error.message for error in rest) if rest else None
        listed = [{"message": error.message, **error.data} for error in found]
        return errors.ConfigError(message, hint=hint, **first.data, errors=listed)


def read(path: Path) -> Document:
    """Return the YAML document in the file at ``path``.

    Raises ConfigMissing or NotPermitted if it cannot be read, ConfigError with file, line and
    column if it is not one YAML mapping of plain data within the limits above. An empty file is an
    empty mapping.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except PermissionError as exc:
        raise errors.denied(f"cannot read {path}: {exc.strerror}", path, file=str(path)) from None
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the path
        reason = getattr(exc, "strerror", None) or str(exc)
        raise errors.ConfigMissing(f"cannot read {path}: {reason}", file=str(path)) from None
    return parse(raw, path)


def parse(raw: bytes, path: Path) -> Document:
    """Return the document in ``raw``; messages name the file ``path``. Raises as ``read`` does."""
    if len(raw) > MAX_BYTES:
        raise _error(path, None, f"larger than {MAX_BYTES} bytes")
    text = _decode(raw, path)
    try:
        _check_events(text, path)
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as exc:
        raise _from_yaml(path, exc) from None
    if node is None:
        return Document(path, {})
    builder = _Builder(path)
    data = builder.value(node, (), node.start_mark)
    if data is None:  # comments, or nothing but "---"
        return Document(path, {})
    if not isinstance(data, dict):
        raise _error(path, _mark(node.start_mark), "the file must be a mapping of keys to values")
    return Document(path, data, builder.values, builder.keys)


def _decode(raw: bytes, path: Path) -> str:
    """Return the text of ``raw``; raise ConfigError for what is not printable UTF-8."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        before = raw[: exc.start].decode("utf-8", "replace")
        raise _error(path, _place(before), "not UTF-8") from None
    bad = yaml.reader.Reader.NON_PRINTABLE.search(text)
    if bad:
        raise _error(path, _place(text[: bad.start()]), f"character {bad[0]!a} is not allowed")
    return text


def _check_events(text: str, path: Path) -> None:
    """Raise ConfigError for what is too deep or too much to be composed.

    Parsing to events neither recurses nor keeps anything.
    """
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_Loader)):
        if count > 2 * MAX_VALUES:  # keys are events too
            raise _error(path, _mark(event.start_mark), f"more than {MAX_VALUES} values")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                message = f"nested deeper than {MAX_DEPTH} levels"
                raise _error(path, _mark(event.start_mark), message)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class _Builder:
    """Turn composed nodes into plain data and note the place of each value."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[Loc, Mark] = {}
        self.keys: dict[Loc, Mark] = {}
        self._open: set[int] = set()
        self._seen: set[int] = set()
        self._count = 0
        self._scalars = yaml.constructor.SafeConstructor()

    def value(self, node: yaml.Node, loc: Loc, holder: Any) -> object:
        """Return the data of ``node``; ``holder`` is the mark of the key that it belongs to."""
        self._count += 1
        if self._count > MAX_VALUES:
            raise self._error(holder, f"more than {MAX_VALUES} values, aliases expanded")
        if id(node) in self._open:
            raise self._error(holder, "an alias points at what contains it")
        # A nested block begins below its key, an alias elsewhere: there the key is the place.
        elsewhere = id(node) in self._seen or getattr(node, "flow_style", None) is False
        self._seen.add(id(node))
        self.values[loc] = _mark(holder if elsewhere else node.start_mark)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        is_mapping = isinstance(node, yaml.MappingNode)
        if node.tag != _TAG + ("map" if is_mapping else "seq"):
            raise self._unknown_tag(node)
        self._open.add(id(node))
        data = (
            dict(self._pairs(node, loc))
            if isinstance(node, yaml.MappingNode)
            else [
                self.value(item, (*loc, index), item.start_mark)
                for index, item in enumerate(node.value)
            ]
        )
        self._open.remove(id(node))
        return data

    def _pairs(self, node: yaml.MappingNode, loc: Loc) -> Iterator[tuple[str, object]]:
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            mark = key_node.start_mark
            if key_node.tag == _TAG + "merge":
                raise self._error(mark, "merge keys (<<) are not supported: write the keys out")
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._error(mark, "a key must be text")
            key = self._scalar(key_node)
            if not isinstance(key, str):
                shown = key_node.value or "(empty)"
                raise self._error(mark, f"the key {shown[:40]} must be text: put it in quotes")
            if key in lines:
                raise self._error(mark, f"duplicate key {key!r}: also in line {lines[key]}")
            lines[key] = mark.line + 1
            self.keys[(*loc, key)] = _mark(mark)
            yield key, self.value(value_node, (*loc, key), mark)

    def _scalar(self, node: yaml.ScalarNode) -> object:
        """Return the text, number, truth value or None of a scalar."""
        if node.tag not in _SCALARS:
            raise self._unknown_tag(node)
        try:
            value = self._scalars.construct_object(node)
            if isinstance(value, str):
                value.encode()  # PyYAML without libyaml lets "\ud800" pass
        except (ValueError, LookupError, OverflowError, yaml.YAMLError):
            kind = node.tag.removeprefix(_TAG)
            raise self._error(node.start_mark, f"not a valid {kind}: {node.value[:40]!a}") from None
        if isinstance(value, int) and abs(value) >= 1 << 63:
            raise self._error(node.start_mark, "the number is too large")
        return value

    def _unknown_tag(self, node: yaml.Node) -> errors.ConfigError:
        tag = str(node.tag).replace(_TAG, "!!")
        return self._error(node.start_mark, f"the tag {tag[:80]!a} is not supported here")

    def _error(self, mark: Any, message: str) -> errors.ConfigError:
        return _error(self.path, _mark(mark), message)


def _from_yaml(path: Path, exc: yaml.YAMLError) -> errors.ConfigError:
    mark = getattr(exc, "problem_mark", None) or getattr(exc, "context_mark", None)
    words = (getattr(exc, "context", None), getattr(exc, "problem", None))
    text = ", ".join(word for word in words if word) or str(exc)
    return _error(path, _mark(mark) if mark else None, f"not valid YAML: {text}")


def _error(
    path: Path, mark: Mark | None, message: str, hint: str | None = None
) -> errors.ConfigError:
    line, column = mark or (None, None)
    where = ":".join(str(part) for part in (path, line, column) if part is not None)
    return errors.ConfigError(
        f"{where}: {message}", hint=hint, file=str(path), line=line, column=column
    )


def _mark(mark: Any) -> Mark:
    return mark.line + 1, mark.column + 1


def _place(before: str) -> Mark:
    """Return line and column, from 1, of what follows the text ``before``."""
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
