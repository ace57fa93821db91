"""Split QMP's byte stream into JSON values, with the errors that QEMU gives for bad ones.

QMP is a stream of JSON objects without separators: a message ends where its brackets balance.
QEMU's dialect also takes strings in single quotes. After an error the parser starts afresh after
the offending character, so one bad message can give several errors.

Source: QEMU's ``qobject/json-lexer.c``, ``json-streamer.c``, ``json-parser.c`` of 10.0, observed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

# After a stray character the lexer skips up to one that can stand between tokens.
_RECOVERY = re.compile(rb"\A[^\x00-\x1f\xfe\xff:,\[\]{}]*")
_STRING = re.compile(
    rb'"(?:[^"\\\x00-\x1f\xfe\xff]|\\[\x20-\xfd])*|' rb"'(?:[^'\\\x00-\x1f\xfe\xff]|\\[\x20-\xfd])*"
)
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_NUMBER_PREFIX = re.compile(rb"-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?(?:[eE][+-]?[0-9]*)?)?")
_KEYWORD = re.compile(rb"[a-z]+")
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", **{c: c for c in "\"'\\/"}}
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

    def feed(self, data: bytes) -> Iterator[object]:
        """Yield each complete value in ``data`` and what came before, JsonError for a bad one."""
        self._buffer += data
        while True:
            try:
                token = self._next_token()
                if token is None:
                    return
                if not self._complete(token):
                    continue
                tokens = self._tokens
                self._reset()
                yield _Parser(tokens).value()
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
        left = (self._braces, self._brackets)
        return min(left) < 0 or not any(left)

    def _next_token(self) -> _Token | None:
        """Return the next whole token; None if it is still coming. Raises JsonError."""
        if self._recovering:
            self._buffer = _RECOVERY.sub(b"", self._buffer, count=1)
            self._recovering = not self._buffer
        buffer = self._buffer = self._buffer.lstrip(b" \t\r\n")
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
        if end == len(buffer) or (buffer[end:] == b"\\"):
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
    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._at = 0

    def _peek(self) -> str:
        return self._tokens[self._at].kind if self._at < len(self._tokens) else ""

    def _next(self) -> _Token:
        if self._at == len(self._tokens):
            raise JsonError("premature EOI")
        token = self._tokens[self._at]
        self._at += 1
        return token

    def value(self) -> object:
        token = self._next()
        match token.kind:
            case "{":
                return self._object()
            case "[":
                return self._array()
            case "string":
                return _unescape(token.text)
            case "number":
                text = token.text.decode()
                return float(text) if any(mark in text for mark in ".eE") else int(text)
            case "keyword":
                word = token.text.decode()
                if word not in _KEYWORDS:
                    raise JsonError(f"invalid keyword '{word}'")
                return _KEYWORDS[word]
        raise JsonError("expecting value")

    def _elements(self, end: str, kind: str) -> Iterator[None]:
        """Yield at each place where an element begins, up to the bracket ``end``."""
        if self._peek() == end:
            self._next()
            return
        while True:
            yield
            token = self._next()
            if token.kind == end:
                return
            if token.kind != ",":
                raise JsonError(f"expected separator in {kind}")

    def _object(self) -> dict[str, object]:
        members: dict[str, object] = {}
        for _ in self._elements("}", "dict"):
            key = self.value()
            if not isinstance(key, str):
                raise JsonError("key is not a string in object")
            if self._next().kind != ":":
                raise JsonError("missing : in object pair")
            value = self.value()
            if key in members:
                raise JsonError("duplicate key")
            members[key] = value
        return members

    def _array(self) -> list[object]:
        return [self.value() for _ in self._elements("]", "list")]


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
            if text[at + 1] not in _ESCAPES:
                raise JsonError("invalid escape sequence in string")
            out.append(_ESCAPES[text[at + 1]])
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
