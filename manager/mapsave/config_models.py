"""The configuration file as pydantic models: what is wrong with a file, and the schema of one.

A file that is right is read by ``config_file.py``, which must read it as these models would.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from mapsave import config, config_file, service_settings, values


class Model(pydantic.BaseModel):
    """A mapping in one of our YAML files: unknown keys are errors, values keep their meaning."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)


# What editors and clients can check beforehand; the validators have the last word.
NAME = (
    r"^(?!\.{1,2}$|qmp:|libvirt[:+])"
    r"[^\u0000-\u0020\u007f/\-]([^\u0000-\u001f\u007f/]*[^\u0000-\u0020\u007f/])?$"
)
_DURATION = r"^([0-9]*[1-9][0-9]*(\.[0-9]+)?|([1-9][0-9]*(\.[0-9]+)?(ms|s|m|h|d))+)$"

Text = Annotated[
    str,
    pydantic.AfterValidator(values.text),
    pydantic.WithJsonSchema({"type": "string", "minLength": 1, "pattern": r"^[^\u0000]+$"}),
]
Name = Annotated[
    str,
    pydantic.AfterValidator(config.check_name),
    pydantic.WithJsonSchema({"type": "string", "pattern": NAME, "maxLength": config.NAME_BYTES}),
]
Size = Annotated[
    int | str, pydantic.PlainValidator(config_file.size, json_schema_input_type=int | str)
]
Argument = Annotated[
    str, pydantic.BeforeValidator(config_file.argument, json_schema_input_type=str | int)
]
Variable = Annotated[
    str,
    pydantic.AfterValidator(config_file.variable),
    pydantic.WithJsonSchema({"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*$"}),
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


Duration = Annotated[
    float,
    pydantic.PlainValidator(config_file.duration, json_schema_input_type=str | int | float),
    pydantic.WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": _DURATION},
                {"type": "number", "exclusiveMinimum": 0},
            ]
        }
    ),
]
AtOnce = Annotated[int, pydantic.PlainValidator(config_file.count, json_schema_input_type=int)]
Absolute = Annotated[
    str,
    pydantic.AfterValidator(config_file.absolute),
    pydantic.WithJsonSchema({"type": "string", "pattern": "^/"}),
]
Hook = Annotated[str, pydantic.AfterValidator(service_settings.hook_name)]


class LibvirtModel(Model):
    """A guest that libvirt manages."""

    uri: Text = Field(config.LIBVIRT_URI, description="Where the libvirt daemon is.")
    domain: Text = Field(description="The domain's name there.")


class EmulatorModel(Model):
    """An emulated guest, started on demand, for trying things out."""

    memory: Size = Field(description="Size of its RAM: bytes, or a number with K, M or G.")
    pattern: config.Pattern = Field("fragmented", description="The contents of its RAM.")
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
    launch_environment: list[Variable] | None = Field(
        None,
        min_length=1,
        description="Environment variables passed to it, instead of the general ones.",
    )
    policy: Name | None = Field(None, description="Label policy of its images.")
    priority: (
        Annotated[int, pydantic.PlainValidator(config_file.priority, json_schema_input_type=int)]
        | None
    ) = Field(None, description="save-all saves guests with a higher priority first (default: 0).")
    clones: config.Clones | None = Field(
        None, description="Who may restore another guest's image into it (default: admin)."
    )

    @pydantic.model_validator(mode="after")
    def _fits(self) -> GuestModel:
        config_file.check_guest(dict(self))
        return self


class SaveModel(Model):
    """How to save; what is not given is decided by the next wider place, at last by mapsave."""

    then: config.Then | None = Field(
        None, description="What to do with the guest after the save (default: quit)."
    )
    live: Truth | None = Field(
        None, description="Whether the guest keeps running while its RAM is written (default: no)."
    )
    format: config.Format | None = Field(
        None, description="Format of the image (auto: libvirt for libvirt guests)."
    )
    direct_io: Switch | None = Field(None, description="Whether to bypass the page cache.")
    zero_pages: config.ZeroPages | None = Field(None, description="How to detect zero pages.")
    channels: Channels | None = Field(None, description="Number of multifd channels.")
    preallocate: Switch | None = Field(
        None, description="Whether to preallocate the image's space."
    )
    policy: Name | None = Field(None, description="Label policy of the images.")

    def given(self) -> dict[str, Any]:
        """Return the settings of SaveSettings that the file gives."""
        names = (each.name for each in dataclasses.fields(config.SaveSettings))
        pairs = ((name, getattr(self, name)) for name in names)
        return {name: value for name, value in pairs if value is not None}


class RestoreModel(Model):
    """How to restore."""

    stall: Duration | None = Field(
        None,
        description="How long a load may make no progress before the restore fails (default: 30s).",
    )


