"""What the operator configured of the service, its hooks and its notifications."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, field

from mapsave import errors, keys
from mapsave.key_types import AtOnce, Duration, Place, Size, Text
from mapsave.keys import Check, Keys, help

OnStop = Literal["finish", "cancel"]
LogFormat = Literal["auto", "text", "json", "journald"]
Outcome = Literal["failure", "success"]
# The moments at which hooks run, in the order in which they come.
Moment = Literal["before_save", "after_save", "on_failure", "before_restore", "after_restore"]

DAY = 86400.0


def host_and_port(address: str) -> tuple[str, int]:
    """Return the parts of ``127.0.0.1:8443`` or ``[::1]:8443``; raise ValueError if it is neither.

    A host name is refused: what it resolves to may change, and the service would listen elsewhere.
    """
    import ipaddress

    host, _, port = address.rpartition(":")
    try:
        found = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise ValueError(f"{address!r} is not ADDRESS:PORT with a numeric address") from None
    if (found.version == 6) != host.startswith("[") or host.startswith("[") != host.endswith("]"):
        raise ValueError(f"{address!r}: put an IPv6 address in brackets")
    return str(found), _port(address, port)


def name_and_port(address: str) -> tuple[str, int]:
    """Return the parts of ``kvm1.example.org:8443``, or do as ``host_and_port``; raise ValueError
    if it is neither."""
    host, _, port = address.rpartition(":")
    if re.fullmatch(r"(?=.*[A-Za-z])[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", host):
        return host, _port(address, port)
    try:
        return host_and_port(address)
    except ValueError:
        raise ValueError(f"{address!r} is not NAME:PORT or ADDRESS:PORT") from None


def _port(address: str, port: str) -> int:
    if not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
        raise ValueError(f"{address!r}: the port is not a number from 1 to 65535")
    return int(port)


def hook_name(value: str) -> str:
    """Return the name of an executable in the hooks directory; raise ValueError for another."""
    if not value or "/" in value or value.startswith(".") or "\0" in value:
        raise ValueError("must be the name of an executable in the hooks directory")
    return value


def _address(value: str) -> str:
    host_and_port(value)
    return value


def _remote_address(value: str) -> str:
    name_and_port(value)
    return value


def check_url(value: str) -> str:
    """Return the address of a webhook; raise ValueError where it is none, without showing it."""
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


def check_credential(value: str) -> str:
    """Return the name of a credential (systemd.exec(5)); raise ValueError for another."""
    if not value or "/" in value or value.startswith(".") or not value.isprintable():
        raise ValueError("must be the name of a credential")
    return value


def check_webhook(webhook: "Webhook") -> "Webhook":
    """Return ``webhook``; raise ValueError unless just one key says where its address is."""
    given = [key for key in ("url", "url_file", "url_credential") if getattr(webhook, key)]
    if len(given) != 1:
        found = f", not {' and '.join(given)}" if given else ""
        raise ValueError(f"needs exactly one of url, url_file and url_credential{found}")
    return webhook


Hook = Annotated[str, Check(hook_name), Meta(title="a name")]
Executables = tuple[Hook, ...]


class Hooks(Keys, frozen=True):
    """Executables that run before and after each save and restore."""

    directory: Annotated[
        Place, help("The hooks directory, owned by root and writable by no one else.")
    ] = field(default_factory=lambda: Path("/etc/mapsave/hooks.d"))
    timeout: Annotated[Duration, help("Time limit of each hook.")] = 60.0
    before_save: Annotated[Executables, help("Run before a guest is touched.")] = ()
    after_save: Annotated[Executables, help("Run after the image is committed.")] = ()
    on_failure: Annotated[Executables, help("Run after a save or restore has failed.")] = ()
    before_restore: Annotated[Executables, help("Run before a destination is started.")] = ()
    after_restore: Annotated[Executables, help("Run after the guest is restored.")] = ()

    def of(self, moment: Moment) -> tuple[str, ...]:
        """Return the names of the executables that run at ``moment``."""
        return tuple(getattr(self, moment))


class Webhook(Keys, frozen=True):
    """Where outcomes are reported, by a POST of JSON."""

    url: Annotated[str | None, Check(check_url), help("An `http` or `https` address.")] = None
    url_file: Annotated[Place | None, help("File that holds the address instead.")] = None
    url_credential: Annotated[
        str | None,
        Check(check_credential),
        help("Credential of the service's unit that holds it (systemd.exec(5))."),
    ] = None
    on: Annotated[tuple[Outcome, ...], Meta(min_length=1), help("Which outcomes to report.")] = (
        "failure",
    )
    timeout: Annotated[Duration, help("Time limit of each attempt.")] = 10.0


class Listen(Keys, frozen=True):
    """A TCP address with mutual TLS; there is none without."""

    address: Annotated[
        str, Check(_address), help("Numeric address and port, such as `127.0.0.1:8443`.")
    ]
    certificate: Annotated[Place, help("File of the service's certificate (PEM).")]
    key: Annotated[Place, help("File of its key (PEM).")]
    clients: Annotated[Place, help("File of the CAs that sign the clients' certificates (PEM).")]
    operators: Annotated[
        tuple[Text, ...], help("Common names that may save, restore and cancel.")
    ] = ()
    readers: Annotated[tuple[Text, ...], help("Common names that may only read.")] = ()
    crl: Annotated[Place | None, help("File of the revocation lists of these CAs (PEM).")] = None


class Remote(Keys, frozen=True):
    """The service of another host, which listens with mutual TLS."""

    address: Annotated[
        str, Check(_remote_address), help("Name and port, such as `kvm1.example.org:8443`.")
    ]
    certificate: Annotated[Place, help("File of your certificate (PEM).")]
    key: Annotated[Place, help("File of its key (PEM).")]
    ca: Annotated[Place, help("File of the CAs that sign the service's certificate (PEM).")]
    crl: Annotated[Place | None, help("File of the revocation lists of these CAs (PEM).")] = None


def host(hosts: Mapping[str, Remote], name: str) -> Remote:
    """Return the service of another host. Raises UsageError where it is not configured."""
    if name not in hosts:
        raise errors.UsageError(
            f"no host {name!r} is configured",
            hint=keys.did_you_mean(name, hosts)
            or "add it to 'hosts:' of the file that --config or $MAPSAVE_CONFIG names",
        )
    return hosts[name]


class Service(Keys, frozen=True):
    """How mapsaved runs."""

    operators: Annotated[
        tuple[Text, ...], help("Groups whose members may save, restore and cancel.")
    ] = ()
    readers: Annotated[tuple[Text, ...], help("Groups whose members may only read.")] = ()
    on_stop: Annotated[OnStop, help("What to do with running saves when it stops.")] = "finish"
    stop_timeout: Annotated[
        Duration, help("How long a stop waits before it cancels running saves.")
    ] = 600.0
    concurrency: Annotated[AtOnce, help("Saves in parallel.")] = 4
    per_file_system: Annotated[AtOnce, help("Saves in parallel to one file system.")] = 2
    bandwidth: Annotated[
        Size | None, help("Bytes per second for all saves to one file system; by default no limit.")
    ] = None
    history: Annotated[Duration, help("How long finished operations are kept in the history.")] = (
        90 * DAY
    )
    log: Annotated[
        LogFormat, help("Log format; `auto` is `journald` if it listens, else `text`.")
    ] = "auto"
    textfile: Annotated[
        Place | None, help("File to write the metrics to, for node_exporter's textfile collector.")
    ] = None
    listen: Annotated[Listen | None, help("A TCP address with mutual TLS.")] = None
