"""What the operator configured of the service, its hooks and its notifications."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

OnStop = Literal["finish", "cancel"]
LogFormat = Literal["auto", "text", "json", "journald"]
Outcome = Literal["failure", "success"]
# The moments at which hooks run, in the order in which they come.
Moment = Literal["before_save", "after_save", "on_failure", "before_restore", "after_restore"]

DAY = 86400.0
HOOKS_DIRECTORY = Path("/etc/mapsave/hooks.d")


@dataclasses.dataclass(frozen=True)
class Hooks:
    """Which executables of ``directory`` run at which moment; ``timeout`` seconds for each."""

    directory: Path = HOOKS_DIRECTORY
    timeout: float = 60.0
    before_save: tuple[str, ...] = ()
    after_save: tuple[str, ...] = ()
    on_failure: tuple[str, ...] = ()
    before_restore: tuple[str, ...] = ()
    after_restore: tuple[str, ...] = ()

    def of(self, moment: Moment) -> tuple[str, ...]:
        """Return the names of the executables that run at ``moment``."""
        found: tuple[str, ...] = getattr(self, moment)
        return found


@dataclasses.dataclass(frozen=True)
class Webhook:
    """Where outcomes are reported: a POST of JSON to ``url``, at most ``timeout`` seconds an
    attempt."""

    url: str
    on: tuple[Outcome, ...] = ("failure",)
    timeout: float = 10.0


@dataclasses.dataclass(frozen=True)
class Listen:
    """A TCP address with mutual TLS: clients prove by a certificate of ``clients`` who they are.

    ``crl`` is a file of revocation lists. ``operators`` and ``readers`` are the common names that
    may do so much; others are refused.
    """

    address: str
    certificate: Path
    key: Path
    clients: Path
    operators: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()
    crl: Path | None = None


@dataclasses.dataclass(frozen=True)
class Service:
    """How mapsaved runs.

    ``group`` owns the socket; ``operators`` and ``readers`` are groups of users. ``concurrency``
    and ``per_file_system`` are saves at once; ``bandwidth`` is in bytes per second for all saves
    to one file system together. ``history`` is for how many seconds ended operations are kept,
    ``stop_timeout`` for how many a stop waits for what runs before it is cancelled.
    """

    group: str | None = None
    operators: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()
    on_stop: OnStop = "finish"
    concurrency: int = 4
    per_file_system: int = 2
    bandwidth: int | None = None
    history: float = 90 * DAY
    log: LogFormat = "auto"
    textfile: Path | None = None
    listen: Listen | None = None
    stop_timeout: float = 600.0


def host_and_port(address: str) -> tuple[str, int]:
    """Return the parts of ``127.0.0.1:8443`` or ``[::1]:8443``; raise ValueError if it is neither.

    A name is not taken: what it means may change, and the service would listen elsewhere.
    """
    import ipaddress

    host, _, port = address.rpartition(":")
    try:
        found = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise ValueError(f"{address!r} is not ADDRESS:PORT with a numeric address") from None
    if (found.version == 6) != host.startswith("[") or host.startswith("[") != host.endswith("]"):
        raise ValueError(f"{address!r}: put an IPv6 address in brackets")
    if not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
        raise ValueError(f"{address!r}: the port is not a number from 1 to 65535")
    return str(found), int(port)


def hook_name(value: str) -> str:
    """Return the name of an executable in the hooks directory; raise ValueError if none."""
    if not value or "/" in value or value.startswith(".") or "\0" in value:
        raise ValueError("must be the name of an executable in the hooks directory")
    return value


def url(value: str) -> str:
    """Return the address of a webhook; raise ValueError if it is none."""
    import urllib.parse

    try:
        found = urllib.parse.urlsplit(value)
        port = found.port
    except ValueError as error:
        raise ValueError(f"not a URL: {error}") from None
    if found.scheme not in ("http", "https") or not found.hostname or port == 0:
        raise ValueError("must be a URL such as https://host/path")
    if not value.isprintable() or " " in value:
        raise ValueError("must not contain spaces or control characters")
    return value


def of(kind: type[Any], found: dict[str, Any] | None, **places: Any) -> Any:
    """Return the dataclass ``kind`` of what a file gives; what is None keeps its default."""
    given = {key: value for key, value in (found or {}).items() if value is not None}
    given = {key: tuple(each) if isinstance(each, list) else each for key, each in given.items()}
    return kind(**{**given, **{key: value for key, value in places.items() if value is not None}})
