"""The configuration file as pydantic models: what is wrong with a file, and the schema of one.

A file that is right is read by ``config_file.py``, which must read it as these models would.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from manager import config, config_file, plain


class Model(pydantic.BaseModel):
    """A mapping in one of our YAML files: unknown keys are errors, values keep their meaning."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)


Text = Annotated[str, pydantic.AfterValidator(plain.text)]
Name = Annotated[str, pydantic.AfterValidator(config.check_name)]
Size = Annotated[
    int | str, pydantic.PlainValidator(config_file.size, json_schema_input_type=int | str)
]
Argument = Annotated[
    str, pydantic.BeforeValidator(config_file.argument, json_schema_input_type=str | int)
]
Truth = Annotated[bool, pydantic.BeforeValidator(config_file.truth)]
Switch = Annotated[
    config.Switch,
    pydantic.BeforeValidator(config_file.switch, json_schema_input_type=config.Switch | bool),
]
Channels = Annotated[
    int | Literal["auto"],
    pydantic.PlainValidator(
        config_file.channels,
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
        config_file.check_guest(dict(self))
        return self


class SaveModel(Model):
    """How to save; what is not given is decided by the next wider place, at last by mapsave."""

    then: config.Then | None = Field(
        None, description="What becomes of the guest after the save (default: quit)."
    )
    live: Truth | None = Field(
        None, description="Whether the guest runs on while its RAM is written (default: no)."
    )
    format: config.Format | None = Field(
        None, description="Format of the image (auto: libvirt for guests of libvirt)."
    )
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
