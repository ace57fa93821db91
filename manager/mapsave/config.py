"""What the operator configured: where things are and which guests there are.

Every key of manager.yaml is defined here and in ``service_settings``. YAML is loaded only when
there is a file to read, so that commands start at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from msgspec import Meta, field, structs

from mapsave import database_settings, errors, guest_address, keys
from mapsave.checkpoint_settings import CheckpointSettings
from mapsave.clone_template import CloneTemplate
from mapsave.fleet_settings import Fleet
from mapsave.guest_address import LIBVIRT_URI
from mapsave.key_types import Argument, Channels, Name, Place, Size, Switch, Text, Truth, Variable
from mapsave.keys import Check, Keys, Parse, help, written
from mapsave.memory_settings import MemoryOptions, MemorySettings
from mapsave.restore_settings import RestoreOptions, RestoreSettings
from mapsave.service_settings import Hooks, Remote, Service, Webhook, check_webhook
from mapsave.trust_settings import Trust

SYSTEM_FILE = Path("/etc/mapsave/manager.yaml")
SYSTEM_SOCKET = Path("/run/mapsave/mapsave.sock")
VARIABLE = "MAPSAVE_CONFIG"

Then = Literal["quit", "resume", "leave"]
Format = Literal["auto", "native", "libvirt"]
Preference = Literal["time", "space"]
Method = Literal["save", "checkpoint", "auto"]
Digests = Literal["after", "before", "off"]
Prove = Literal["none", "load", "pages"]
ZeroPages = Literal["auto", "multifd", "legacy", "none"]
Pattern = Literal["random", "sparse", "fragmented", "linux"]
Clones = Literal["admin", "operator"]
EmulatedVersion = Literal["10.0", "11.1"]  # of QEMU

_XDG = ("images", "state", "socket", "jobs")  # keys whose default depends on the user


def _check_guest(guest: Guest) -> Guest:
    """Return ``guest``; raise ValueError where its keys do not go together."""
    given = [key for key in ("qmp", "libvirt", "emulator") if getattr(guest, key) is not None]
    launch = guest.launch
    if len(given) != 1:
        found = f", not {' and '.join(given)}" if given else ""
        raise ValueError(f"needs exactly one of qmp, libvirt and emulator{found}")
    if guest.launch_environment and guest.libvirt is not None:
        raise ValueError(
            "launch_environment applies to qmp and emulator guests, not to libvirt ones"
        )
    if launch and guest.qmp is None:
        raise ValueError(f"launch applies to qmp guests, not to {given[0]} ones")
    if launch and not launch[0]:
        raise ValueError("launch must begin with a command")
    for words in (launch, guest.clone.launch if guest.clone is not None else ()):
        if {"-incoming", "--incoming"} & set(words):
            raise ValueError("launch must not contain -incoming: mapsave adds it")
    if guest.memory is not None and guest.qmp is None:
        raise ValueError(f"memory applies to qmp guests, not to {given[0]} ones")
    if guest.save is not None and "policy" in guest.save.given:
        raise ValueError("the label policy of its images is the guest's own key 'policy'")
    if guest.clone is not None:
        guest.clone.check(given[0])
    return guest


Variables = Annotated[tuple[Variable, ...], Meta(min_length=1)]


class LibvirtDomain(Keys, frozen=True):
    """A domain of a libvirt daemon."""

    domain: Annotated[Text, help("The domain's name.")]
    uri: Annotated[Text, help("URI of the libvirt daemon.")] = LIBVIRT_URI


# Without quotes it is a number to YAML.
Emulated = Annotated[
    EmulatedVersion,
    Parse(lambda value: str(value) if isinstance(value, float) else value),
    written(None, {"enum": [*get_args(EmulatedVersion), *map(float, get_args(EmulatedVersion))]}),
]


class EmulatedGuest(Keys, frozen=True):
    """An emulated guest, started on demand, for trying things out."""

    memory: Annotated[Size, help("Size of its RAM.")]
    pattern: Annotated[Pattern, help("The contents of its RAM.")] = "fragmented"
    writer: Annotated[Truth, help("Whether it changes its RAM while it runs.")] = False
    version: Annotated[Emulated, help("The version of QEMU to emulate.")] = "10.0"


class SaveSettings(Keys, frozen=True):
    """How to save; ``auto`` leaves the choice to the plan."""

    then: Annotated[
        Then,
        help(
            "What to do with the guest afterwards: quit, resume it if it was running, or leave it "
            "paused."
        ),
    ] = "quit"
    live: Annotated[Truth, help("Whether the guest keeps running while its RAM is written.")] = (
        False
    )
    format: Annotated[
        Format, help("Format of the image; `auto` is libvirt's for libvirt guests.")
    ] = "auto"
    managed: Annotated[
        Switch,
        help(
            "Whether the image goes where libvirt keeps managed saves, so that `virsh start` "
            "restores it; `auto`: if `save-all` saves a persistent domain."
        ),
    ] = "auto"
    direct_io: Annotated[Switch, help("Whether to bypass the page cache.")] = "auto"
    zero_pages: Annotated[ZeroPages, help("How to detect zero pages.")] = "auto"
    channels: Annotated[Channels, help("Number of multifd channels.")] = "auto"
    preallocate: Annotated[Switch, help("Whether to preallocate the image's space.")] = "auto"
    prefer: Annotated[
        Preference, help("Whether the plan prefers the fastest way to write or the smallest image.")
    ] = "time"
    max_file_bytes: Annotated[
        Size | None, help("How large an image the plan may choose, where it has a choice.")
    ] = None
    policy: Annotated[
        Name | None, help("Label policy of the images; by default that of the guest.")
    ] = None
    digests: Annotated[
        Digests,
        help(
            "When digests of the image's data are taken: by the service once it is committed, "
            "before that, or not at all."
        ),
    ] = "after"
    prove: Annotated[
        Prove,
        help(
            "How the image is proven before the guest may go: not at all, by loading it into a "
            "QEMU that is thrown away, or by comparing all pages with the guest's RAM as well."
        ),
    ] = "none"
    keep_unproven: Annotated[
        Truth, help("Whether an image that could not be proven is kept, as `NAME.unproven`.")
    ] = False
    method: Annotated[
        Method,
        help("QEMU writes the RAM, the image shares its file, or what is better (`auto`)."),
    ] = "save"
    checkpoint: Annotated[
        CheckpointSettings, help("For how long a checkpoint may pause the guest.")
    ] = CheckpointSettings()


class SaveOptions(SaveSettings, frozen=True):
    """How to save in one place: what is not ``given`` is as the next wider place says."""

    given: tuple[str, ...] = ()

    def settings(self) -> dict[str, Any]:
        """Return the fields of SaveSettings that are given."""
        known = SaveSettings.__struct_fields__
        return {name: getattr(self, name) for name in self.given if name in known}


class Guest(Keys, frozen=True):
    """One guest; exactly one of qmp, libvirt and emulator says how it is reached."""

    name: str = ""
    qmp: Annotated[
        Place | None, help("Path of QEMU's QMP socket, which serves one client at a time.")
    ] = None
    libvirt: Annotated[LibvirtDomain | None, help("Its libvirt daemon and domain.")] = None
    emulator: Annotated[EmulatedGuest | None, help("The emulated QEMU to start.")] = None
    launch: Annotated[
        tuple[Argument, ...],
        Meta(min_length=1),
        help("Command and arguments that start it for a restore; mapsave adds `-incoming`."),
    ] = ()
    launch_environment: Annotated[
        Variables, help("Environment variables passed to it, instead of the general ones.")
    ] = ()
    save: Annotated[
        SaveOptions | None, help("How to save it; what is left out is as for all guests.")
    ] = None
    restore: Annotated[
        RestoreOptions | None, help("How to restore it; what is left out is as for all guests.")
    ] = None
    memory: Annotated[MemoryOptions | None, help("Of what its RAM is that a restore starts.")] = (
        None
    )
    policy: Annotated[Name | None, help("Label policy of its images.")] = None
    priority: Annotated[
        int,
        Meta(ge=-1000, le=1000),
        help("`save-all` and `restore-all` take guests with a higher priority first."),
    ] = 0
    clones: Annotated[
        Clones,
        help("Who may restore another guest's image into it, and clone it, through the service."),
    ] = "admin"
    clone: Annotated[CloneTemplate | None, help("How clones of it are started.")] = None
    clone_of: str = ""


class Config(Keys, frozen=True):
    """The configuration of mapsave: manager.yaml. ``source`` is the file that it came from.

    With ``is_unread`` the caller may not read it, or it is another host's: the service alone knows
    what is in it.
    """

    images: Annotated[Place, help("The image directory.")] = field(
        default_factory=lambda: Path("/var/lib/mapsave/images")
    )
    state: Annotated[Place, help("The state directory: journal, locks and measurements.")] = field(
        default_factory=lambda: Path("/var/lib/mapsave/state")
    )
    socket: Annotated[Place, help("Socket where `mapsaved` listens.")] = field(
        default_factory=lambda: SYSTEM_SOCKET
    )
    jobs: Annotated[Place, help("The jobs directory.")] = field(
        default_factory=lambda: Path("/etc/mapsave/jobs.d")
    )
    policies: Annotated[Place | None, help("Directory of your own label policies.")] = None
    launch_environment: Annotated[
        Variables, help("Environment variables passed on to a QEMU that mapsave starts.")
    ] = ("PATH", "LANG")
    guests: Annotated[
        Mapping[Name, Annotated[Guest, Check(_check_guest)]], help("The guests, by name.")
    ] = field(default_factory=dict)
    save: Annotated[SaveSettings, help("Defaults of every save.")] = SaveSettings()
    restore: Annotated[RestoreSettings, help("How to restore.")] = RestoreSettings()
    memory: Annotated[
        MemorySettings, help("Of what the RAM of guests is that a restore starts.")
    ] = MemorySettings()
    service: Annotated[Service, help("How `mapsaved` runs.")] = Service()
    hosts: Annotated[Mapping[Name, Remote], help("Services of other hosts, for `--host`.")] = field(
        default_factory=dict
    )
    fleet: Annotated[
        Annotated[Fleet, Check(database_settings.check)] | None,
        help("The fleet that this host is in, for `mapsave fleet agent`."),
    ] = None
    hooks: Annotated[Hooks, help("Executables run before and after each operation.")] = field(
        default_factory=Hooks
    )
    notify: Annotated[
        tuple[Annotated[Webhook, Check(check_webhook)], ...],
        help("Webhooks that outcomes are sent to."),
    ] = ()
    trust: Annotated[Trust, help("Which resources of this host images may name.")] = Trust()
    source: Path | None = None
    is_unread: bool = False

    def named(self, name: str) -> Guest | None:
        """Return the guest of that name, be it the clone of one; None where there is none.

        Of a name that suits several templates the longest is meant.
        """
        if (found := self.guests.get(name)) is not None:
            return found
        suiting = [
            (len(each.clone.names(each.name)), each, each.clone, part)
            for each in self.guests.values()
            if each.clone is not None and (part := each.clone.part(each.name, name)) is not None
        ]
        if not suiting:
            return None
        _, guest, template, part = max(suiting, key=lambda one: one[0])
        made = template.made(name, part)
        return structs.replace(guest, name=name, clone=None, clone_of=guest.name, **made)

    def guest(self, address: str) -> Guest:
        """Return the guest of a name, ``qmp:SOCKET``, ``libvirt:DOMAIN`` or ``libvirt+URI#DOMAIN``.

        A guest that is given by its address has that as its name. Raises UnknownGuest; UsageError
        where the address is no text that could name one.
        """
        found = self.named(address) or _by_address(address)
        socket = None if found is not None else guest_address.of_path(address)
        if found is None and self.is_unread and (socket is None or "/" not in address):
            return Guest(address)
        if found is None:
            where = f"in {self.source}" if self.source else "and there is no configuration file"
            hint = keys.did_you_mean(address, self.guests) or "or give qmp:SOCKET"
            raise errors.UnknownGuest(
                f"no guest {address!r} {where}",
                hint=f"did you mean {socket!r}?" if socket is not None else hint,
                guest=address,
            )
        return found


def load(explicit: Path | None, environ: Mapping[str, str], *, for_client: bool = False) -> Config:
    """Return the configuration that is in force.

    The first of: ``explicit`` (``--config``), the file that ``$MAPSAVE_CONFIG`` names,
    ``/etc/mapsave/manager.yaml`` if it exists, built-in defaults. ``for_client`` of the service the
    system's file need not be readable. Raises ConfigMissing, NotPermitted if the file cannot be
    read, ConfigError if something in it is wrong.
    """
    path = file_in_force(explicit, environ)
    built_in = places(path, environ)
    if path is None:
        return built_in
    from mapsave import yaml_file

    try:
        document = yaml_file.read(path)
    except errors.NotPermitted:
        if for_client and is_system_file(path):
            return structs.replace(built_in, source=path, is_unread=True)
        raise
    found = document.validate(Config, place_from(path))
    unsaid = {key: getattr(built_in, key) for key in _XDG if document.data.get(key) is None}
    guests = {name: structs.replace(guest, name=name) for name, guest in found.guests.items()}
    return structs.replace(found, **unsaid, guests=guests, source=path)


def file_in_force(explicit: Path | None, environ: Mapping[str, str]) -> Path | None:
    """Return the file that ``load`` reads; None where the built-in defaults hold."""
    named = explicit or (Path(environ[VARIABLE]) if environ.get(VARIABLE) else None)
    if named is not None:
        return named
    try:
        os.lstat(SYSTEM_FILE)
    except PermissionError:  # it may be there
        return SYSTEM_FILE
    except OSError:
        return None
    return SYSTEM_FILE


def is_system_file(path: Path | None) -> bool:
    """Return whether a file is ``/etc/mapsave/manager.yaml``, by its path."""
    return path is not None and os.path.abspath(path) == str(SYSTEM_FILE)


def places(path: Path | None, environ: Mapping[str, str]) -> Config:
    """Return what holds where the file in force leaves it out.

    The system's file is for everybody on the host, so its defaults, such as the socket, are root's.
    """
    return Config() if is_system_file(path) else defaults(environ)


def place_from(path: Path) -> keys.Hook:
    """Return what reads a path within the file at ``path``: as relative to its directory."""
    directory = Path(os.path.abspath(path)).parent
    return lambda _, value: directory / os.path.expanduser(value)


def defaults(environ: Mapping[str, str], *, root: bool | None = None) -> Config:
    """Return what holds without any file: for root the system's directories, else XDG's.

    ``root`` is whether the user is root, if not given that of this process.
    XDG variables that are empty or relative are passed over, as the XDG specification demands.
    """
    if os.geteuid() == 0 if root is None else root:
        return Config()
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


def _by_address(address: str) -> Guest | None:
    found = guest_address.parse(address)
    if found is None:
        return None
    if found.socket is not None:
        return Guest(address, qmp=Path(found.socket))
    return Guest(address, libvirt=LibvirtDomain(found.domain, found.uri))
