"""The configuration file as pydantic checks it, turned into the dataclasses of ``config.py``."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from manager import config, units, yaml_file


class Model(pydantic.BaseModel):
    """A mapping in one of our YAML files: unknown keys are errors, values keep their meaning."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)


def text(value: str) -> str:
    """Return ``value``; raise ValueError if it is empty or holds what no argument can hold."""
    if not value or "\0" in value:
        raise ValueError("must not be empty" if not value else "must not hold a NUL")
    return value


def size(value: Any) -> int:
    """Return the bytes that ``64M`` or 4096 means; raise ValueError for none."""
    if isinstance(value, bool) or not isinstance(value, (int, str)) or len(str(value)) > 40:
        raise ValueError("not a size (write bytes or a number with K, M, G or T)")
    found = units.parse_size(value)
    if found == 0:
        raise ValueError("must not be 0")
    return found


def argument(value: Any) -> Any:
    """Return a number as the text that stands in the file, so that ``-m, 4096`` needs no quotes."""
    if isinstance(value, str) and "\0" in value:
        raise ValueError("must not hold a NUL")
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


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


Text = Annotated[str, pydantic.AfterValidator(text)]
Name = Annotated[str, pydantic.AfterValidator(config.check_name)]
Size = Annotated[int | str, pydantic.PlainValidator(size, json_schema_input_type=int | str)]
Argument = Annotated[str, pydantic.BeforeValidator(argument, json_schema_input_type=str | int)]
Truth = Annotated[bool, pydantic.BeforeValidator(truth)]
Switch = Annotated[
    config.Switch,
    pydantic.BeforeValidator(switch, json_schema_input_type=config.Switch | bool),
]
Channels = Annotated[
    int | Literal["auto"],
    pydantic.PlainValidator(
        channels,
        json_schema_input_type=Annotated[int, Field(ge=1, le=255)] | Literal["auto"],
    ),
]


class LibvirtModel(Model):
    """A guest that libvirt manages."""

    uri: Text = Field(config.LIBVIRT_URI, description="Where the libvirt daemon is.")
    domain: Text = Field(description="The domain's name there.")


class EmulatorModel(Model):
    """An emulated guest, started on demand, for trying things out."""

    memory: Size = Field(description="Size of its RAM: bytes, or a number with K, M or G.")
    pattern: config.Pattern = Field("fragmented", description="What its RAM is filled with.")
    writer: Truth = Field(False, description="Whether it changes its RAM while it runs.")


class GuestModel(Model):
    """One guest; exactly one of qmp, libvirt and emulator says how it is reached."""

    qmp: Text | None = Field(None, description="Path of QEMU's QMP socket.")
    libvirt: LibvirtModel | None = Field(None, description="Its libvirt daemon and domain.")
    emulator: EmulatorModel | None = Field(None, description="The emulated QEMU to start.")
    launch: list[Argument] | None = Field(
        None,
        min_length=1,
        description="Command and arguments that start it for a restore; mapsave adds -incoming.",
    )
    policy: Name | None = Field(None, description="Label policy of its images.")

    @pydantic.model_validator(mode="after")
    def _fits(self) -> GuestModel:
        given = [key for key in ("qmp", "libvirt", "emulator") if getattr(self, key) is not None]
        if len(given) != 1:
            found = f", not {' and '.join(given)}" if given else ""
            raise ValueError(f"needs exactly one of qmp, libvirt and emulator{found}")
        if self.launch is not None and self.qmp is None:
            raise ValueError(f"launch goes with qmp, not with {given[0]}")
        if self.launch and not self.launch[0]:
            raise ValueError("launch must begin with a command")
        if self.launch and {"-incoming", "--incoming"} & set(self.launch):
            raise ValueError("launch must not hold -incoming: mapsave adds it")
        return self


class SaveModel(Model):
    """How to save; what is not given is decided by the next wider place, at last by mapsave."""

    then: config.Then | None = Field(
        None, description="What becomes of the guest after the save (default: quit)."
    )
    live: Truth | None = Field(
        None, description="Whether the guest runs on while its RAM is written (default: no)."
    )
    format: config.Format | None = Field(None, description="Format of the image.")
    direct_io: Switch | None = Field(None, description="Whether to bypass the page cache.")
    zero_pages: config.ZeroPages | None = Field(None, description="How to find zero pages.")
    channels: Channels | None = Field(None, description="How many multifd channels.")
    preallocate: Switch | None = Field(None, description="Whether to reserve the image's room.")
    policy: Name | None = Field(None, description="Label policy of the images.")

    def given(self) -> dict[str, Any]:
        """Return the settings of SaveSettings that the file gives."""
        names = (each.name for each in dataclasses.fields(config.SaveSettings))
        pairs = ((name, getattr(self, name)) for name in names)
        return {name: value for name, value in pairs if value is not None}


class ConfigModel(Model):
    """The configuration of mapsave: manager.yaml."""

    images: Text | None = Field(None, description="Directory of the images.")
    state: Text | None = Field(None, description="Directory of journal, locks and measurements.")
    socket: Text | None = Field(None, description="Where mapsaved listens.")
    jobs: Text | None = Field(None, description="Directory of the save jobs.")
    policies: Text | None = Field(None, description="Directory of further label policies.")
    guests: dict[Name, GuestModel] | None = Field(None, description="The guests, by name.")
    save: SaveModel | None = Field(None, description="Defaults of every save.")


def read(path: Path, built_in: config.Config) -> config.Config:
    """Return the configuration in the file at ``path``, ``built_in`` where it says nothing.

    Relative paths in it are relative to its directory. Raises ConfigMissing, ConfigError.
    """
    model = yaml_file.read(path).validate(ConfigModel)
    directory = Path(os.path.abspath(path)).parent

    def place(value: str | None, default: Any) -> Any:
        return default if value is None else directory / os.path.expanduser(value)

    return config.Config(
        images=place(model.images, built_in.images),
        state=place(model.state, built_in.state),
        socket=place(model.socket, built_in.socket),
        jobs=place(model.jobs, built_in.jobs),
        policies=place(model.policies, built_in.policies),
        guests={
            name: _guest(name, guest, place(guest.qmp, None))
            for name, guest in (model.guests or {}).items()
        },
        save=config.SaveSettings(**(model.save.given() if model.save else {})),
        source=path,
    )


def _guest(name: str, model: GuestModel, qmp: Path | None) -> config.Guest:
    libvirt, emulator = model.libvirt, model.emulator
    return config.Guest(
        name,
        qmp=qmp,
        libvirt=config.LibvirtDomain(libvirt.domain, libvirt.uri) if libvirt else None,
        emulator=config.EmulatedGuest(**emulator.model_dump()) if emulator else None,
        launch=tuple(model.launch or ()),
        policy=model.policy,
    )
