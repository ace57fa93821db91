"""What is around the tar: zstd, and age around that. Each is left out where it is not wanted.

An archive is ``age(zstd(tar))``, in the formats of the commands ``age`` and ``zstd``. What is read
is recognised by how it begins.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from mapsave import blocking, errors
from mapsave.archive import libraries
from mapsave.archive.channel import Channel

if TYPE_CHECKING:
    from concurrent import futures

    from _typeshed import ReadableBuffer, WriteableBuffer

    from mapsave.archive.keys import Identity, Recipient

T = TypeVar("T")
R = TypeVar("R")

DEFAULT_LEVEL = 3
ENCRYPTED_LEVEL = 1  # age takes a processor of its own, and zstd has what is left
MOST_LEVEL = 19  # more need as much memory again at import
_BUFFER = 1 << 20  # bytes
_AHEAD_OF_AGE = 256 << 10  # bytes; it reads 8 KiB at a time
_PIECE = 128 << 10  # bytes that zstd reads and writes at a time
_AHEAD = 512  # bytes that say what an archive is
_AGE = b"age-encryption.org/v1\n"
_ARMOURED = b"-----BEGIN AGE ENCRYPTED FILE-----"
_ZSTD = b"\x28\xb5\x2f\xfd"
_UNDO = 2.0  # seconds
_AGAIN = "copy or export it again"
_MOST_WINDOW = 128 << 20  # bytes of memory; what zstd takes without --long=31


class Sink(Protocol):
    """What takes all of ``data``, and may keep nothing of it."""

    def write(self, data: ReadableBuffer, /) -> int: ...


@dataclasses.dataclass(frozen=True)
class Coding:
    """How an archive is written: compressed at ``level`` (None: not), and for whom encrypted."""

    level: int | None = DEFAULT_LEVEL
    recipients: tuple[Recipient, ...] = ()


@contextlib.contextmanager
def encoding(out: Sink, coding: Coding) -> Iterator[Sink]:
    """Yield what is to be written to, which ends up in ``out``: all of it once this is left.

    Where it is left by an exception, what is in ``out`` is cut short, and known to be. Raises
    Unsupported, and what ``out`` raises.
    """
    with contextlib.ExitStack() as stack:
        if coding.recipients:
            out = stack.enter_context(_encrypting(out, coding.recipients))
        if coding.level is not None:
            out = stack.enter_context(_compressing(out, coding.level))
        yield out


@contextlib.contextmanager
def _compressing(out: Sink, level: int) -> Iterator[Sink]:
    zstd = libraries.zstd()
    chosen = zstd.ZstdCompressionParameters.from_level(level, threads=-1, write_checksum=True)
    compressor = zstd.ZstdCompressor(compression_params=chosen)
    writer: Sink = compressor.stream_writer(out, write_size=_PIECE, closefd=False)
    yield writer
    writer.close()  # type: ignore[attr-defined]  # not where something failed: cut short


class _Guard(Generic[T, R]):
    """What a library reads or writes by: it does nothing more once it has failed, and knows why.

    Of an exception pyrage keeps the words only.
    """

    def __init__(self, function: Callable[[T], R]) -> None:
        self._function = function
        self.failure: BaseException | None = None

    def _call(self, argument: T) -> R:
        if self.failure is not None:
            raise self.failure
        try:
            return self._function(argument)
        except BaseException as error:
            self.failure = error
            raise

    read = write = _call

    def refuse(self) -> None:
        """Have it do nothing more."""
        self.failure = self.failure or _early()

    def flush(self) -> None:
        """Keep nothing back, as ``write`` does."""


class _Into:
    """Writes to a channel, whose reader may fail."""

    def __init__(self, channel: Channel, failure: Callable[[], BaseException]) -> None:
        self._channel = channel
        self._failure = failure

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return self._channel.write(data)
        except BrokenPipeError:
            raise self._failure() from None


@contextlib.contextmanager
def _encrypting(out: Sink, recipients: Sequence[Recipient]) -> Iterator[Sink]:
    """Encrypt in another thread: pyrage reads and writes until it has all."""
    age = libraries.age()
    guard = _Guard(out.write)
    channel = Channel()

    def encrypt() -> None:
        try:
            age.encrypt_io(io.BufferedReader(channel, _AHEAD_OF_AGE), guard, list(recipients))
        finally:
            channel.leave()

    def failure() -> BaseException:
        return guard.failure or outcome.exception() or _early()

    outcome = blocking.begin_apart(encrypt)
    with contextlib.ExitStack() as stack:
        stack.callback(_end, outcome, guard)
        try:
            yield _Into(channel, failure)
        except BaseException:
            guard.refuse()  # else it would end as if that were all
            raise
        finally:
            channel.end()
        if outcome.exception() is not None:
            raise failure()


def _end(outcome: futures.Future[None], guard: _Guard[T, R]) -> None:
    """Wait for a thread that uses what the caller closes next; not for storage that hangs."""
    guard.refuse()
    with contextlib.suppress(TimeoutError):
        outcome.exception(_UNDO)


def _early() -> errors.MapsaveError:
    return errors.MapsaveError("encryption or decryption ended early")


class Source:
    """What is read of an archive: the tar, decrypted and decompressed."""

    def __init__(self, readinto: Callable[[memoryview], int | None], last: bytes = b"") -> None:
        """After the tar comes ``last``, and nothing else."""
        self._readinto = readinto
        self._last = last

    def fill(self, view: memoryview) -> None:
        """Read as many bytes as ``view`` has. Raises BadArchive, and as ``finish``."""
        if self._up_to(view) < len(view):
            raise errors.BadArchive("the archive is cut short", hint=_AGAIN)

    def exactly(self, count: int) -> bytes:
        """Return so many bytes, which are few. Raises as ``fill``."""
        found = bytearray(count)
        with memoryview(found) as view:
            self.fill(view)
        return bytes(found)

    def finish(self) -> None:
        """See that the archive ends here, and is whole. Raises BadArchive, NotDecrypted."""
        found = bytearray(len(self._last) + 1)
        with memoryview(found) as view:
            count = self._up_to(view)
        if bytes(found[:count]) != self._last:
            raise errors.BadArchive("the archive does not end where it should", hint=_AGAIN)

    def _up_to(self, view: memoryview) -> int:
        done = 0
        try:
            while done < len(view) and (count := self._readinto(view[done:])):
                done += count
        except errors.MapsaveError:
            raise
        except Exception as error:
            # Of zstandard, which need not be loaded.
            if type(error).__name__ != "ZstdError":
                raise
            raise errors.BadArchive(
                f"the archive cannot be decompressed: {error}", hint=_AGAIN
            ) from None
        return done


class _Joined(io.RawIOBase):
    """Several readers, one after the other. What a pipe has is read, and no more waited for."""

    def __init__(self, *parts: io.BufferedIOBase) -> None:
        self._parts = list(parts)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        while self._parts:
            if count := self._parts[0].readinto1(buffer):
                return count
            self._parts.pop(0)
        return 0


@contextlib.contextmanager
def decoding(raw: io.RawIOBase, identities: Sequence[Identity]) -> Iterator[Source]:
    """Yield what is read of an archive, which is read from ``raw``.

    Raises BadArchive, NotDecrypted, UsageError, Unsupported.
    """
    with contextlib.ExitStack() as stack:
        ahead, reader = _ahead(raw)
        if ahead.startswith(_AGE):
            if not identities:
                raise errors.NotDecrypted(
                    "the archive is encrypted", hint="name the file of an identity by --identity"
                )
            decrypted = stack.enter_context(_decrypting(reader, identities))
            ahead, reader = _ahead(decrypted)
        elif ahead.startswith(_ARMOURED):
            raise errors.BadArchive(
                "the archive is in age's text format", hint="'age -d … | mapsave import -' reads it"
            )
        elif identities:
            raise errors.UsageError("the archive is not encrypted", hint="leave out --identity")
        if not ahead.startswith(_ZSTD):
            yield Source(reader.readinto)
            return
        zstd = libraries.zstd()
        # The library does not report a frame that is cut short. So another one follows, which is
        # read right after the tar only if the one before it is whole, its checksum included.
        last = os.urandom(16)
        whole = io.BufferedReader(_Joined(reader, io.BytesIO(zstd.compress(last))), _BUFFER)
        decompressor = zstd.ZstdDecompressor(max_window_size=_MOST_WINDOW)
        how = {"read_size": _PIECE, "read_across_frames": True, "closefd": False}
        yield Source(decompressor.stream_reader(_Guard(whole.read1), **how).readinto, last)


def _ahead(raw: io.RawIOBase) -> tuple[bytes, io.BufferedReader]:
    """Return the first bytes, and a reader of all."""
    reader = io.BufferedReader(raw, _BUFFER)
    ahead = reader.read(_AHEAD)
    return ahead, io.BufferedReader(_Joined(io.BytesIO(ahead), reader), _BUFFER)


class _Decrypted(io.RawIOBase):
    """Reads what another thread decrypts; its end is that of a good archive."""

    def __init__(self, channel: Channel, failure: Callable[[], BaseException | None]) -> None:
        self._channel = channel
        self._failure = failure

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        count = self._channel.readinto(buffer)
        if not count and (error := self._failure()) is not None:
            raise error
        return count


@contextlib.contextmanager
def _decrypting(reader: io.BufferedReader, identities: Sequence[Identity]) -> Iterator[_Decrypted]:
    """Decrypt in another thread. What is read was authenticated, but for its end."""
    age = libraries.age()
    guard = _Guard(reader.read1)
    channel = Channel()

    def decrypt() -> None:
        try:
            age.decrypt_io(guard, channel, list(identities))
        finally:
            channel.end()

    def failure() -> BaseException | None:
        error = outcome.exception()
        if error is None or guard.failure is not None:
            return guard.failure
        if not isinstance(error, age.DecryptError | OSError):  # it is one or the other, by place
            return error
        if "matching keys" in str(error):
            return errors.NotDecrypted(
                "the archive is encrypted for none of the identities, or its header is damaged",
                hint="name the file of another identity by --identity",
            )
        return errors.BadArchive(f"the archive cannot be decrypted: {error}", hint=_AGAIN)

    outcome = blocking.begin_apart(decrypt)
    with contextlib.ExitStack() as stack:
        stack.callback(_end, outcome, guard)
        stack.callback(channel.leave)
        yield _Decrypted(channel, failure)
