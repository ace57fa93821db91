"""Split QMP's byte stream into JSON values, with the errors that QEMU gives for bad ones.

QMP is a stream of JSON objects without separators: a message ends where its brackets balance.
QEMU's dialect also takes strings in single quotes. After an error the parser starts afresh after
the offending character, so one bad message can give several errors.

Source: QEMU's ``qobject/json-lexer.c``, ``json-streamer.c``, ``json-parser.c`` of 10.0, observed;
where 11.1 differs is in ``versions``.
"""

import dataclasses
import re
from collections.abc import Generator, Iterator

from mapsave.emulator.versions import Json

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

    def __init__(self, detail: str, at: tuple[int, int] | None = None) -> None:
        where = "" if at is None else f"{at[0]}:{at[1]}: "
        super().__init__(f"{where}JSON parse error, {detail}")


Position = tuple[int, int]  # line and column, both from 1 on; a column is a byte
# Takes one token after the other, and returns the value that they are.
_Parse = Generator[None, "_Token", object]


@dataclasses.dataclass(frozen=True)
class _Token:
    kind: str  # one of the punctuation characters, "string", "number", "keyword"
    text: bytes
    at: Position


class JsonStream:
    """Collects bytes and yields the values, or errors, that are complete."""

    def __init__(self, version: Json) -> None:
        self._version = version
        self._buffer = b""
        self._at: Position = (1, 1)  # of the buffer
        self._recovering = False
        self._twice_at: Position | None = None
        self._reset()

    def feed(self, data: bytes) -> Iterator[object]:
        """Yield each complete value in ``data`` and what came before, JsonError for a bad one."""
        self._buffer += data
        while True:
            try:
                token = self._next_token()
            except JsonError as error:
                is_known = self._error is not None and self._version.has_positions
                self._reset()
                if not is_known:
                    yield error
                continue
            if token is None:
                return
            was_good = self._error is None
            done = self._parsed(token)
            error_now = self._error if was_good else None
            if error_now is not None and self._version.has_positions:
                yield error_now
            if self._is_balanced(token):
                if self._error is None:
                    yield done[0] if done else self._wrong(token, "premature EOI")
                elif not self._version.has_positions:
                    yield self._error
                self._reset()

    def _reset(self) -> None:
        self._braces = self._brackets = 0
        self._error: JsonError | None = None  # of the message under way, whose rest is skipped
        self._parse = _Parser(self._version).value()
        next(self._parse)

    def _parsed(self, token: _Token) -> list[object]:
        """Give ``token`` to the parser; return the value if it is complete."""
        if self._error is None:
            try:
                self._parse.send(token)
            except StopIteration as complete:
                return [complete.value]
            except _Bad as bad:
                self._error = self._wrong(token, str(bad))
        return []

    def _wrong(self, token: _Token, detail: str) -> JsonError:
        return JsonError(detail, token.at if self._version.has_positions else None)

    def _is_balanced(self, token: _Token) -> bool:
        self._braces += {"{": 1, "}": -1}.get(token.kind, 0)
        self._brackets += {"[": 1, "]": -1}.get(token.kind, 0)
        left = (self._braces, self._brackets)
        return min(left) < 0 or not any(left)

    def _next_token(self) -> _Token | None:
        """Return the next whole token; None if it is still coming. Raises JsonError."""
        if self._recovering:
            skipped = _RECOVERY.match(self._buffer)
            assert skipped is not None
            self._drop(skipped.end())
            self._recovering = not self._buffer
            self._twice_at = self._at
        self._drop(len(self._buffer) - len(self._buffer.lstrip(b" \t\r\n")))
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
        token = _Token(kind, self._buffer[:length], self._position())
        self._drop(length)
        if kind in ("number", "keyword"):
            self._twice_at = self._at
        return token

    def _stray(self, length: int) -> JsonError:
        at = self._position()
        text = self._drop(length).decode("utf-8", "replace")
        self._recovering = True
        return JsonError(f"stray '{text}'", at if self._version.has_positions else None)

    def _position(self) -> Position:
        """Return where the next token is, one further if QEMU has looked at its first byte already.

        It has where that byte ended a number or a word, or what is skipped after an error.
        """
        line, column = self._at
        return (line, column + (self._at == self._twice_at))

    def _drop(self, length: int) -> bytes:
        text, self._buffer = self._buffer[:length], self._buffer[length:]
        line, column = self._at
        if newlines := text.count(b"\n"):
            line, column = line + newlines, length - text.rindex(b"\n")
        else:
            column += length
        self._at = (line, column)
        return text


class _Bad(Exception):
    """The token that came last has no place there, or completes what has none."""


class _Parser:
    def __init__(self, version: Json) -> None:
        self._version = version

    def value(self) -> _Parse:
        return (yield from self._value((yield)))

    def _value(self, token: _Token) -> _Parse:
        match token.kind:
            case "{":
                return (yield from self._object())
            case "[":
                return (yield from self._array())
            case "string":
                return _unescape(token.text)
            case "number":
                text = token.text.decode()
                return float(text) if any(mark in text for mark in ".eE") else int(text)
            case "keyword":
                word = token.text.decode()
                if word not in _KEYWORDS:
                    raise _Bad(f"invalid keyword '{word}'")
                return _KEYWORDS[word]
        raise _Bad("expecting value")

    def _is_last(self, token: _Token, end: str) -> bool:
        """Return whether ``token``, after an element, is the bracket ``end``. Raises _Bad."""
        if token.kind not in (end, ","):
            raise _Bad(self._version.expected_separators[end])
        return token.kind == end

    def _object(self) -> _Parse:
        members: dict[str, object] = {}
        token = yield
        if token.kind == "}":
            return members
        while True:
            if self._version.expecting_key and token.kind != "string":
                raise _Bad(self._version.expecting_key)
            key = yield from self._value(token)
            if not isinstance(key, str):
                raise _Bad("key is not a string in object")
            token = yield
            if token.kind != ":":
                raise _Bad(self._version.expecting_colon)
            token = yield
            value = yield from self._value(token)
            if key in members:
                raise _Bad("duplicate key")
            members[key] = value
            if self._is_last((yield), "}"):
                return members
            token = yield

    def _array(self) -> _Parse:
        elements: list[object] = []
        token = yield
        while token.kind != "]" or elements:
            elements.append((yield from self._value(token)))
            if self._is_last((yield), "]"):
                break
            token = yield
        return elements


def _unescape(literal: bytes) -> str:
    try:
        text = literal.decode("utf-8")
    except UnicodeDecodeError:
        raise _Bad("invalid UTF-8 sequence in string") from None
    out: list[str] = []
    at = 1
    while at < len(text) - 1:
        if text[at] != "\\":
            out.append(text[at])
            at += 1
        elif text[at + 1] == "u":
            escape, code = _unicode_escape(text, at)
            if code == 0 or code < 0 or 0xD800 <= code < 0xE000:
                raise _Bad(f"{escape} is not a valid Unicode character")
            out.append(chr(code))
            at += len(escape)
        else:
            if text[at + 1] not in _ESCAPES:
                raise _Bad("invalid escape sequence in string")
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
