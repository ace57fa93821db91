"""What the operator configured: where things are and which guests there are.

The rest of the manager sees only the frozen dataclasses of this file. YAML is loaded when there is
a file to read (``config_file.py``), and pydantic when something is wrong in it
(``config_models.py``), so that commands start at once.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mapsave import errors
from mapsave.service_settings import Hooks, Service, Webhook

if TYPE_CHECKING:
    from collections.abc import Mapping

SYSTEM_FILE = Path("/etc/mapsave/manager.yaml")
VARIABLE = "MAPSAVE_CONFIG"
LIBVIRT_URI = "qemu:///system"

LAUNCH_ENVIRONMENT = ("PATH", "LANG")

NAME_BYTES = 200  # leaves room for ".partial" and the like within the 255 bytes of a file name
ADDRESSES = ("qmp:", "libvirt:", "libvirt+")

Then = Literal["quit", "resume", "leave"]
Format = Literal["auto", "native", "libvirt"]
Switch = Literal["auto", "on", "off"]
ZeroPages = Literal["auto", "multifd", "legacy", "none"]
Pattern = Literal["random", "sparse", "fragmented", "linux"]
Clones = Literal["admin", "operator"]


@dataclass(frozen=True)
class LibvirtDomain:
    """A domain of a libvirt daemon."""

    domain: str
    uri: str = LIBVIRT_URI


@dataclass(frozen=True)
class EmulatedGuest:
    """An emulated QEMU, started on demand: ``memory`` in bytes, filled with ``pattern``."""

    memory: int
    pattern: Pattern = "fragmented"
    writer: bool = False


@dataclass(frozen=True)
class Guest:
    """One guest and how it is reached: exactly one of ``qmp``, ``libvirt`` and ``emulator``.

    ``launch`` is the command that starts the destination of a restore, without ``-incoming``; it
    is empty if there is none. ``launch_environment``, if not empty, takes the place of the general
    one. ``policy`` names the label policy of the guest's images. Guests of a higher ``priority``
    are saved and restored first where all of them are. ``clones`` says who may restore another
    guest's image into it.
    """

    name: str
    qmp: Path | None = None
    libvirt: LibvirtDomain | None = None
    emulator: EmulatedGuest | None = None
    launch: tuple[str, ...] = ()
    launch_environment: tuple[str, ...] = ()
    policy: str | None = None
    priority: int = 0
    clones: Clones = "admin"


@dataclass(frozen=True)
class Trust:
    """What an image's domain XML may name beside what its domain is known to have.

    ``paths`` holds absolute paths, each for itself and all below it; the others are names as
    ``mapsave inspect`` shows them.
    """

    programs: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class SaveSettings:
    """How to save, as the operator wishes; ``auto`` leaves the choice to the plan."""

    then: Then = "quit"
    live: bool = False
    format: Format = "auto"
    direct_io: Switch = "auto"
    zero_pages: ZeroPages = "auto"
    channels: int | Literal["auto"] = "auto"
    preallocate: Switch = "auto"
    policy: str | None = None


@dataclass(frozen=True)
class RestoreSettings:
    """How to restore. A load that makes no progress for ``stall`` seconds is given up."""

    stall: float = 30.0


@dataclass(frozen=True)
class Config:
    """What is in force. ``source`` is the file that it came from, None for built-in defaults.

    ``launch_environment`` are the names of the variables that a QEMU which we start gets of ours.
    """

    images: Path
    state: Path
    socket: Path
    jobs: Path
    policies: Path | None = None
    launch_environment: tuple[str, ...] = LAUNCH_ENVIRONMENT
    guests: Mapping[str, Guest] = field(default_factory=dict)
    save: SaveSettings = field(default_factory=SaveSettings)
    restore: RestoreSettings = field(default_factory=RestoreSettings)
    service: Service = field(default_factory=Service)
    hooks: Hooks = field(default_factory=Hooks)
    notify: tuple[Webhook, ...] = ()
    trust: Trust = field(default_factory=Trust)
    source: Path | None = None

    def guest(self, address: str) -> Guest:
        """Return the guest of a name, ``qmp:SOCKET``, ``libvirt:DOMAIN`` or ``libvirt+URI#DOMAIN``.

        A guest that is given by its address has that as its name.

        Raises UnknownGuest; UsageError where the address is no text that could name one.
        """
        found = self.guests.get(address) or _by_address(address)
        if found is None:
            import difflib

            close = difflib.get_close_matches(address, self.guests, n=1)
            where = f"in {self.source}" if self.source else "and there is no configuration file"
            raise errors.UnknownGuest(
                f"no guest {address!r} {where}",
                hint=f"did you mean {close[0]!r}?" if close else "or give qmp:SOCKET",
                guest=address,
            )
        return found


def load(explicit: Path | None, environ: Mapping[str, str]) -> Config:
    """Return the configuration that is in force.

    The first of: ``explicit`` (``--config``), the file that ``$MAPSAVE_CONFIG`` names,
    ``/etc/mapsave/manager.yaml`` if it exists, built-in defaults.

    Raises ConfigMissing if the file cannot be read, ConfigError if something in it is wrong.
    """
    built_in = defaults(environ)
    named = explicit or (Path(environ[VARIABLE]) if environ.get(VARIABLE) else None)
    if named is None and not os.path.lexists(SYSTEM_FILE):
        return built_in
    from mapsave import config_file

    return config_file.read(named or SYSTEM_FILE, built_in)


def defaults(environ: Mapping[str, str], *, root: bool | None = None) -> Config:
    """Return what holds without any file: for root the system's directories, else XDG's.

    ``root`` is whether the user is root, if not given that of this process.
    XDG variables that are empty or relative are passed over, as the XDG specification demands.
    """
    if os.geteuid() == 0 if root is None else root:
        return Config(
            images=Path("/var/lib/mapsave/images"),
            state=Path("/var/lib/mapsave/state"),
            socket=Path("/run/mapsave/mapsave.sock"),
            jobs=Path("/etc/mapsave/jobs.d"),
        )
    home = Path(environ.get("HOME") or os.path.expanduser("~"))

    def xdg(variable: str, fallback: Path) -> Path:
        value = environ.get(variable, "")
        return (Path(value) if value.startswith("/") else fallback) / "mapsave"

    state = xdg("XDG_STATE_HOME", home / ".local/state")
    return Config(
        images=xdg("XDG_DATA_HOME", home / ".local/share") / "images",
        state=state,
        socket=xdg("XDG_RUNTIME_DIR", state.parent) / "mapsave.sock",
        jobs=xdg("XDG_CONFIG_HOME", home / ".config") / "jobs.d",
    )


def show(config: Config) -> str:
    """Return what is in force as a configuration file that means the same."""
    import yaml

    origin = ascii(str(config.source)) if config.source else "built-in defaults, without a file"
    guests = {name: _plain(guest) for name, guest in config.guests.items()}
    for guest in guests.values():
        del guest["name"]
    data = {**_plain(config), "guests": guests}
    data.pop("source", None)
    return f"# from {origin}\n" + yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a configuration file, for editors."""
    from mapsave import config_models

    return config_models.ConfigModel.model_json_schema(by_alias=True)


