"""Split QMP's byte stream into JSON values, with the errors that QEMU gives for bad ones.

QMP is a stream of JSON objects without separators: a message ends where its brackets balance.
QEMU's dialect also takes strings in single quotes. After an error the parser starts afresh after
the offending character, so one bad message can give several errors.

Source: QEMU's ``qobject/json-lexer.c``, ``json-streamer.c``, ``json-parser.c`` of 10.0, observed.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

# After a stray character the lexer skips up to one that can stand between tokens.
_RECOVERY = re.compile(rb"[^\x00-\x1f\xfe\xff:,\[\]{}]*")
_SPACE = re.compile(rb"[ \t\r\n]*")
_STRING = re.compile(
    rb'"(?:[^"\\\x00-\x1f\xfe\xff]|\\[\x20-\xfd])*|' rb"'(?:[^'\\\x00-\x1f\xfe\xff]|\\[\x20-\xfd])*"
)
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_NUMBER_PREFIX = re.compile(rb"-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?(?:[eE][+-]?[0-9]*)?)?")
_KEYWORD = re.compile(rb"[a-z]+")
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_KEYWORDS = {"true": True, "false": False, "null": None}
_PUNCTUATION = b"{}[]:,"


class JsonError(Exception):
    """The bytes are not JSON as QEMU reads it; the text is QEMU's."""

    def __init__(self, detail: str) -> None:
        super().__init__(f"JSON parse error, {detail}")


@dataclasses.dataclass(frozen=True)
class _Token:
    kind: str  # one of the punctuation characters, "string", "number", "keyword"
    text: bytes


class JsonStream:
    """Collects bytes and yields the values, or errors, that are complete."""

    def __init__(self) -> None:
        self._buffer = b""
        self._tokens: list[_Token] = []
        self._braces = 0
        self._brackets = 0
        self._recovering = False

    def feed(self, data: bytes) -> Iterator[Any]:
        """Yield each complete value in ``data`` and what came before, JsonError for a bad one."""
        self._buffer += data
        while True:
            try:
                token = self._next_token()
                if token is None:
                    return
                if not self._complete(token):
                    continue
                tokens, self._tokens = self._tokens, []
                self._reset()
                yield _Parser(tokens).parse()
            except JsonError as error:
                self._reset()
                yield error

    def _reset(self) -> None:
        self._tokens = []
        self._braces = self._brackets = 0

    def _complete(self, token: _Token) -> bool:
        self._braces += {"{": 1, "}": -1}.get(token.kind, 0)
        self._brackets += {"[": 1, "]": -1}.get(token.kind, 0)
        self._tokens.append(token)
        if self._braces < 0 or self._brackets < 0:
            return True
        return not (self._braces or self._brackets)

    def _next_token(self) -> _Token | None:
        """Return the next whole token; None if it is still coming. Raises JsonError."""
        if self._recovering:
            skipped = _RECOVERY.match(self._buffer)
            self._buffer = self._buffer[skipped.end() if skipped else 0 :]
            self._recovering = not self._buffer
        space = _SPACE.match(self._buffer)
        self._buffer = self._buffer[space.end() if space else 0 :]
        buffer = self._buffer
        if not buffer:
            return None
        first = buffer[:1]
        if first in (b'"', b"'"):
            return self._string(buffer, first)
        if first in b"-0123456789":
            return self._number(buffer)
        if b"a" <= first <= b"z":
            word = _KEYWORD.match(buffer)
            assert word is not None
            return self._take("keyword", word.end()) if word.end() < len(buffer) else None
        if first in _PUNCTUATION:
            return self._take(first.decode(), 1)
        raise self._stray(1)

    def _string(self, buffer: bytes, quote: bytes) -> _Token | None:
        match = _STRING.match(buffer)
        assert match is not None
        end = match.end()
        if buffer[end : end + 1] == quote:
            return self._take("string", end + 1)
        if buffer[end : end + 1] == b"\\" and len(buffer) < end + 2:
            return None
        if end == len(buffer):
            return None
        raise self._stray(end + (2 if buffer[end : end + 1] == b"\\" else 1))

    def _number(self, buffer: bytes) -> _Token | None:
        prefix = _NUMBER_PREFIX.match(buffer)
        assert prefix is not None
        if prefix.end() == len(buffer):
            return None
        match = _NUMBER.match(buffer)
        if match is None or match.end() != prefix.end():
            raise self._stray(prefix.end() + 1)
        if buffer[match.end() : match.end() + 1].isdigit():  # 01
            raise self._stray(match.end() + 1)
        return self._take("number", match.end())

    def _take(self, kind: str, length: int) -> _Token:
        token = _Token(kind, self._buffer[:length])
        self._buffer = self._buffer[length:]
        return token

    def _stray(self, length: int) -> JsonError:
        text = self._buffer[:length].decode("utf-8", "replace")
        self._buffer = self._buffer[length:]
        self._recovering = True
        return JsonError(f"stray '{text}'")


