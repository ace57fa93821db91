"""What may be asked of the service: the bodies of its requests; unknown fields are errors."""

from __future__ import annotations

import typing
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic
from pydantic import Field

from mapsave import config, errors
from mapsave.config_models import (
    NAME,
    Channels,
    Duration,
    Model,
    Name,
    SaveModel,
    Switch,
    Text,
    Truth,
)
from mapsave.image import store
from mapsave.labels import policy

if TYPE_CHECKING:
    from collections.abc import Mapping


Kind = Literal[
    "save",
    "restore",
    "check",
    "verify",
    "discard",
    "recover",
    "job",
    "prune",
    "save-all",
    "restore-all",
]
KINDS = typing.get_args(Kind)


def _image(value: str) -> str:
    """Return a name in the image directory; a path would lead out of it."""
    if "/" in value:
        raise ValueError("must be the name of an image in the image directory, not a path")
    try:
        store.check_name(value)
    except errors.UsageError as error:
        raise ValueError(error.message) from None
    return value


def _policy(value: str) -> str:
    """Return the name of a policy; which file a path means only its user knows."""
    config.check_name(value)
    if policy.is_path(value):
        raise ValueError("must be the name of a label policy, not the path of a file")
    return value


def _guest(value: str) -> str:
    if not value.startswith(config.ADDRESSES):
        config.check_name(value)
    return value


def _xml(value: str) -> str:
    if not value.isascii():
        value.encode()  # raises a ValueError where it is no text
    return value


_IMAGE = r"^(?!\.{1,2}$|.*\.partial$)[^\u0000/]+$"
_ADDRESS = r"^(qmp:|libvirt[:+])[^\u0000]+$"

Image = Annotated[
    Text,
    pydantic.AfterValidator(_image),
    pydantic.WithJsonSchema({"type": "string", "pattern": _IMAGE, "maxLength": 255}),
]
Policy = Annotated[
    str,
    pydantic.AfterValidator(_policy),
    pydantic.WithJsonSchema(
        {
            "type": "string",
            "pattern": NAME,
            "maxLength": config.NAME_BYTES,
            "not": {"pattern": r"\.ya?ml$"},
        }
    ),
]
# A name of the configuration, or an address, which only the administrator may give.
Guest = Annotated[
    Text,
    pydantic.AfterValidator(_guest),
    pydantic.WithJsonSchema(
        {
            "type": "string",
            "anyOf": [{"pattern": NAME, "maxLength": config.NAME_BYTES}, {"pattern": _ADDRESS}],
        }
    ),
]
Xml = Annotated[Text, pydantic.AfterValidator(_xml)]


class SaveOptions(SaveModel):
    """How to save; what is not given is as the configuration says."""

    image: Image | None = Field(None, description="Name of the image (default: guest and time).")
    policy: Policy | None = Field(None, description="Label policy of the image.")
    replace: Truth = Field(False, description="Whether an image of that name may be replaced.")
    timeout: Duration | None = Field(None, description="Time limit of the save.")


class Save(Model):
    """Save a guest."""

    kind: Literal["save"]
    guest: Guest
    save: SaveOptions = SaveOptions.model_validate({})


class RestoreOptions(Model):
    """How to restore."""

    guest: Guest | None = Field(
        None, description="The guest to start, if it is not the image's own."
    )
    run: Literal["as-saved", "run", "paused"] = "as-saved"
    direct_io: Switch = "auto"
    channels: Channels | None = None
    policy: Policy | None = None
    again: Truth = Field(
        False, description="Whether an image that has been restored may be restored again."
    )
    force: Truth = Field(False, description="Whether to accept an older QEMU.")
    timeout: Duration | None = None
    through_libvirt: Truth = False
    into: Text | None = Field(
        None, description="QMP socket of a QEMU started with -incoming defer (root only)."
    )
    xml: Xml | None = Field(
        None, description="Domain XML to use instead of the image's (root only)."
    )
    trust_image: Truth = Field(
        False, description="Whether to restore an image that others could have written (root only)."
    )
    trust_recorded_command: Truth = Field(
        False, description="Whether to start the recorded command line (root only)."
    )


