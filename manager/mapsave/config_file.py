"""The configuration file: its values, and how a file becomes the dataclasses of ``config.py``.

A file that is right is read by the readers here; for any other ``config_models.py``, the same keys
as pydantic models, says what is wrong.
"""

from __future__ import annotations

import os
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mapsave import config, service_settings, units, values, yaml_file

if TYPE_CHECKING:
    from collections.abc import Mapping


def size(value: Any) -> int:
    """Return the bytes that ``64M`` or 4096 means; raise ValueError for none."""
    if isinstance(value, bool) or not isinstance(value, (int, str)) or len(str(value)) > 40:
        raise ValueError("not a size (write bytes or a number with K, M, G or T)")
    found = units.parse_size(value)
    if found == 0:
        raise ValueError("must not be 0")
    return found


def argument(value: Any) -> Any:
    """Return a number as the text in the file, so that ``-m, 4096`` needs no quotes."""
    if isinstance(value, str) and "\0" in value:
        raise ValueError("must not contain a NUL")
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def variable(value: Any) -> str:
    """Return the name of an environment variable; raise ValueError if it is none."""
    found = values.text(value)
    if not (found.isascii() and found.isidentifier()):
        raise ValueError(f"{found!r} is not the name of an environment variable")
    return found


def switch(value: Any) -> Any:
    """Return true and false as ``on`` and ``off``."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


def truth(value: Any) -> Any:
    """Return ``on`` and ``yes``, ``off`` and ``no`` as true and false."""
    words = {"on": True, "yes": True, "off": False, "no": False}
    return words.get(value, value) if isinstance(value, str) else value


def channels(value: Any) -> int | Literal["auto"]:
    """Return a number of multifd channels or ``auto``.

    QEMU takes 1 to 255 (``multifd-channels`` is a uint8, migrate_params_check refuses 0).
    """
    if value == "auto":
        return "auto"
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 255:
        raise ValueError("must be auto or a number from 1 to 255")
    return value


def duration(value: Any) -> float:
    """Return the seconds that ``15m`` or 90 means; raise ValueError for none, and for 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("not a duration (write 30s, 15m, 1h30m)")
    seconds = units.parse_duration(value)
    if seconds == 0:
        raise ValueError("must be longer than 0")
    return seconds