class _Parser:
    """Recursive descent over the tokens of one message."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._at = 0

    def parse(self) -> Any:
        return self._value()

    def _peek(self) -> str:
        return self._tokens[self._at].kind if self._at < len(self._tokens) else ""

    def _next(self) -> _Token:
        if self._at == len(self._tokens):
            raise JsonError("premature EOI")
        token = self._tokens[self._at]
        self._at += 1
        return token

    def _value(self) -> Any:
        token = self._next()
        if token.kind == "{":
            return self._object()
        if token.kind == "[":
            return self._array()
        if token.kind == "string":
            return _unescape(token.text)
        if token.kind == "number":
            text = token.text.decode()
            return float(text) if any(mark in text for mark in ".eE") else int(text)
        if token.kind == "keyword":
            word = token.text.decode()
            if word not in _KEYWORDS:
                raise JsonError(f"invalid keyword '{word}'")
            return _KEYWORDS[word]
        raise JsonError("expecting value")

    def _object(self) -> dict[str, Any]:
        members: dict[str, Any] = {}
        if self._peek() == "}":
            self._next()
            return members
        while True:
            self._pair(members)
            token = self._next()
            if token.kind == "}":
                return members
            if token.kind != ",":
                raise JsonError("expected separator in dict")

    def _pair(self, members: dict[str, Any]) -> None:
        key = self._value()
        if not isinstance(key, str):
            raise JsonError("key is not a string in object")
        if self._next().kind != ":":
            raise JsonError("missing : in object pair")
        value = self._value()
        if key in members:
            raise JsonError("duplicate key")
        members[key] = value

    def _array(self) -> list[Any]:
        items: list[Any] = []
        if self._peek() == "]":
            self._next()
            return items
        while True:
            items.append(self._value())
            token = self._next()
            if token.kind == "]":
                return items
            if token.kind != ",":
                raise JsonError("expected separator in list")


def _unescape(literal: bytes) -> str:
    try:
        text = literal.decode("utf-8")
    except UnicodeDecodeError:
        raise JsonError("invalid UTF-8 sequence in string") from None
    out: list[str] = []
    at = 1
    while at < len(text) - 1:
        if text[at] != "\\":
            out.append(text[at])
            at += 1
        elif text[at + 1] == "u":
            escape, code = _unicode_escape(text, at)
            if code == 0 or code < 0 or 0xD800 <= code < 0xE000:
                raise JsonError(f"{escape} is not a valid Unicode character")
            out.append(chr(code))
            at += len(escape)
        else:
            out.append(_simple_escape(text[at + 1]))
            at += 2
    return "".join(out)


def _unicode_escape(text: str, at: int) -> tuple[str, int]:
    """Return the escape at ``at``, both halves of a pair, and its character; -1 if bad."""
    high = _code_unit(text, at)
    if 0xD800 <= high < 0xDC00 and text[at + 6 : at + 8] == "\\u":
        low = _code_unit(text, at + 6)
        good = 0xDC00 <= low < 0xE000
        return text[at : at + 12], 0x10000 + ((high - 0xD800) << 10) + low - 0xDC00 if good else -1
    return text[at : at + 6], high


def _code_unit(text: str, at: int) -> int:
    digits = text[at + 2 : at + 6]
    return int(digits, 16) if re.fullmatch("[0-9a-fA-F]{4}", digits) else -1


def _simple_escape(letter: str) -> str:
    if letter in "\"'\\/":
        return letter
    if letter in _ESCAPES:
        return _ESCAPES[letter]
    raise JsonError("invalid escape sequence in string")