def check_name(name: str) -> str:
    """Return ``name`` if a guest, a job or an image may be called so.

    It becomes part of file names and command lines. Raises ValueError otherwise.
    """
    if not name or name in (".", ".."):
        raise ValueError(f"{name!r} is not a name")
    if "/" in name or not all(char.isprintable() for char in name):
        raise ValueError(f"the name {name!r} contains a slash or an unprintable character")
    if name.startswith("-") or name != name.strip():
        raise ValueError(f"the name {name!r} begins with '-' or has leading or trailing spaces")
    if name.startswith(ADDRESSES):
        raise ValueError(f"the name {name!r} looks like an address ({', '.join(ADDRESSES)})")
    if len(name.encode()) > NAME_BYTES:
        raise ValueError(f"the name {name[:20]!r}... is longer than {NAME_BYTES} bytes")
    return name


def _by_address(address: str) -> Guest | None:
    kind, _, rest = address.partition(":")
    if address.startswith(ADDRESSES):
        _check_text(address, is_path=kind == "qmp")
    if kind == "qmp" and rest:
        return Guest(address, qmp=Path(rest))
    if kind == "libvirt" and rest:
        return Guest(address, libvirt=LibvirtDomain(rest))
    if address.startswith("libvirt+"):
        # A URI has no raw '#' but the one in front of its fragment (RFC 3986); a name may have.
        uri, _, domain = address.removeprefix("libvirt+").partition("#")
        if uri and domain:
            return Guest(address, libvirt=LibvirtDomain(domain, uri))
    return None


def _check_text(address: str, *, is_path: bool) -> None:
    """Raise UsageError where the kernel, or libvirt, could not be given what is in the address."""
    try:
        raw = os.fsencode(address) if is_path else address.encode()
    except UnicodeEncodeError:
        wrong = "bytes that are not UTF-8"
    else:
        if b"\0" not in raw:
            return
        wrong = "a NUL character"
    raise errors.UsageError(
        f"the address {address!r} contains {wrong}",
        hint="'mapsave list --libvirt' lists the domains",
    )


def _plain(value: Any) -> Any:
    """Return dataclasses as dicts without what is None or empty, paths as text."""
    if dataclasses.is_dataclass(value):
        pairs = ((each.name, getattr(value, each.name)) for each in dataclasses.fields(value))
        return {name: _plain(item) for name, item in pairs if item is not None and item != ()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)  # seconds, as people write them
    return str(value) if isinstance(value, Path) else value