class Restore(Model):
    """Restore an image."""

    kind: Literal["restore"]
    image: Image
    restore: RestoreOptions = RestoreOptions.model_validate({})


class CheckOptions(Model):
    """The save that is checked."""

    image: Image | None = None
    policy: Policy | None = None
    direct_io: Switch | None = None


class Check(Model):
    """Tell what would fail if a guest were saved, or a job run; nothing is touched."""

    model_config = pydantic.ConfigDict(
        json_schema_extra={
            "oneOf": [
                {
                    "required": ["guest"],
                    "properties": {"guest": {"type": "string"}, "job": {"type": "null"}},
                },
                {
                    "required": ["job"],
                    "properties": {"job": {"type": "string"}, "guest": {"type": "null"}},
                    "not": {"required": ["check"]},
                },
            ]
        }
    )

    kind: Literal["check"]
    guest: Guest | None = None
    job: Name | None = Field(None, description="A job instead of a guest; it defines how to save.")
    check: CheckOptions = CheckOptions.model_validate({})

    @pydantic.model_validator(mode="after")
    def _one(self) -> Check:
        if (self.guest is None) == (self.job is None):
            raise ValueError("needs either 'guest' or 'job'")
        if self.job is not None and "check" in self.model_fields_set:
            raise ValueError("'check' applies to 'guest' only: a job defines how to save")
        return self


class Verify(Model):
    """Prove that an image is whole."""

    kind: Literal["verify"]
    image: Image


class Discard(Model):
    """Delete an image."""

    kind: Literal["discard"]
    image: Image
    unrestored: Truth = Field(
        False, description="Whether to delete an image that was never restored."
    )


class Recover(Model):
    """Finish or undo what an interrupted mapsave left."""

    kind: Literal["recover"]
    dry_run: Truth = False


class RunJob(Model):
    """Run a save job now."""

    kind: Literal["job"]
    job: Name


class Prune(Model):
    """Remove the images that a job does not keep."""

    kind: Literal["prune"]
    job: Name
    dry_run: Truth = False


class SaveAll(Model):
    """Save every guest, before the host goes down."""

    kind: Literal["save-all"]
    guests: list[Text] = Field(default=[], description="Names or patterns (default: all).")
    libvirt: Text | None = Field(
        None, description="URI of a libvirt whose active domains are saved as well (root only)."
    )
    deadline: Duration | None = Field(None, description="Time limit.")
    parallel: Annotated[int, Field(ge=1, le=64)] | None = None
    then: config.Then = "quit"
    dry_run: Truth = False


class RestoreAll(Model):
    """Bring back what save-all saved."""

    kind: Literal["restore-all"]
    parallel: Annotated[int, Field(ge=1, le=64)] | None = None
    discard: Truth = Field(False, description="Delete each image once its guest is restored.")
    dry_run: Truth = False


Request = Annotated[
    Save | Restore | Check | Verify | Discard | Recover | RunJob | Prune | SaveAll | RestoreAll,
    Field(discriminator="kind"),
]
REQUEST: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(Request)


def parse(data: Any) -> Any:
    """Return the request that a body means. Raises RequestInvalid naming each field that is not."""
    try:
        return REQUEST.validate_python(data)
    except pydantic.ValidationError as error:
        found = [_words(each) for each in error.errors(include_url=False, include_context=False)]
        first, rest = found[0], found[1:]
        raise errors.RequestInvalid(
            first["message"] + (f" (and {len(rest)} more)" if rest else ""),
            hint="see GET /v1/openapi.json",
            errors=found,
        ) from None


def _words(detail: Mapping[str, Any]) -> dict[str, str]:
    # The first part of the place is the kind that was chosen, which is no field of the body.
    place = detail["loc"][1:] if detail["loc"] and detail["loc"][0] in KINDS else detail["loc"]
    field = ".".join(str(part) for part in place)
    message = str(detail["msg"]).removeprefix("Value error, ")
    return {"field": field, "message": f"{field}: {message}" if field else message}