def count(value: Any) -> int:
    """Return a number of things that are done at once, from 1 to 1000."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1000:
        raise ValueError("must be a number from 1 to 1000")
    return value


def priority(value: Any) -> int:
    """Return a priority, from -1000 to 1000."""
    if isinstance(value, bool) or not isinstance(value, int) or not -1000 <= value <= 1000:
        raise ValueError("must be a number from -1000 to 1000")
    return value


def address(value: Any) -> str:
    """Return ``ADDRESS:PORT``; raise ValueError if it is none."""
    service_settings.host_and_port(values.string(value))
    return values.string(value)


def absolute(value: Any) -> str:
    """Return an absolute path without ``..``; raise ValueError for any other."""
    path = values.text(value)
    if not path.startswith("/") or ".." in path.split("/"):
        raise ValueError("must be an absolute path without '..'")
    return path


def check_guest(guest: Mapping[str, Any]) -> None:
    """Raise ValueError where keys of a guest do not go together; all of them must be there."""
    given = [key for key in ("qmp", "libvirt", "emulator") if guest[key] is not None]
    launch = guest["launch"]
    if len(given) != 1:
        found = f", not {' and '.join(given)}" if given else ""
        raise ValueError(f"needs exactly one of qmp, libvirt and emulator{found}")
    if guest["launch_environment"] is not None and guest["libvirt"] is not None:
        raise ValueError(
            "launch_environment applies to qmp and emulator guests, not to libvirt ones"
        )
    if launch is not None and guest["qmp"] is None:
        raise ValueError(f"launch applies to qmp guests, not to {given[0]} ones")
    if launch and not launch[0]:
        raise ValueError("launch must begin with a command")
    if launch and {"-incoming", "--incoming"} & set(launch):
        raise ValueError("launch must not contain -incoming: mapsave adds it")


def read(path: Path, built_in: config.Config) -> config.Config:
    """Return the configuration in the file at ``path``, ``built_in`` where it says nothing.

    Relative paths in it are relative to its directory. Raises ConfigMissing, ConfigError.
    """
    found = _values(yaml_file.read(path))
    directory = Path(os.path.abspath(path)).parent

    def place(value: str | None, default: Any) -> Any:
        return default if value is None else directory / os.path.expanduser(value)

    save, hooks, service = found["save"] or {}, found["hooks"] or {}, found["service"] or {}
    return config.Config(
        images=place(found["images"], built_in.images),
        state=place(found["state"], built_in.state),
        socket=place(found["socket"], built_in.socket),
        jobs=place(found["jobs"], built_in.jobs),
        policies=place(found["policies"], built_in.policies),
        launch_environment=tuple(found["launch_environment"] or built_in.launch_environment),
        guests={
            name: _guest(name, guest, place(guest["qmp"], None))
            for name, guest in (found["guests"] or {}).items()
        },
        save=config.SaveSettings(**{key: save[key] for key in save if save[key] is not None}),
        restore=service_settings.of(config.RestoreSettings, found["restore"] or {}),
        service=service_settings.of(
            service_settings.Service,
            service,
            textfile=place(service.get("textfile"), None),
            listen=_listen(service.get("listen"), place),
        ),
        hooks=service_settings.of(
            service_settings.Hooks, hooks, directory=place(hooks.get("directory"), None)
        ),
        notify=tuple(
            service_settings.of(service_settings.Webhook, each) for each in found["notify"] or ()
        ),
        trust=service_settings.of(config.Trust, found["trust"]),
        source=path,
    )


def _values(document: yaml_file.Document) -> dict[str, Any]:
    """Return every key of the file, None or its default where it is not given."""
    try:
        found: dict[str, Any] = quick(document.data)
        return found
    except ValueError:
        from mapsave import config_models

        return document.validate(config_models.ConfigModel).model_dump()


def _guest(name: str, found: Mapping[str, Any], qmp: Path | None) -> config.Guest:
    libvirt, emulator = found["libvirt"], found["emulator"]
    return config.Guest(
        name,
        qmp=qmp,
        libvirt=config.LibvirtDomain(**libvirt) if libvirt else None,
        emulator=config.EmulatedGuest(**emulator) if emulator else None,
        launch=tuple(found["launch"] or ()),
        launch_environment=tuple(found["launch_environment"] or ()),
        policy=found["policy"],
        priority=found["priority"] or 0,
        clones=found["clones"] or "admin",
    )


def _listen(found: Mapping[str, Any] | None, place: Any) -> service_settings.Listen | None:
    if found is None:
        return None
    files = {key: place(found[key], None) for key in ("certificate", "key", "clients", "crl")}
    listen: service_settings.Listen = service_settings.of(
        service_settings.Listen, dict(found), **files
    )
    return listen


def _name(value: Any) -> str:
    return config.check_name(values.string(value))


def _argument(value: Any) -> str:
    return values.string(argument(value))


def _truth(value: Any) -> bool:
    found = truth(value)
    if not isinstance(found, bool):
        raise ValueError("neither true nor false")
    return found


def _switch(value: Any) -> str:
    return typing.cast("str", _SWITCH(switch(value)))


def _reachable(value: Any) -> dict[str, Any]:
    found: dict[str, Any] = _GUEST(value)
    check_guest(found)
    return found


_SWITCH = values.word(*typing.get_args(config.Switch))
_LIBVIRT = values.record(
    needed={"domain": values.text}, preset={"uri": (values.text, config.LIBVIRT_URI)}
)
_EMULATOR = values.record(
    needed={"memory": size},
    preset={
        "pattern": (values.word(*typing.get_args(config.Pattern)), "fragmented"),
        "writer": (_truth, False),
    },
)
_VARIABLES = values.sequence(variable, least=1)
_GUEST = values.record(
    maybe={
        "qmp": values.text,
        "libvirt": _LIBVIRT,
        "emulator": _EMULATOR,
        "launch": values.sequence(_argument, least=1),
        "launch_environment": _VARIABLES,
        "policy": _name,
        "priority": priority,
        "clones": values.word(*typing.get_args(config.Clones)),
    }
)
_SAVE = values.record(
    maybe={
        "then": values.word(*typing.get_args(config.Then)),
        "live": _truth,
        "format": values.word(*typing.get_args(config.Format)),
        "direct_io": _switch,
        "zero_pages": values.word(*typing.get_args(config.ZeroPages)),
        "channels": channels,
        "preallocate": _switch,
        "policy": _name,
    }
)


_RESTORE = values.record(maybe={"stall": duration})


def _hook(value: Any) -> str:
    return service_settings.hook_name(values.string(value))


def _url(value: Any) -> str:
    return service_settings.url(values.string(value))


_TEXTS = values.sequence(values.text)
_LISTEN = values.record(
    needed={
        "address": address,
        "certificate": values.text,
        "key": values.text,
        "clients": values.text,
    },
    maybe={"crl": values.text, "operators": _TEXTS, "readers": _TEXTS},
)
_SERVICE = values.record(
    maybe={
        "group": values.text,
        "operators": _TEXTS,
        "readers": _TEXTS,
        "on_stop": values.word(*typing.get_args(service_settings.OnStop)),
        "stop_timeout": duration,
        "concurrency": count,
        "per_file_system": count,
        "bandwidth": size,
        "history": duration,
        "log": values.word(*typing.get_args(service_settings.LogFormat)),
        "textfile": values.text,
        "listen": _LISTEN,
    }
)
_HOOKS = values.record(
    maybe={
        "directory": values.text,
        "timeout": duration,
        **dict.fromkeys(typing.get_args(service_settings.Moment), values.sequence(_hook)),
    }
)
_WEBHOOK = values.record(
    needed={"url": _url},
    maybe={
        "on": values.sequence(values.word(*typing.get_args(service_settings.Outcome)), least=1),
        "timeout": duration,
    },
)
_TRUST = values.record(
    maybe={
        **dict.fromkeys(("programs", "devices", "others"), _TEXTS),
        "paths": values.sequence(absolute),
    }
)
# What pydantic's ConfigModel would give by model_dump(), of a file that is right.
quick = values.record(
    maybe={
        **dict.fromkeys(("images", "state", "socket", "jobs", "policies"), values.text),
        "launch_environment": _VARIABLES,
        "guests": values.table(_name, _reachable),
        "save": _SAVE,
        "restore": _RESTORE,
        "service": _SERVICE,
        "hooks": _HOOKS,
        "notify": values.sequence(_WEBHOOK),
        "trust": _TRUST,
    }
)