class ListenModel(Model):
    """A TCP address with mutual TLS; there is none without."""

    address: Annotated[str, pydantic.AfterValidator(config_file.address)] = Field(
        description="Numeric address and port, such as 127.0.0.1:8443."
    )
    certificate: Text = Field(description="File of the service's certificate (PEM).")
    key: Text = Field(description="File of its key.")
    clients: Text = Field(description="File of the CA that signs the clients' certificates.")
    crl: Text | None = Field(None, description="File of the revocation lists of these CAs (PEM).")
    operators: list[Text] | None = Field(
        None, description="Common names that may save, restore and cancel."
    )
    readers: list[Text] | None = Field(None, description="Common names that may only read.")


class ServiceModel(Model):
    """How mapsaved runs."""

    group: Text | None = Field(None, description="Group that owns the socket, by name.")
    operators: list[Text] | None = Field(
        None, description="Groups whose members may save, restore and cancel."
    )
    readers: list[Text] | None = Field(None, description="Groups whose members may only read.")
    on_stop: service_settings.OnStop | None = Field(
        None, description="What to do with running saves when it stops (default: finish)."
    )
    stop_timeout: Duration | None = Field(
        None, description="How long a stop waits before it cancels running saves (default: 10m)."
    )
    concurrency: AtOnce | None = Field(None, description="Saves in parallel (default: 4).")
    per_file_system: AtOnce | None = Field(
        None, description="Saves in parallel to one file system (default: 2)."
    )
    bandwidth: Size | None = Field(
        None, description="Bytes per second for all saves to one file system (default: no limit)."
    )
    history: Duration | None = Field(
        None, description="How long finished operations are kept in the history (default: 90d)."
    )
    log: service_settings.LogFormat | None = Field(
        None, description="Log format (auto: journald if it listens, else text)."
    )
    textfile: Text | None = Field(
        None, description="File to write the metrics to, for node_exporter's textfile collector."
    )
    listen: ListenModel | None = Field(None, description="A TCP address with mutual TLS.")


class HooksModel(Model):
    """Executables that run before and after."""

    directory: Text | None = Field(
        None, description="The hooks directory, owned by root (default: /etc/mapsave/hooks.d)."
    )
    timeout: Duration | None = Field(None, description="Time limit of each hook (default: 60s).")
    before_save: list[Hook] | None = Field(None, description="Before a guest is touched.")
    after_save: list[Hook] | None = Field(None, description="Once the image is committed.")
    on_failure: list[Hook] | None = Field(None, description="Once a save or restore has failed.")
    before_restore: list[Hook] | None = Field(None, description="Before a destination is started.")
    after_restore: list[Hook] | None = Field(None, description="Once the guest is back.")


class WebhookModel(Model):
    """Where outcomes are reported, by a POST of JSON."""

    url: Annotated[str, pydantic.AfterValidator(service_settings.url)] = Field(
        description="An http or https address."
    )
    on: Annotated[list[service_settings.Outcome], Field(min_length=1)] | None = Field(
        None, description="Which outcomes to report (default: failure)."
    )
    timeout: Duration | None = Field(None, description="Time limit of each attempt (default: 10s).")


class TrustModel(Model):
    """What an image's domain XML may name beside what its domain is known to have."""

    programs: list[Text] | None = Field(None, description="Programs, such as emulators.")
    paths: list[Absolute] | None = Field(
        None, description="Paths, each including everything below it."
    )
    devices: list[Text] | None = Field(None, description="Devices as 'mapsave inspect' shows them.")
    others: list[Text] | None = Field(None, description="QEMU arguments, sockets and settings.")


class ConfigModel(Model):
    """The configuration of mapsave: manager.yaml."""

    images: Text | None = Field(None, description="The image directory.")
    state: Text | None = Field(
        None, description="Directory of the journal, locks and measurements."
    )
    socket: Text | None = Field(None, description="Where mapsaved listens.")
    jobs: Text | None = Field(None, description="The jobs directory.")
    policies: Text | None = Field(None, description="Directory of your own label policies.")
    launch_environment: list[Variable] | None = Field(
        None,
        min_length=1,
        description="Environment variables passed on to a QEMU that mapsave starts (default: "
        "PATH, LANG).",
    )
    guests: dict[Name, GuestModel] | None = Field(None, description="The guests, by name.")
    save: SaveModel | None = Field(None, description="Defaults of every save.")
    restore: RestoreModel | None = Field(None, description="How to restore.")
    service: ServiceModel | None = Field(None, description="How mapsaved runs.")
    hooks: HooksModel | None = Field(
        None, description="Executables run before and after each operation."
    )
    notify: list[WebhookModel] | None = Field(
        None, description="Webhooks that outcomes are sent to."
    )
    trust: TrustModel | None = Field(
        None, description="Which resources of this host images may name."
    )
